//! A list and then a watch, for ever: recovers from everything, and says at any time whether it is up to date.

use std::time::Duration;

use http::Request;
use http_body_util::BodyExt;
use kube::client::Body;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;
use tokio::sync::watch;

use super::api::{Api, Failure};

/// Objects per page of a list.
const PAGE: u32 = 500;
/// A list page may be large.
const LIST_TIMEOUT: Duration = Duration::from_secs(30);
/// The API server answers a watch at once, events or not.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// The API server ends a watch after this time (and up to a minute more, so that not all end together).
const WATCH_S: u32 = 270;
/// Bookmarks come about every minute; a connection that is silent for longer is dead.
const SILENCE: Duration = Duration::from_secs(150);
/// First and longest wait after a failure.
const WAIT: Duration = Duration::from_millis(200);
const WAIT_MAX: Duration = Duration::from_secs(3);
/// Longest wait where the failure is an answer: a missing rule, a missing kind.
const REFUSED_WAIT_MAX: Duration = Duration::from_secs(30);
/// An event is one line. The API server takes no objects larger than 3 MiB.
const LINE_MAX: usize = 16 * 1024 * 1024;

/// What is watched.
#[derive(Debug, Clone)]
pub(super) struct Source {
    /// Path of the collection.
    pub(super) path: String,
    /// Media type of a list.
    pub(super) accept_list: &'static str,
    /// Media type of a watch.
    pub(super) accept: &'static str,
}

/// What a watch tells.
#[derive(Debug)]
pub(super) enum Event<T> {
    /// These are all that there are.
    All(Vec<T>),
    /// There is a new one, or one has changed.
    Applied(T),
    /// One is gone.
    Deleted(T),
    /// The view is up to date, and will be as long as nothing else is told.
    Connected,
    /// The API server has sent something: it is alive.
    Alive,
    /// The view is not up to date any more. The watch goes on trying.
    Broken(Failure),
    /// An object that can not be read is left out.
    Unreadable(String),
}

