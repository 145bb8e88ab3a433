//! Whether what is known is what is so.

use std::collections::BTreeMap;

use infer_core::TimeMs;

use super::api::Gvk;

/// A watch.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stream {
    /// Of Pods, in a namespace or all.
    Pods(Option<String>),
    /// Of a kind's metadata.
    Kind(Gvk, Option<String>),
}

/// Of all watches and the API server.
#[derive(Debug, Default)]
pub(super) struct Health {
    /// Those that are broken, and since when.
    broken: BTreeMap<Stream, TimeMs>,
    unreachable_since: Option<TimeMs>,
    last_contact: Option<TimeMs>,
}

impl Health {
    /// A watch is up to date. Whether that is news.
    pub(super) fn set_ok(&mut self, stream: &Stream, now: TimeMs) -> bool {
        self.contact(now);
        self.broken.remove(stream).is_some()
    }

    /// A watch is not up to date any more. Whether that is news.
    pub(super) fn set_broken(&mut self, stream: &Stream, now: TimeMs) -> bool {
        if self.broken.contains_key(stream) {
            return false;
        }
        self.broken.insert(stream.clone(), now);
        true
    }

    /// A watch is over.
    pub(super) fn forget(&mut self, stream: &Stream) {
        self.broken.remove(stream);
    }

    /// The API server has sent something.
    pub(super) fn contact(&mut self, now: TimeMs) {
        self.last_contact = self.last_contact.max(Some(now));
    }

    /// How long nothing has come, in seconds.
    pub(super) fn silence_s(&self, now: TimeMs) -> f64 {
        self.last_contact.map_or(f64::MAX, |last| now.since_s(last))
    }

    /// Whether nobody has answered the last look.
    pub(super) fn is_unreachable(&self) -> bool {
        self.unreachable_since.is_some()
    }

    /// How a look at the API server has ended. Whether that is news.
    pub(super) fn set_reachable(&mut self, reachable: bool, now: TimeMs) -> bool {
        let was = self.unreachable_since.is_none();
        if reachable {
            self.contact(now);
            self.unreachable_since = None;
        } else if was {
            self.unreachable_since = Some(self.last_contact.unwrap_or(now));
        }
        was != reachable
    }

    /// Since when what these watches tell has not been confirmed.
    pub(super) fn stale_since(&self, streams: &[Stream]) -> Option<TimeMs> {
        let broken = streams.iter().filter_map(|stream| self.broken.get(stream).copied());
        broken.chain(self.unreachable_since).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stale_since_the_first_that_broke_until_the_last_is_mended() {
        let (pods, kind) = (
            Stream::Pods(None),
            Stream::Kind(Gvk::new("apps/v1", "Deployment"), None),
        );
        let all = [pods.clone(), kind.clone()];
        let mut health = Health::default();
        assert_eq!(health.stale_since(&all), None);
        assert!(health.set_broken(&pods, TimeMs(10)));
        assert!(!health.set_broken(&pods, TimeMs(20)));
        health.set_broken(&kind, TimeMs(15));
        assert_eq!(health.stale_since(&all), Some(TimeMs(10)));
        assert_eq!(health.stale_since(&[]), None);
        assert!(health.set_ok(&pods, TimeMs(30)));
        assert_eq!(health.stale_since(&all), Some(TimeMs(15)));
        health.set_ok(&kind, TimeMs(31));
        assert_eq!(health.stale_since(&all), None);
        // Watches seem well, but nobody answers: since the last time that somebody did.
        assert!(health.set_reachable(false, TimeMs(40)));
        assert_eq!(health.stale_since(&[]), Some(TimeMs(31)));
        assert!(health.set_reachable(true, TimeMs(50)));
        assert_eq!((health.stale_since(&all), health.silence_s(TimeMs(52))), (None, 0.002));
    }
}
