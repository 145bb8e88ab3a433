//! The samples an agent holds: those not yet acknowledged, and recent ones for a decider that has to start again.

use std::collections::VecDeque;

use infer_proto::v1::Sample;
use prost::Message as _;

use crate::Settings;

/// Bounds of a [`Replay`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Acknowledged samples older than this are dropped.
    pub horizon_ms: u64,
    /// Most samples held.
    pub max_samples: usize,
    /// Most bytes held, the bookkeeping included.
    pub max_bytes: usize,
}

impl Limits {
    /// Room for every full sample of the horizon, and a quarter more for urgent ones: a queue that jumps in every
    /// fourth second for ten minutes is already rare.
    ///
    /// In bytes: encoded samples of captured engines were measured at below 100 bytes idle, and at 790 (vLLM) and 830
    /// (SGLang) with five signals over a whole run, which hits more buckets than any one second does. A mebibyte is thus
    /// 19 minutes of a busy engine at 1 Hz.
    pub fn for_settings(settings: &Settings, max_bytes: usize) -> Self {
        let horizon_ms = u64::from(settings.replay_horizon_ms);
        let full = usize::try_from(horizon_ms / u64::from(settings.interval_ms.max(1))).unwrap_or(usize::MAX);
        Self {
            horizon_ms,
            max_samples: full.saturating_add(full / 4).saturating_add(16),
            max_bytes,
        }
    }
}

/// A bounded queue of encoded samples with consecutive sequence numbers. The oldest make room for new ones.
///
/// A connection reads it with a cursor: everything that is neither acknowledged nor evicted comes out in order, once
/// per connection.
#[derive(Debug)]
pub struct Replay {
    limits: Limits,
    entries: VecDeque<Entry>,
    newest: u64,
    acked: u64,
    bytes: usize,
    lost: u64,
}

/// Encoded, because as a struct a sample takes several times its encoded size.
#[derive(Debug)]
struct Entry {
    sequence: u64,
    end_ms: u64,
    encoded: Box<[u8]>,
}

impl Entry {
    fn bytes(&self) -> usize {
        size_of::<Self>() + self.encoded.len()
    }
}

