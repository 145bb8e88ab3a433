//! What the demo says of itself, and whether it was so.

use infer_proto::v1::{Decision, Status, Windows};
use serde::Serialize;

use super::recording::{Recording, bounds, counter, histogram};

/// A sentence that held or did not.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Claim {
    /// The sentence.
    pub(crate) claim: String,
    /// Whether it held.
    pub(crate) held: bool,
    /// What was seen, either way.
    pub(crate) seen: String,
}

/// A claim with what was seen.
pub(crate) fn claim(claim: impl Into<String>, held: bool, seen: impl Into<String>) -> Claim {
    Claim {
        claim: claim.into(),
        held,
        seen: seen.into(),
    }
}

fn change(decision: &Decision) -> String {
    format!(
        "#{} {} → {}",
        decision.id, decision.replicas_before, decision.replicas_after
    )
}

/// At least once in panic, and no decision in panic took a replica away.
pub(crate) fn panic_never_shrank(recording: &Recording) -> Vec<Claim> {
    let panicked: Vec<_> = recording
        .decisions
        .iter()
        .filter(|decision| decision.mode == "panic")
        .collect();
    let grew = panicked
        .iter()
        .filter(|decision| decision.replicas_after > decision.replicas_before)
        .count();
    let shrank: Vec<_> = panicked
        .iter()
        .filter(|decision| decision.replicas_after < decision.replicas_before)
        .map(|it| change(it))
        .collect();
    let seen = match shrank.len() {
        0 => format!("none of {} decisions in panic", panicked.len()),
        _ => shrank.join(", "),
    };
    vec![
        claim(
            "the burst caused panic",
            grew > 0,
            format!("decisions in panic that added replicas: {grew}"),
        ),
        claim(
            "nothing shrank in panic",
            !panicked.is_empty() && shrank.is_empty(),
            seen,
        ),
    ]
}

/// No request failed.
pub(crate) fn no_failures(recording: &Recording) -> Claim {
    let (ok, failed) = recording.counts();
    let first = recording.answers.iter().find_map(|answer| answer.failure.as_deref());
    let seen = match first {
        None => format!("{ok} of {} answered in full", recording.sent),
        Some(why) => format!("{failed} of {} failed, such as {why}", recording.sent),
    };
    claim("no request failed", failed == 0 && ok == recording.sent && ok > 0, seen)
}

/// Nothing was counted twice or lost on the way.
pub(crate) fn samples_whole(status: &Status) -> Claim {
    let (duplicate, missing) = (status.samples_duplicate, status.samples_missing);
    let seen = format!(
        "{} samples, {duplicate} twice, {missing} missing",
        status.samples_applied
    );
    claim(
        "every sample counted once",
        duplicate == 0 && missing == 0 && status.samples_applied > 0,
        seen,
    )
}

/// The engines' count, through agents and windows, is the client's.
pub(crate) fn counts_agree(recording: &Recording, windows: &Windows) -> Claim {
    let (ok, _) = recording.counts();
    let counted = counter(windows, "requests");
    let seen = format!("decider {counted}, client {ok}");
    claim(
        "the decider counted the requests that the client completed",
        counted == ok,
        seen,
    )
}

/// The client cannot have seen a first token earlier than the engine made it, so its percentile is not below the
/// decider's lower bound.
pub(crate) fn bounds_hold(recording: &Recording, windows: &Windows) -> Claim {
    let words = "the client's TTFT is nowhere below what the decider's bounds allow";
    let ttft = histogram(windows, infer_proto::v1::Signal::Ttft);
    let mut held = ttft.is_some();
    let mut seen = Vec::new();
    for quantile in super::stage::QUANTILES {
        let engines = ttft.and_then(|ttft| bounds(ttft, quantile));
        let client_ms = recording.client_ttft_ms(0.0, f64::INFINITY, quantile);
        let (Some(engines), Some(client_ms)) = (engines, client_ms) else {
            held = false;
            continue;
        };
        held &= client_ms >= engines.low_ms;
        seen.push(format!(
            "p{:.0}: engines {engines}, client {client_ms:.0} ms",
            quantile * 100.0
        ));
    }
    claim(
        words,
        held,
        if seen.is_empty() {
            "no TTFT at all".to_owned()
        } else {
            seen.join("; ")
        },
    )
}
