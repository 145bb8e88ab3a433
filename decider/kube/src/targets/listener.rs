//! Telling others what has changed: each key once, however often it has, so that nothing has to wait and nothing piles up.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// One who wants to know which targets have changed.
#[derive(Default)]
pub(super) struct Listener {
    keys: Mutex<BTreeSet<String>>,
    notify: Notify,
}

impl Listener {
    pub(super) fn add<'a>(&self, keys: impl Iterator<Item = &'a Arc<str>>) {
        let mut waiting = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.extend(keys.map(|key| key.to_string()));
        self.notify.notify_one();
    }

    pub(super) async fn next(&self, cancel: &CancellationToken) -> Option<BTreeSet<String>> {
        loop {
            let keys = std::mem::take(&mut *self.keys.lock().unwrap_or_else(PoisonError::into_inner));
            if !keys.is_empty() {
                return Some(keys);
            }
            tokio::select! {
                () = self.notify.notified() => {}
                () = cancel.cancelled() => return None,
            }
        }
    }
}