impl Replay {
    /// An empty buffer; its first sample will be number 1.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            entries: VecDeque::new(),
            newest: 0,
            acked: 0,
            bytes: 0,
            lost: 0,
        }
    }

    /// Changes the bounds; what no longer fits goes with the next sample.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Numbers the sample, holds it, and returns its sequence number.
    pub fn push(&mut self, mut sample: Sample) -> u64 {
        self.newest += 1;
        sample.sequence = self.newest;
        let entry = Entry {
            sequence: sample.sequence,
            end_ms: sample.end_ms,
            encoded: sample.encode_to_vec().into_boxed_slice(),
        };
        self.bytes += entry.bytes();
        self.entries.push_back(entry);
        self.drop_old(sample.end_ms);
        // The newest stays even if it alone is over the bound in bytes.
        while self.entries.len() > 1
            && (self.entries.len() > self.limits.max_samples.max(1) || self.bytes > self.limits.max_bytes)
        {
            self.pop_oldest();
        }
        self.newest
    }

    /// A decider has answered `Welcome`: it holds everything up to `after`, and nothing above.
    pub fn resume(&mut self, after: u64) {
        self.acked = after.min(self.newest);
    }

    /// Everything up to `sequence` is in the decider's windows.
    pub fn ack(&mut self, sequence: u64) {
        self.acked = self.acked.max(sequence.min(self.newest));
    }

    /// The oldest sample with a sequence number above `cursor`, with that number.
    pub fn next_after(&self, cursor: u64) -> Option<(u64, Sample)> {
        let entry = self.entries.get(self.index_after(cursor)?)?;
        // What `push` has encoded can be decoded; a default would only show up as sequence 0.
        let sample = Sample::decode(&entry.encoded[..]).unwrap_or_default();
        Some((entry.sequence, sample))
    }

    /// Whether there is a sample with a sequence number above `cursor`.
    pub fn has_after(&self, cursor: u64) -> bool {
        self.newest > cursor && !self.entries.is_empty()
    }

    /// Sequence number of the oldest sample held, 0 when there is none.
    pub fn oldest(&self) -> u64 {
        self.entries.front().map_or(0, |entry| entry.sequence)
    }

    /// Sequence number of the newest sample, 0 when there never was one.
    pub fn newest(&self) -> u64 {
        self.newest
    }

    /// Everything up to this number has been acknowledged by the present decider.
    pub fn acked(&self) -> u64 {
        self.acked
    }

    /// Samples that had to make room before any decider had acknowledged them.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// Samples held.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether none is held.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes held, the bookkeeping included.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn index_after(&self, cursor: u64) -> Option<usize> {
        // Numbers are consecutive, because only the oldest ever go.
        usize::try_from((cursor + 1).saturating_sub(self.oldest())).ok()
    }

    fn drop_old(&mut self, now_ms: u64) {
        while let Some(front) = self.entries.front() {
            let old = front.end_ms.saturating_add(self.limits.horizon_ms) < now_ms;
            if !(old && front.sequence <= self.acked) {
                break;
            }
            self.pop_oldest();
        }
    }

    fn pop_oldest(&mut self) {
        if let Some(entry) = self.entries.pop_front() {
            self.bytes -= entry.bytes();
            if entry.sequence > self.acked {
                self.lost += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample(end_ms: u64) -> Sample {
        Sample {
            end_ms,
            interval_ms: 1_000,
            ..Sample::default()
        }
    }

    fn replay(horizon_ms: u64, max_samples: usize, max_bytes: usize) -> Replay {
        Replay::new(Limits {
            horizon_ms,
            max_samples,
            max_bytes,
        })
    }

    /// What one connection that starts after `cursor` would send.
    fn sent_after(replay: &Replay, mut cursor: u64) -> Vec<u64> {
        let mut sent = Vec::new();
        while let Some((sequence, sample)) = replay.next_after(cursor) {
            assert_eq!(sample.sequence, sequence);
            sent.push(sequence);
            cursor = sequence;
        }
        sent
    }

    #[test]
    fn acknowledged_samples_stay_for_the_horizon() {
        let mut replay = replay(3_000, 100, 1 << 20);
        for second in 1..=5 {
            replay.push(sample(second * 1_000));
        }
        assert_eq!(replay.oldest(), 1, "nothing is acknowledged: nothing goes");
        replay.ack(4);
        replay.push(sample(6_000));
        assert_eq!(replay.oldest(), 3, "3000 ms is not older than the horizon, 2000 ms is");
        replay.resume(0);
        assert_eq!(
            sent_after(&replay, 0),
            [3, 4, 5, 6],
            "a new decider gets the younger ones again"
        );
        assert_eq!(replay.lost(), 0);
    }

    #[test]
    fn the_oldest_make_room_and_are_counted_when_nobody_had_them() {
        let mut replay = replay(600_000, 3, 1 << 20);
        for second in 1..=3 {
            replay.push(sample(second * 1_000));
        }
        replay.ack(1);
        replay.push(sample(4_000));
        assert_eq!((replay.oldest(), replay.lost()), (2, 0));
        replay.push(sample(5_000));
        assert_eq!((replay.oldest(), replay.lost()), (3, 1));
        assert_eq!(sent_after(&replay, 1), [3, 4, 5], "the cursor steps over the hole");
    }

    #[test]
    fn a_resume_point_from_the_future_is_cut_to_what_there_is() {
        let mut replay = replay(600_000, 10, 1 << 20);
        replay.push(sample(1_000));
        replay.resume(77);
        assert_eq!(replay.acked(), 1);
        replay.push(sample(2_000));
        assert_eq!(sent_after(&replay, replay.acked()), [2]);
    }

    #[test]
    fn default_limits_hold_the_horizon() {
        let limits = Limits::for_settings(&Settings::default(), 1 << 20);
        assert_eq!(limits.max_samples, 600 + 150 + 16);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Push { after_ms: u64, detail: usize },
        Ack(u64),
        Connect { resume_after: u64 },
        Send(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => (0u64..3_000, 0usize..300).prop_map(|(after_ms, detail)| Step::Push { after_ms, detail }),
            2 => (0u64..80).prop_map(Step::Ack),
            1 => prop_oneof![Just(0u64), 0u64..80].prop_map(|resume_after| Step::Connect { resume_after }),
            3 => (0usize..10).prop_map(Step::Send),
        ];
        prop::collection::vec(step, 0..120)
    }

    proptest! {
        /// Everything not acknowledged and not evicted is sent in order, exactly once per connection; the bounds hold;
        /// what is evicted without an acknowledgement is counted.
        #[test]
        fn the_law(steps in steps(), max_samples in 1usize..20, max_bytes in 500usize..4_000) {
            let mut replay = replay(10_000, max_samples, max_bytes);
            let mut now_ms = 0;
            let mut cursor = 0;
            let mut sent: Vec<u64> = Vec::new();
            let mut evicted_unsent = 0;
            for step in steps {
                match step {
                    Step::Push { after_ms, detail } => {
                        now_ms += after_ms;
                        let (oldest, acked, newest) = (replay.oldest().max(1), replay.acked(), replay.newest());
                        let mut new = sample(now_ms);
                        new.scrape = Some(infer_proto::v1::Scrape { detail: "x".repeat(detail), ..Default::default() });
                        prop_assert_eq!(replay.push(new), newest + 1);
                        evicted_unsent += (oldest..replay.oldest()).filter(|&gone| gone > acked).count() as u64;
                    }
                    Step::Ack(sequence) => replay.ack(sequence),
                    Step::Connect { resume_after } => {
                        replay.resume(resume_after);
                        cursor = replay.acked();
                        sent.clear();
                    }
                    Step::Send(count) => {
                        for _ in 0..count {
                            prop_assert_eq!(replay.has_after(cursor), replay.next_after(cursor).is_some());
                            let Some((sequence, sample)) = replay.next_after(cursor) else { break };
                            prop_assert_eq!(sample.sequence, sequence);
                            prop_assert_eq!(sequence, (cursor + 1).max(replay.oldest()), "only evicted ones are skipped");
                            prop_assert!(sent.last().is_none_or(|last| *last < sequence), "in order, once");
                            sent.push(sequence);
                            cursor = sequence;
                        }
                    }
                }
                prop_assert!(replay.len() <= max_samples);
                prop_assert!(replay.len() <= 1 || replay.bytes() <= max_bytes);
                prop_assert!(replay.acked() <= replay.newest());
                prop_assert_eq!(replay.lost(), evicted_unsent);
                prop_assert_eq!(replay.len() as u64, if replay.is_empty() { 0 } else { replay.newest() - replay.oldest() + 1 });
            }
            // A last connection gets all that is left above its resume point.
            let expected: Vec<u64> = (replay.oldest().max(replay.acked() + 1)..=replay.newest()).collect();
            prop_assert_eq!(sent_after(&replay, replay.acked()), expected);
        }
    }
}
