//! Events for people who `kubectl describe` a binding: once each, repeated ones counted, none in floods.

use std::{collections::HashMap, time::Duration};

use k8s_openapi::{
    api::{
        core::v1::ObjectReference,
        events::v1::{Event, EventSeries},
    },
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio::{sync::mpsc, time::Instant};

use super::index::Id;
use crate::{
    GROUP,
    failure::{Failure, within},
};

/// Events that wait to be written. A flood is cut off below, so this is what a slow API server may hold up.
const WAITING_MAX: usize = 256;
/// The API server's own limit.
const NOTE_BYTES_MAX: usize = 1024;
/// The same again within this time is counted and not told anew, as everywhere in Kubernetes.
const SERIES_S: u64 = 360;
/// How often a count is written.
const SERIES_WRITE_S: u64 = 30;
/// Rows that are remembered.
const SERIES_MAX: usize = 2048;
/// Of one binding, at once and then one per so many seconds.
const BURST: f64 = 20.0;
const PER_S: f64 = 0.1;

/// What happened to a binding.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Happened {
    pub(super) id: Id,
    pub(super) uid: String,
    pub(super) is_warning: bool,
    /// What was done about it.
    pub(super) action: &'static str,
    pub(super) reason: &'static str,
    pub(super) note: String,
}

/// Takes what happened; cheap to clone.
#[derive(Clone)]
pub(super) struct Events(mpsc::Sender<Happened>);

impl Events {
    pub(super) fn start(client: Client, instance: String, request_timeout: Duration) -> Events {
        let (tell, told) = mpsc::channel(WAITING_MAX);
        tokio::spawn(write(client, instance, request_timeout, told));
        Events(tell)
    }

    /// Tells, if there is room: Events are a courtesy, and nothing waits for them.
    pub(super) fn tell(&self, happened: Happened) {
        if self.0.try_send(happened).is_err() {
            tracing::debug!("an Event was not written, too many wait");
        }
    }
}

#[derive(Debug, Clone)]
struct Series {
    name: String,
    count: i32,
    last: Instant,
    written: Instant,
}

/// What to do about something that happened.
#[derive(Debug, PartialEq, Eq)]
enum Action {
    Create,
    /// Write that it has happened so many times, to the Event of that name.
    Count(String, i32),
    Nothing,
}

#[derive(Default)]
struct Limiter {
    series: HashMap<Happened, Series>,
    tokens: HashMap<Id, (f64, Instant)>,
}

impl Limiter {
    fn look(&mut self, happened: &Happened, now: Instant) -> Action {
        if let Some(series) = self.series.get_mut(happened)
            && now - series.last < Duration::from_secs(SERIES_S)
        {
            series.count = series.count.saturating_add(1);
            series.last = now;
            if now - series.written < Duration::from_secs(SERIES_WRITE_S) {
                return Action::Nothing;
            }
            series.written = now;
            return Action::Count(series.name.clone(), series.count);
        }
        if self.tokens.len() >= SERIES_MAX {
            self.tokens
                .retain(|_, (tokens, at)| *tokens + (now - *at).as_secs_f64() * PER_S < BURST);
        }
        let (tokens, at) = self.tokens.entry(happened.id.clone()).or_insert((BURST, now));
        *tokens = (*tokens + (now - *at).as_secs_f64() * PER_S).min(BURST);
        *at = now;
        if *tokens < 1.0 {
            return Action::Nothing;
        }
        *tokens -= 1.0;
        Action::Create
    }

    fn created(&mut self, happened: Happened, name: String, now: Instant) {
        if self.series.len() >= SERIES_MAX {
            self.series
                .retain(|_, series| now - series.last < Duration::from_secs(SERIES_S));
        }
        if self.series.len() < SERIES_MAX {
            let series = Series {
                name,
                count: 1,
                last: now,
                written: now,
            };
            self.series.insert(happened, series);
        }
    }
}

