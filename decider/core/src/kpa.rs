//! The stable/panic machine of Knative's pod autoscaler (knative/serving `pkg/autoscaler/scaling/autoscaler.go`; its
//! unit tests are among the conformance vectors).
//!
//! Two averages of the *total* load, over a long and a short window, each propose `load ÷ target per replica`. When
//! the short one wants a multiple of the ready replicas, panic begins: from then on the count only rises, until a
//! whole stable window has passed without another reason to panic.

use serde::{Deserialize, Serialize};

use crate::{TimeMs, policy::KpaPolicy, window::MaxTimeWindow};

/// Knative's autoscaler ticks every two seconds; its delay window counts in them.
const DELAY_GRANULARITY_MS: i64 = 2000;

/// What the machine remembers between ticks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KpaMemory {
    /// When panic began or was last confirmed; `None` in stable mode.
    pub panic_since: Option<TimeMs>,
    /// The most replicas wanted since panic began.
    pub max_panic_replicas: u32,
    /// Largest wish of the last `scale_down_delay_s`, where one is set.
    pub delay: Option<MaxTimeWindow>,
}

impl KpaMemory {
    /// The machine at its start. With more than one replica running it begins in panic, so that a restarted
    /// autoscaler cannot shrink a fleet before it has seen a whole stable window of it.
    pub fn start(policy: &KpaPolicy, ready: u32, now: TimeMs) -> Self {
        KpaMemory {
            panic_since: (ready > 1).then_some(now),
            max_panic_replicas: ready,
            delay: delay_window(policy),
        }
    }

    /// Whether the machine is in panic.
    pub fn in_panic(&self) -> bool {
        self.panic_since.is_some()
    }

    /// Gives the delay window the policy's shape and keeps what still fits. Whether it now looks back on more than it knows.
    pub fn fit(&mut self, policy: &KpaPolicy) -> bool {
        match (&mut self.delay, delay_window(policy)) {
            (Some(delay), Some(_)) => delay.resize(policy.scale_down_delay_s),
            (delay, window) => {
                *delay = window;
                delay.is_some()
            }
        }
    }

    /// Nothing in it is dated after `now`.
    pub fn not_after(&mut self, now: TimeMs) {
        self.panic_since = self.panic_since.map(|since| since.min(now));
        if let Some(delay) = &mut self.delay {
            delay.not_after(now);
        }
    }
}

fn delay_window(policy: &KpaPolicy) -> Option<MaxTimeWindow> {
    (policy.scale_down_delay_s > 0.0).then(|| MaxTimeWindow::new(policy.scale_down_delay_s, DELAY_GRANULARITY_MS))
}

/// What one tick sees.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct KpaInput {
    /// The tick's time.
    pub now: TimeMs,
    /// Replicas that serve.
    pub ready: u32,
    /// Replicas wanted by the stable window: total load ÷ target per replica, not rounded.
    pub stable: f64,
    /// Likewise by the panic window.
    pub panic: f64,
    /// Whether traffic can reach the target; if not, the rate down and the delay do not hold.
    pub reachable: bool,
}

/// What one tick wants, with the numbers on the way.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct KpaOutput {
    /// The outcome.
    pub desired: u32,
    /// Whether panic holds after this tick.
    pub in_panic: bool,
    /// Stable window's wish within the rate limits.
    pub stable: u32,
    /// Panic window's wish within the rate limits.
    pub panic: u32,
    /// Fewest replicas the rate down allows.
    pub floor: u32,
    /// Most replicas the rate up allows.
    pub ceiling: u32,
    /// Panic window's wish ÷ ready replicas, to be compared with the threshold.
    pub panic_ratio: f64,
}

/// One tick of the machine.
pub fn step(policy: &KpaPolicy, memory: &mut KpaMemory, input: KpaInput) -> KpaOutput {
    let ready = f64::from(input.ready.max(1));
    let ceiling = (policy.max_scale_up_rate * ready).ceil();
    let floor = if input.reachable {
        (ready / policy.max_scale_down_rate).floor()
    } else {
        0.0
    };
    let stable_wish = input.stable.ceil();
    let panic_wish = input.panic.ceil();

    let limited = |wish: f64| {
        let replicas = wish.max(floor).min(ceiling) as u32;
        if policy.activation_scale > 1 && wish > 0.0 {
            replicas.max(policy.activation_scale)
        } else {
            replicas
        }
    };
    let (stable, panic) = (limited(stable_wish), limited(panic_wish));

    let panic_ratio = panic_wish / ready;
    if panic_ratio >= policy.panic_threshold_percent / 100.0 {
        memory.panic_since = Some(input.now);
    } else if memory
        .panic_since
        .is_some_and(|since| since.plus_s(policy.stable_window_s) < input.now)
    {
        memory.panic_since = None;
        memory.max_panic_replicas = 0;
    }

    let mut desired = stable;
    if memory.in_panic() {
        memory.max_panic_replicas = memory.max_panic_replicas.max(stable.max(panic));
        desired = memory.max_panic_replicas;
    }
    if let Some(delay) = memory.delay.as_mut().filter(|_| input.reachable) {
        delay.record(input.now, desired);
        desired = delay.current();
    }
    KpaOutput {
        desired,
        in_panic: memory.in_panic(),
        stable,
        panic,
        floor: floor as u32,
        ceiling: ceiling.min(f64::from(u32::MAX)) as u32,
        panic_ratio,
    }
}

/// What capacity is left for a burst before requests would have to be held: Knative's "excess burst capacity".
/// `target_burst_capacity` of 0 means that none is wanted.
pub fn excess_burst_capacity(ready: u32, total_per_replica: f64, target_burst_capacity: f64, panic_load: f64) -> f64 {
    if target_burst_capacity == 0.0 {
        return 0.0;
    }
    (f64::from(ready) * total_per_replica - target_burst_capacity - panic_load).floor()
}
