//! One look at every replica: what a tick needs to know of them, gathered in one walk.

use crate::{
    TimeMs,
    decision::Replicas,
    sample::Gauges,
    target::{
        pod::{Phase, PodState},
        share::Share,
    },
};

/// Ready replicas by what is known of them.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Known {
    /// Should have reported by now.
    pub(super) expected: u32,
    /// Have fresh good data.
    pub(super) fresh: u32,
    /// Have fresh good data that tells everything the policy asks for.
    pub(super) informed: u32,
}

/// What the walk has found.
#[derive(Debug, Default)]
pub(super) struct Survey {
    pub(super) replicas: Replicas,
    pub(super) known: Known,
    /// Whether a request is known to be in any engine. A replica that has gone silent is taken at its last word.
    pub(super) busy: bool,
    /// Ready replicas that have never said anything.
    pub(super) silent: u32,
    /// Since when each ready replica serves.
    pub(super) since: Vec<TimeMs>,
    /// Ready replicas that do not sleep and have said something.
    awake: u32,
    /// Running, waiting and KV usage of ready and of draining replicas.
    ready: [Share; 3],
    draining: [Share; 3],
}

impl Survey {
    pub(super) fn new(spec: u32, pods: usize) -> Self {
        Survey {
            replicas: Replicas {
                spec,
                ..Replicas::default()
            },
            since: Vec::with_capacity(pods),
            ..Survey::default()
        }
    }

    pub(super) fn add(&mut self, state: &PodState, now: TimeMs, fresh: bool, informed: bool) {
        let phase = state.view.phase;
        match phase {
            Phase::Starting => self.replicas.starting += 1,
            Phase::Ready => self.replicas.ready += 1,
            Phase::Draining => self.replicas.draining += 1,
            Phase::Failed => self.replicas.failed += 1,
        }
        let ready = phase == Phase::Ready;
        if ready {
            self.known.expected += u32::from(!state.is_new(now));
            self.known.fresh += u32::from(fresh);
            self.known.informed += u32::from(informed);
            self.since.extend(state.view.ready_since);
        }
        let Some(latest) = &state.latest else {
            self.silent += u32::from(ready);
            return;
        };
        let gauges = &latest.gauges;
        self.busy |= gauges.concurrency().is_some_and(|load| load > 0.0);
        let shares = match phase {
            Phase::Ready if !gauges.asleep => &mut self.ready,
            Phase::Draining if !gauges.asleep && fresh => &mut self.draining,
            _ => return,
        };
        self.awake += u32::from(ready);
        let gauges = [gauges.running, gauges.waiting, gauges.kv_usage];
        for (share, gauge) in shares.iter_mut().zip(gauges) {
            share.add(gauge);
        }
    }

    /// The fleet's totals; `None` when nobody who is awake has said anything.
    pub(super) fn total(&self) -> Option<Gauges> {
        let of = |index: usize| {
            let ready = self.ready[index].filled(self.awake + self.silent);
            ready.map(|sum| sum + self.draining[index].sum)
        };
        (self.awake > 0).then(|| Gauges {
            running: of(0),
            waiting: of(1),
            kv_usage: of(2),
            asleep: false,
        })
    }
}
