//! What the journal knew of targets that are not bound yet, and people's words.

use std::sync::Arc;

use infer_core::{TimeMs, decision::Control};

use crate::{
    journal::{ControlEntry, Decision, Entry},
    state::State,
};

/// Decisions kept in memory for listing and explaining: 3 KB each, so 6 MB.
const DECISIONS_KEPT: usize = 2000;

/// A person's word on a target, and when it ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Word {
    /// What holds.
    pub control: Control,
    /// Until when; `None`: until somebody says otherwise.
    pub expires: Option<TimeMs>,
    /// Why.
    pub reason: String,
}

impl Word {
    pub(crate) fn from_entry(entry: &ControlEntry) -> Option<Word> {
        let control = match (entry.control.as_str(), entry.replicas) {
            ("paused", _) => Control::Paused,
            ("override", Some(replicas)) => Control::Override(replicas),
            _ => return None,
        };
        Some(Word {
            control,
            expires: entry.expires_unix_ms.map(TimeMs),
            reason: entry.reason.clone(),
        })
    }

    /// The journal's form; `None` for the end of a word.
    pub fn to_entry(target: &str, word: Option<&Word>) -> ControlEntry {
        let (control, replicas) = match word.map(|word| word.control) {
            Some(Control::Paused) => ("paused", None),
            Some(Control::Override(replicas)) => ("override", Some(replicas)),
            Some(Control::Auto | Control::Advisory) | None => ("auto", None),
        };
        ControlEntry {
            target: target.to_owned(),
            control: control.to_owned(),
            replicas,
            expires_unix_ms: word.and_then(|word| word.expires).map(|end| end.0),
            reason: word.map(|word| word.reason.clone()).unwrap_or_default(),
        }
    }
}

impl State {
    /// Takes in what the journal has kept, the oldest first.
    pub(crate) fn take(&mut self, entry: Entry) {
        match entry {
            Entry::Decision(decision) => {
                let mut memory = decision.record.memory_after.clone();
                if !decision.applied {
                    memory.events.forget(decision.record.inputs.now);
                }
                let written = decision.record.inputs.now;
                self.memories.insert(decision.record.target.clone(), (written, memory));
                self.next_decision_id = self.next_decision_id.max(decision.id + 1);
                self.remember(Arc::new(*decision));
            }
            Entry::Checkpoint {
                target,
                unix_ms,
                memory,
                next_decision_id,
            } => {
                self.next_decision_id = self.next_decision_id.max(next_decision_id);
                self.memories.insert(target, (TimeMs(unix_ms), *memory));
            }
            Entry::Control(entry) => match Word::from_entry(&entry) {
                Some(word) => {
                    self.words.insert(entry.target, word);
                }
                None => {
                    self.words.remove(&entry.target);
                }
            },
        }
    }

    /// Plans of several targets are settled as their backends answer, not in the order of their numbers.
    pub(crate) fn remember(&mut self, decision: Arc<Decision>) {
        if self.decisions.len() >= DECISIONS_KEPT {
            self.decisions.pop_front();
        }
        let place = self.decisions.partition_point(|before| before.id <= decision.id);
        self.decisions.insert(place, decision);
    }
}
