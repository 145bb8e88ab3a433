//! What happened, as the demo saw it from outside.

use std::collections::BTreeMap;

use infer_load::Outcome;
use infer_proto::v1::{Decision, Engine, HistogramWindow, Quantile, Signal, Target, Windows};
use serde::Serialize;

/// A percentile known to lie between two bounds, ms.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Bounds {
    /// Not below.
    pub(crate) low_ms: f64,
    /// Not above; `None` when the engine's last bucket has no bound.
    pub(crate) high_ms: Option<f64>,
    /// Linear in between.
    pub(crate) estimate_ms: f64,
}

impl std::fmt::Display for Bounds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.high_ms {
            Some(high_ms) => write!(f, "{}–{} ms", short(self.low_ms), short(high_ms)),
            None => write!(f, "over {} ms", short(self.low_ms)),
        }
    }
}

/// A number with two digits at least, and no more after the point than say something.
pub(crate) fn short(value: f64) -> String {
    let text = if value >= 20.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.1}")
    };
    text.strip_suffix(".0").map_or(text.clone(), str::to_owned)
}

/// One look at everything.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Point {
    /// Seconds since the start of the demo.
    pub(crate) at_s: f64,
    pub(crate) running: f64,
    pub(crate) waiting: f64,
    /// Held at the front door.
    pub(crate) held: f64,
    pub(crate) desired: u32,
    pub(crate) ready: u32,
    pub(crate) starting: u32,
    pub(crate) draining: u32,
    pub(crate) failed: u32,
    pub(crate) mode: String,
    /// The engines' TTFT over the last seconds, as the decider knows it.
    pub(crate) ttft_p50: Option<Bounds>,
    pub(crate) ttft_p95: Option<Bounds>,
    /// The client's requests.
    pub(crate) sent: u64,
    pub(crate) ok: u64,
    pub(crate) failed_requests: u64,
}

impl Point {
    /// Requests that are anywhere.
    pub(crate) fn load(&self) -> f64 {
        self.running + self.waiting + self.held
    }
}

/// A request, as the client saw it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Answer {
    /// When it was sent, in seconds since the start of the demo.
    pub(crate) sent_s: f64,
    pub(crate) ttft_ms: Option<f64>,
    pub(crate) e2e_ms: f64,
    pub(crate) replica: Option<String>,
    /// Why it failed, if it did.
    pub(crate) failure: Option<String>,
}

/// A part of the scenario.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Phase {
    pub(crate) name: String,
    pub(crate) start_s: f64,
}

/// A replica and what its agent said of it.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Replica {
    /// Kind, version and front end, as far as they are known.
    pub(crate) engine: String,
    pub(crate) startup_ms: Option<u64>,
    pub(crate) first_seen_s: f64,
    pub(crate) last_seen_s: f64,
}

/// All of it.
#[derive(Debug, Default)]
pub(crate) struct Recording {
    /// Wall clock at the start, by which decisions are placed.
    pub(crate) epoch_unix_ms: i64,
    pub(crate) points: Vec<Point>,
    pub(crate) decisions: Vec<Decision>,
    pub(crate) phases: Vec<Phase>,
    pub(crate) answers: Vec<Answer>,
    /// By replica and address: a replica that goes and comes again is another one.
    pub(crate) replicas: BTreeMap<(String, String), Replica>,
    pub(crate) sent: u64,
    /// When the load ended and the counts were compared.
    pub(crate) end_s: f64,
}

impl Recording {
    /// Takes a finished request; `base_s` is when its load began.
    pub(crate) fn take_answer(&mut self, outcome: &Outcome, base_s: f64) {
        self.answers.push(Answer {
            sent_s: base_s + outcome.start_s,
            ttft_ms: outcome.ttft_ms,
            e2e_ms: outcome.e2e_ms,
            replica: outcome.replica.clone(),
            failure: outcome
                .failure
                .as_ref()
                .map(|failure| format!("{}: {}", failure.class, failure.message)),
        });
    }

    /// When a decision was made, in seconds since the start: the decider's wall clock is this machine's.
    pub(crate) fn at_s(&self, decision: &Decision) -> f64 {
        (decision.unix_ms - self.epoch_unix_ms) as f64 / 1e3
    }

