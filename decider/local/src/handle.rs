use std::sync::Arc;

use tokio::sync::{broadcast, watch};

use crate::{Error, Event, FleetState, Traffic};

/// The wanted count. Only the latest matters, so it is a watched value and not a queue: telling it never waits.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) replicas: Option<u32>,
    pub(crate) plan_id: Option<String>,
}

/// Scales a fleet and shows its state. Cheap to clone; outliving the supervisor is fine.
#[derive(Clone)]
pub struct Handle {
    pub(crate) fleet: Arc<str>,
    pub(crate) ports: u32,
    pub(crate) wanted: watch::Sender<Wanted>,
    pub(crate) state: watch::Receiver<FleetState>,
    pub(crate) events: broadcast::Sender<Event>,
    pub(crate) traffic: Arc<dyn Traffic>,
}

impl Handle {
    /// Tells the wanted count and returns at once. Telling the same count again changes nothing; of two counts told in
    /// quick succession only the second may take effect.
    ///
    /// # Errors
    /// [`Error::OtherFleet`], [`Error::TooManyReplicas`], or [`Error::Stopped`] when the supervisor has ended.
    pub fn scale(&self, fleet: &str, replicas: u32, plan_id: &str) -> Result<(), Error> {
        if fleet != &*self.fleet {
            return Err(Error::OtherFleet {
                own: self.fleet.to_string(),
                asked: fleet.to_owned(),
            });
        }
        if replicas > self.ports {
            let fleet = fleet.to_owned();
            return Err(Error::TooManyReplicas {
                fleet,
                asked: replicas,
                ports: self.ports,
            });
        }
        // The supervisor's own sender does not count as a receiver, so a closed channel means that it has ended.
        if self.wanted.is_closed() {
            return Err(Error::Stopped {
                fleet: fleet.to_owned(),
            });
        }
        let new = Wanted {
            replicas: Some(replicas),
            plan_id: Some(plan_id.to_owned()),
        };
        self.wanted.send_if_modified(|wanted| {
            let changed = *wanted != new;
            *wanted = new;
            changed
        });
        Ok(())
    }

    /// The fleet's name.
    #[must_use]
    pub fn fleet(&self) -> &str {
        &self.fleet
    }

    /// The fleet as it is now, with the requests under way counted now.
    #[must_use]
    pub fn snapshot(&self) -> FleetState {
        let mut state = self.state.borrow().clone();
        for replica in &mut state.replicas {
            replica.in_flight = self.traffic.in_flight(&replica.name);
        }
        state
    }

    /// The fleet at every change of a replica, the wanted count or a counter.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<FleetState> {
        self.state.clone()
    }

    /// Each event from now on. One that reads too slowly loses the oldest and is told how many.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handle")
            .field("fleet", &self.fleet)
            .finish_non_exhaustive()
    }
}