async fn write(client: Client, instance: String, limit: Duration, mut told: mpsc::Receiver<Happened>) {
    let mut limiter = Limiter::default();
    while let Some(happened) = told.recv().await {
        let api: Api<Event> = Api::namespaced(client.clone(), &happened.id.0);
        let result = match limiter.look(&happened, Instant::now()) {
            Action::Nothing => continue,
            Action::Create => {
                let event = event_of(&happened, &instance, jiff::Timestamp::now());
                let created = within(limit, api.create(&PostParams::default(), &event)).await;
                if created.is_ok() {
                    let name = event.metadata.name.unwrap_or_default();
                    limiter.created(happened.clone(), name, Instant::now());
                }
                created.map(drop)
            }
            Action::Count(name, count) => {
                let last_observed_time = MicroTime(jiff::Timestamp::now());
                let series = EventSeries {
                    count,
                    last_observed_time,
                };
                let patch = json!({"series": series});
                let counted = within(limit, api.patch(&name, &PatchParams::default(), &Patch::Merge(&patch))).await;
                if matches!(&counted, Err(Failure::Api(status)) if status.is_not_found()) {
                    // Events live for an hour: the next one is a new one.
                    limiter.series.remove(&happened);
                }
                counted.map(drop)
            }
        };
        if let Err(failure) = result {
            let binding = format!("{}/{}", happened.id.0, happened.id.1);
            tracing::debug!(binding, reason = happened.reason, %failure, "an Event was not written");
        }
    }
}

fn event_of(happened: &Happened, instance: &str, now: jiff::Timestamp) -> Event {
    let (namespace, name) = happened.id.clone();
    let most = happened.note.len().min(NOTE_BYTES_MAX);
    let end = (0..=most)
        .rev()
        .find(|&end| happened.note.is_char_boundary(end))
        .unwrap_or_default();
    Event {
        metadata: ObjectMeta {
            // As client-go does it; two of one binding in one nanosecond do not happen.
            name: Some(format!("{name}.{:x}", now.as_nanosecond())),
            namespace: Some(namespace.clone()),
            ..ObjectMeta::default()
        },
        event_time: Some(MicroTime(now)),
        reporting_controller: Some(GROUP.to_owned() + "/" + crate::FIELD_MANAGER),
        reporting_instance: Some(instance.chars().take(128).collect()),
        action: Some(happened.action.to_owned()),
        reason: Some(happened.reason.to_owned()),
        type_: Some(if happened.is_warning { "Warning" } else { "Normal" }.to_owned()),
        note: Some(happened.note.get(..end).unwrap_or_default().to_owned()),
        regarding: Some(ObjectReference {
            api_version: Some(infer_api::API_VERSION.to_owned()),
            kind: Some("AutoscalingPolicyBinding".to_owned()),
            name: Some(name),
            namespace: Some(namespace),
            uid: Some(happened.uid.clone()),
            ..ObjectReference::default()
        }),
        ..Event::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn happened(note: &str) -> Happened {
        Happened {
            id: ("ml".to_owned(), "chat".to_owned()),
            uid: "u".to_owned(),
            is_warning: false,
            action: "Scale",
            reason: "Scaled",
            note: note.to_owned(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_again_is_counted_and_a_flood_is_cut_off() {
        let mut limiter = Limiter::default();
        let first = happened("from 1 to 2");
        let start = Instant::now();
        let at = |s: u64| start + Duration::from_secs(s);
        assert_eq!(limiter.look(&first, at(0)), Action::Create);
        limiter.created(first.clone(), "e1".to_owned(), at(0));
        assert_eq!(limiter.look(&first, at(5)), Action::Nothing);
        assert_eq!(limiter.look(&first, at(40)), Action::Count("e1".to_owned(), 3));
        assert_eq!(limiter.look(&first, at(500)), Action::Create, "a row has ended");
        let told = (0..1000)
            .filter(|n| limiter.look(&happened(&n.to_string()), at(500)) == Action::Create)
            .count();
        assert_eq!(told, 19);
        assert_eq!(limiter.look(&happened("later"), at(511)), Action::Create);
        assert_eq!(limiter.look(&happened("too soon"), at(511)), Action::Nothing);
    }

    #[test]
    fn a_note_is_cut_where_a_character_ends() {
        let event = event_of(&happened(&"ü".repeat(600)), "me", jiff::Timestamp::UNIX_EPOCH);
        assert_eq!(event.note.unwrap().len(), 1024);
    }
}