    /// Answered in full, and failed.
    pub(crate) fn counts(&self) -> (u64, u64) {
        let failed = self.answers.iter().filter(|answer| answer.failure.is_some()).count() as u64;
        (self.answers.len() as u64 - failed, failed)
    }

    /// Takes what is to be known of the replicas.
    pub(crate) fn take_replicas(&mut self, target: &Target, at_s: f64) {
        for pod in &target.pods {
            let key = (pod.name.clone(), pod.endpoint.clone());
            let fresh = Replica {
                first_seen_s: at_s,
                ..Replica::default()
            };
            let replica = self.replicas.entry(key).or_insert(fresh);
            replica.last_seen_s = at_s;
            if let Some(engine) = &pod.engine {
                replica.engine = engine_words(engine);
            }
            replica.startup_ms = pod.startup_ms.or(replica.startup_ms);
        }
    }

    /// A point from what the decider says.
    pub(crate) fn point(&self, target: &Target, windows: Option<&Windows>, at_s: f64) -> Point {
        let replicas = target.replicas.unwrap_or_default();
        let gauges = || target.pods.iter().filter_map(|pod| pod.gauges);
        let ttft = windows.and_then(|windows| histogram(windows, Signal::Ttft));
        let (ok, failed_requests) = self.counts();
        Point {
            at_s,
            running: gauges().filter_map(|gauges| gauges.running).sum(),
            waiting: gauges().filter_map(|gauges| gauges.waiting).sum(),
            held: target.gateway_waiting.unwrap_or_default(),
            desired: replicas.desired,
            ready: replicas.ready,
            starting: replicas.starting,
            draining: replicas.draining,
            failed: replicas.failed,
            mode: target.mode.clone(),
            ttft_p50: ttft.and_then(|ttft| bounds(ttft, 0.5)),
            ttft_p95: ttft.and_then(|ttft| bounds(ttft, 0.95)),
            sent: self.sent,
            ok,
            failed_requests,
        }
    }

    /// When a phase began, and when the next one did.
    pub(crate) fn phase_span(&self, name: &str) -> Option<(f64, f64)> {
        let index = self.phases.iter().position(|phase| phase.name == name)?;
        let end_s = self.phases.get(index + 1).map_or(self.end_s, |next| next.start_s);
        Some((self.phases.get(index)?.start_s, end_s))
    }

    /// The client's TTFT percentile over requests whose first token came in `from_s..to_s`; nearest rank.
    pub(crate) fn client_ttft_ms(&self, from_s: f64, to_s: f64, quantile: f64) -> Option<f64> {
        let first_token = |answer: &&Answer| {
            answer
                .ttft_ms
                .is_some_and(|ttft_ms| (from_s..to_s).contains(&(answer.sent_s + ttft_ms / 1e3)))
        };
        let mut sorted: Vec<_> = self
            .answers
            .iter()
            .filter(first_token)
            .filter_map(|answer| answer.ttft_ms)
            .collect();
        sorted.sort_by(f64::total_cmp);
        let rank = (quantile * sorted.len() as f64).ceil().max(1.0) as usize;
        sorted.get(rank - 1).copied()
    }
}

/// "vllm 0.32 (python front end)".
fn engine_words(engine: &Engine) -> String {
    let front_end = if engine.front_end.is_empty() {
        String::new()
    } else {
        format!(" ({} front end)", engine.front_end)
    };
    format!("{} {}{front_end}", engine.name, engine.version)
        .trim()
        .to_owned()
}

/// The window's histogram of a signal.
pub(crate) fn histogram(windows: &Windows, signal: Signal) -> Option<&HistogramWindow> {
    windows.histograms.iter().find(|histogram| histogram.signal() == signal)
}

/// A percentile of a histogram.
pub(crate) fn bounds(histogram: &HistogramWindow, quantile: f64) -> Option<Bounds> {
    let of = |found: &Quantile| Bounds {
        low_ms: found.low_ms,
        high_ms: found.high_ms,
        estimate_ms: found.estimate_ms,
    };
    histogram
        .quantiles
        .iter()
        .find(|found| (found.q - quantile).abs() < 1e-9)
        .map(of)
}

/// A counter of a window.
pub(crate) fn counter(windows: &Windows, name: &str) -> u64 {
    windows
        .counters
        .iter()
        .find(|counter| counter.name == name)
        .map_or(0, |counter| counter.count)
}
