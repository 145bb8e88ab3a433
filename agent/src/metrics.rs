//! The agent about itself, as Prometheus reads it. What the engine does goes to the decider instead.

use std::fmt::Write as _;

use infer_proto::v1::scrape::Outcome;
use tokio::time::Instant;

use crate::{
    VERSION,
    drain::Answer,
    shared::{Shared, Trouble},
};

/// All of them, in the text format.
pub(crate) fn render(shared: &Shared) -> String {
    let state = shared.state();
    let replay = &state.replay;
    let draining = state.drain.reason(Instant::now()).is_some();
    // Some 3 KB; one allocation.
    let mut text = String::with_capacity(4 << 10);
    let text = &mut text;
    family(text, "infer_agent_info", "gauge", "The version of this agent.");
    value(text, "infer_agent_info", Some(("version", VERSION)), 1);
    family(text, "infer_agent_samples_total", "counter", "Samples made.");
    value(text, "infer_agent_samples_total", None, replay.newest());
    let name = "infer_agent_scrapes_total";
    family(
        text,
        name,
        "counter",
        "Readings of the engine that made a sample, by how they went.",
    );
    for (number, count) in state.scrapes.iter().enumerate().skip(1) {
        let outcome = i32::try_from(number)
            .ok()
            .and_then(|number| Outcome::try_from(number).ok());
        let outcome = outcome.unwrap_or_default().as_str_name().to_ascii_lowercase();
        value(text, name, Some(("outcome", &outcome)), *count);
    }
    let name = "infer_agent_samples_lost_total";
    family(
        text,
        name,
        "counter",
        "Samples that had to make room before any decider had them.",
    );
    value(text, name, None, replay.lost());
    let name = "infer_agent_samples_unacknowledged";
    family(text, name, "gauge", "Samples that no decider has acknowledged yet.");
    value(text, name, None, replay.newest() - replay.acked().min(replay.newest()));
    family(
        text,
        "infer_agent_samples_held",
        "gauge",
        "Samples in the replay buffer.",
    );
    value(text, "infer_agent_samples_held", None, replay.len() as u64);
    family(
        text,
        "infer_agent_connected",
        "gauge",
        "1 while a decider takes the samples.",
    );
    value(text, "infer_agent_connected", None, u64::from(state.connected));
    let name = "infer_agent_connections_total";
    family(text, name, "counter", "Times a decider said Welcome.");
    value(text, name, None, state.connections);
    let name = "infer_agent_connection_failures_total";
    family(
        text,
        name,
        "counter",
        "Connections to a decider that failed or ended, by reason.",
    );
    for trouble in Trouble::ALL {
        value(
            text,
            name,
            Some(("reason", trouble.name())),
            state.troubles[trouble as usize],
        );
    }
    let name = "infer_agent_draining";
    family(text, name, "gauge", "1 while this replica is to get no new requests.");
    value(text, name, None, u64::from(draining));
    let name = "infer_agent_drains_total";
    family(
        text,
        name,
        "counter",
        "Answers to /drain: run dry, no engine there, or out of time.",
    );
    for answer in Answer::ALL {
        value(
            text,
            name,
            Some(("answer", answer.name())),
            state.drain.answered[answer as usize],
        );
    }
    std::mem::take(text)
}

fn family(text: &mut String, name: &str, kind: &str, help: &str) {
    // Writing into a String cannot fail.
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

/// Label values are ours and hold nothing that would need escaping.
fn value(text: &mut String, name: &str, label: Option<(&str, &str)>, value: u64) {
    let _ = match label {
        Some((label, content)) => writeln!(text, "{name}{{{label}=\"{content}\"}} {value}"),
        None => writeln!(text, "{name} {value}"),
    };
}
