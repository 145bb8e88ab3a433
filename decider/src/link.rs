//! From the service to an agent's stream: what it is to be told besides acknowledgements.

use infer_proto::v1;
use tokio::sync::watch;

/// Where a stream's agent is to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Leave {
    /// To the decider that owns the target.
    Redirect { endpoint: String, reason: String },
    /// Nobody knows yet: it is to ask again.
    Retry { reason: String },
}

/// What an agent is to know now. The newest word is enough: it says everything.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Orders {
    /// Why the replica drains; `None`: it does not.
    pub(crate) drain: Option<String>,
    pub(crate) wanted: v1::Wanted,
    pub(crate) leave: Option<Leave>,
}

/// The service's end. Dropped when another stream takes the place of this one.
pub(crate) struct Link(watch::Sender<Orders>);

impl Link {
    /// A link and the stream's end of it.
    pub(crate) fn new(orders: Orders) -> (Link, watch::Receiver<Orders>) {
        let (sender, receiver) = watch::channel(orders);
        (Link(sender), receiver)
    }

    /// Changes the orders; the stream hears of it if that is a change.
    pub(crate) fn order(&self, change: impl FnOnce(&mut Orders)) {
        self.0.send_if_modified(|orders| {
            let before = orders.clone();
            change(orders);
            *orders != before
        });
    }
}