#[derive(Deserialize)]
struct List<T> {
    metadata: ListMeta,
    /// Nothing at all is `null`.
    items: Option<Vec<T>>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct ListMeta {
    resource_version: String,
    #[serde(rename = "continue")]
    more: String,
}

#[derive(Deserialize)]
struct Line<T> {
    #[serde(rename = "type")]
    kind: String,
    object: T,
}

/// What of any object can be read.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Bare {
    metadata: BareMeta,
    code: u16,
    message: String,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct BareMeta {
    name: String,
    resource_version: String,
}

/// Watches until `sink` returns false, or (with [`Failure::NotFound`]) there is no such resource any more. A change of
/// `reconnect` makes it connect anew.
pub(super) async fn run<T: DeserializeOwned>(
    api: &Api,
    source: &Source,
    mut reconnect: watch::Receiver<u64>,
    mut sink: impl FnMut(Event<T>) -> bool,
) {
    let mut version: Option<String> = None;
    let mut wait = WAIT;
    loop {
        reconnect.borrow_and_update();
        let outcome = turn(api, source, &mut version, &mut wait, &mut reconnect, &mut sink).await;
        let failure = match outcome {
            Ok(true) => continue,
            Ok(false) => return,
            Err(Failure::Gone) => {
                // Too far behind: all anew.
                version = None;
                Failure::Gone
            }
            Err(failure) => failure,
        };
        let is_answer = failure.is_an_answer();
        let is_missing = matches!(failure, Failure::NotFound(_));
        if !sink(Event::Broken(failure)) || is_missing {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(wait.mul_f64(0.5 + fastrand::f64())) => {}
            _ = reconnect.changed() => {}
        }
        wait = (wait * 2).min(if is_answer { REFUSED_WAIT_MAX } else { WAIT_MAX });
    }
}

/// One list (where needed) and one watch. `Ok(true)`: the watch has ended in order; `Ok(false)`: nobody listens.
async fn turn<T: DeserializeOwned>(
    api: &Api,
    source: &Source,
    version: &mut Option<String>,
    wait: &mut Duration,
    reconnect: &mut watch::Receiver<u64>,
    sink: &mut impl FnMut(Event<T>) -> bool,
) -> Result<bool, Failure> {
    let from = match version.as_ref() {
        Some(version) => version.clone(),
        None => {
            let (all, listed, unreadable) = list(api, source).await?;
            if !unreadable.into_iter().all(|why| sink(Event::Unreadable(why))) || !sink(Event::All(all)) {
                return Ok(false);
            }
            version.insert(listed).clone()
        }
    };
    let timeout_s = WATCH_S + fastrand::u32(0..60);
    let uri = format!(
        "{}?watch=1&allowWatchBookmarks=true&timeoutSeconds={timeout_s}&resourceVersion={from}",
        source.path
    );
    let request = Request::get(uri)
        .header(http::header::ACCEPT, source.accept)
        .body(Body::empty());
    let request = request.map_err(|error| Failure::Refused(error.to_string()))?;
    let opened = tokio::time::timeout(OPEN_TIMEOUT, api.client.send(request)).await;
    let response = opened.map_err(|_| Failure::Busy("the API server does not answer a watch".to_owned(), None))??;
    let status = response.status();
    let mut body = response.into_body();
    if !status.is_success() {
        let text = tokio::time::timeout(OPEN_TIMEOUT, body.collect())
            .await
            .ok()
            .and_then(Result::ok);
        let text = text.map(|text| text.to_bytes()).unwrap_or_default();
        let message = serde_json::from_slice::<Bare>(&text)
            .map(|bare| bare.message)
            .unwrap_or_default();
        return Err(Failure::of_status(status.as_u16(), message, None));
    }
    if !sink(Event::Connected) {
        return Ok(false);
    }
    *wait = WAIT;
    let mut pending: Vec<u8> = Vec::new();
    loop {
        let frame = tokio::select! {
            frame = tokio::time::timeout(SILENCE, body.frame()) => frame,
            _ = reconnect.changed() => return Err(Failure::Busy("connecting anew".to_owned(), None)),
        };
        let data = match frame {
            // Silence: from where we are, on another connection.
            Err(_) | Ok(None) => return Ok(true),
            Ok(Some(Err(error))) => return Err(error.into()),
            Ok(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) => data,
                Err(_) => continue,
            },
        };
        let mut rest: &[u8] = &data;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let (line, after) = rest.split_at(end);
            rest = after.get(1..).unwrap_or_default();
            let is_listening = if pending.is_empty() {
                take(line, version, sink)?
            } else {
                pending.extend_from_slice(line);
                let whole = std::mem::take(&mut pending);
                take(&whole, version, sink)?
            };
            if !is_listening {
                return Ok(false);
            }
        }
        pending.extend_from_slice(rest);
        if pending.len() > LINE_MAX {
            return Err(Failure::Refused("an event without an end".to_owned()));
        }
    }
}

/// One event.
fn take<T: DeserializeOwned>(
    line: &[u8],
    version: &mut Option<String>,
    sink: &mut impl FnMut(Event<T>) -> bool,
) -> Result<bool, Failure> {
    if line.iter().all(u8::is_ascii_whitespace) {
        return Ok(true);
    }
    // What every object has is read by itself: one that can not be read as a whole must not be met again and again.
    let bare: Line<Bare> = serde_json::from_slice(line)
        .map_err(|error| Failure::Busy(format!("an event that is no JSON: {error}"), None))?;
    if bare.kind == "ERROR" {
        return Err(Failure::of_status(bare.object.code, bare.object.message, None));
    }
    let seen = bare.object.metadata;
    if !seen.resource_version.is_empty() {
        *version = Some(seen.resource_version);
    }
    if bare.kind == "BOOKMARK" {
        return Ok(sink(Event::Alive));
    }
    Ok(match serde_json::from_slice::<Line<T>>(line) {
        Ok(Line { kind, object }) if kind == "DELETED" => sink(Event::Deleted(object)),
        Ok(Line { object, .. }) => sink(Event::Applied(object)),
        Err(error) => sink(Event::Unreadable(format!("{}: {error}", seen.name))),
    })
}

type Listed<T> = (Vec<T>, String, Vec<String>);

async fn list<T: DeserializeOwned>(api: &Api, source: &Source) -> Result<Listed<T>, Failure> {
    let (mut all, mut unreadable, mut more) = (Vec::new(), Vec::new(), String::new());
    loop {
        let next = if more.is_empty() {
            String::new()
        } else {
            format!("&continue={more}")
        };
        let path = format!("{}?limit={PAGE}{next}", source.path);
        let page: List<Raw<T>> = api.get(&path, source.accept_list, LIST_TIMEOUT).await?;
        for item in page.items.into_iter().flatten() {
            match item {
                Raw::Good(item) => all.push(item),
                Raw::Bad(item) => {
                    let name = item.pointer("/metadata/name").and_then(Value::as_str).unwrap_or("?");
                    unreadable.push(format!("{name}: does not look as expected"));
                }
            }
        }
        if page.metadata.more.is_empty() {
            return Ok((all, page.metadata.resource_version, unreadable));
        }
        more = page.metadata.more;
    }
}

/// An item of a list, readable or not.
#[derive(Deserialize)]
#[serde(untagged)]
enum Raw<T> {
    Good(T),
    Bad(Value),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::targets::pod::RawPod;

    fn run(line: &str) -> (Result<bool, Failure>, Option<String>, Vec<String>) {
        let (mut version, mut events) = (Some("1".to_owned()), Vec::new());
        let taken = take(line.as_bytes(), &mut version, &mut |event: Event<RawPod>| {
            events.push(match event {
                Event::Applied(pod) => format!("applied {}", pod.metadata.name),
                Event::Deleted(pod) => format!("deleted {}", pod.metadata.name),
                Event::Unreadable(why) => format!("unreadable {}", why.split(':').next().unwrap_or_default()),
                other => format!("{other:?}"),
            });
            true
        });
        (taken, version, events)
    }

    #[test]
    fn lines_of_a_watch() {
        let (_, version, events) = run(r#"{"type":"ADDED","object":{"metadata":{"name":"a","resourceVersion":"7"}}}"#);
        assert_eq!((version.as_deref(), events), (Some("7"), vec!["applied a".to_owned()]));
        let (_, version, events) = run(r#"{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"9"}}}"#);
        assert_eq!((version.as_deref(), events), (Some("9"), vec!["Alive".to_owned()]));
        let (taken, ..) = run(r#"{"type":"ERROR","object":{"kind":"Status","code":410,"message":"too old"}}"#);
        assert_eq!(taken, Err(Failure::Gone));
        assert_eq!(run("").0, Ok(true));
        assert!(run("{").0.is_err());
    }

    #[test]
    fn lists_with_nothing_and_with_something_odd() {
        let read = |text: &str| {
            serde_json::from_str::<List<Raw<RawPod>>>(text)
                .unwrap()
                .items
                .into_iter()
                .flatten()
                .count()
        };
        assert_eq!(read(r#"{"metadata":{"resourceVersion":"1"},"items":null}"#), 0);
        assert_eq!(
            read(r#"{"metadata":{},"items":[{"metadata":{"name":"a"}},{"spec":{"nodeName":7}}]}"#),
            2
        );
    }

    #[test]
    fn one_bad_object_is_passed_over() {
        let bad =
            r#"{"type":"MODIFIED","object":{"metadata":{"name":"bad","resourceVersion":"8"},"spec":{"nodeName":7}}}"#;
        let (taken, version, events) = run(bad);
        assert_eq!((taken, version.as_deref()), (Ok(true), Some("8")));
        assert_eq!(events, ["unreadable bad"]);
    }
}
