//! What a run came to.

use crate::event::{Class, Outcome, Progress};
use crate::histogram::{Latency, Percentiles};
use crate::plan::Arrival;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// How many different error messages are kept.
const ERRORS_MAX: usize = 8;
/// How many replicas are told apart; a fleet has fewer, and a broken proxy must not fill the memory.
const REPLICAS_MAX: usize = 1000;
/// A 99th percentile of start lag above which the generator, not the server, shapes the load, in milliseconds.
const LATE_MS: f64 = 50.0;

/// Latency objectives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Slo {
    /// For the time to first token, in milliseconds.
    pub ttft_ms: Option<f64>,
    /// For a request's mean time per output token after the first, in milliseconds.
    pub itl_ms: Option<f64>,
}

/// How many of the requests met the objectives. A request that failed met none.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct SloReport {
    /// What was asked.
    pub objective: Slo,
    /// Share of the requests that met the TTFT objective, 0 to 1.
    pub ttft_attained: Option<f64>,
    /// Share of the requests that met the ITL objective.
    pub itl_attained: Option<f64>,
    /// Share of the requests that met every objective.
    pub attained: f64,
    /// Requests per second that met every objective (goodput).
    pub goodput_rps: f64,
}

/// Numbers of requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Requests {
    /// Whose time came.
    pub planned: u64,
    /// That were sent: the others met the in-flight cap.
    pub sent: u64,
    /// Answered in full.
    pub ok: u64,
    /// Failed, those not sent included.
    pub failed: u64,
    /// The most in flight at once.
    pub in_flight_max: u64,
}

/// Numbers of tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tokens {
    /// Prompt tokens planned.
    pub input_planned: u64,
    /// Output tokens planned.
    pub output_planned: u64,
    /// Prompt tokens of the answered requests, by the server's count where it gave one.
    pub input: u64,
    /// Output tokens received, those of failed requests included.
    pub output: u64,
}

/// Rates over the run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Rates {
    /// Requests per second that the plan wanted.
    pub offered_rps: f64,
    /// Requests per second that were sent while sending.
    pub sent_rps: f64,
    /// Requests per second answered in full, until the last answer.
    pub ok_rps: f64,
    /// Output tokens per second, until the last answer.
    pub output_tokens_per_s: f64,
}

/// What a run came to. TTFT and ITL are of every request that got tokens; TPOT and e2e of those answered in full.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// From start to the last answer, in seconds.
    pub wall_s: f64,
    /// From start until the last request was sent, in seconds.
    pub sending_s: f64,
    /// Whether it was told to stop before the last answer.
    pub interrupted: bool,
    /// Numbers of requests.
    pub requests: Requests,
    /// Failed requests by kind.
    pub failures: BTreeMap<Class, u64>,
    /// Answers by HTTP status.
    pub statuses: BTreeMap<u16, u64>,
    /// Answers by replica, where a proxy named it.
    pub replicas: BTreeMap<String, u64>,
    /// The first few different error messages.
    pub errors: Vec<String>,
    /// Numbers of tokens.
    pub tokens: Tokens,
    /// Rates.
    pub rates: Rates,
    /// Time to first token.
    pub ttft: Percentiles,
    /// Gaps between chunks with tokens.
    pub itl: Percentiles,
    /// Mean time per output token after the first, of each request.
    pub tpot: Percentiles,
    /// Time to the end mark.
    pub e2e: Percentiles,
    /// How late the generator started requests.
    pub start_lag: Percentiles,
    /// Whether the generator was so late that it shaped the load.
    pub generator_late: bool,
    /// Attainment, if objectives were set.
    pub slo: Option<SloReport>,
}

/// Counts as a run goes on.
pub(crate) struct Tally {
    slo: Slo,
    plan_duration_s: Option<f64>,
    last_planned_s: f64,
    requests: Requests,
    tokens: Tokens,
    failures: BTreeMap<Class, u64>,
    statuses: BTreeMap<u16, u64>,
    replicas: BTreeMap<String, u64>,
    errors: Vec<(Class, Option<u16>, String)>,
    ttft: Latency,
    itl: Latency,
    tpot: Latency,
    e2e: Latency,
    start_lag: Latency,
    ttft_met: u64,
    itl_met: u64,
    all_met: u64,
    sending: Duration,
    interrupted: bool,
    /// Whether the interruption came before the end of the plan.
    cut: bool,
}

impl Tally {
    pub(crate) fn new(slo: Slo, plan_duration_s: Option<f64>) -> Self {
        Self {
            slo,
            plan_duration_s,
            last_planned_s: 0.0,
            requests: Requests::default(),
            tokens: Tokens::default(),
            failures: BTreeMap::new(),
            statuses: BTreeMap::new(),
            replicas: BTreeMap::new(),
            errors: Vec::new(),
            ttft: Latency::new(),
            itl: Latency::new(),
            tpot: Latency::new(),
            e2e: Latency::new(),
            start_lag: Latency::new(),
            ttft_met: 0,
            itl_met: 0,
            all_met: 0,
            sending: Duration::ZERO,
            interrupted: false,
            cut: false,
        }
    }

    pub(crate) fn planned(&mut self, arrival: &Arrival) {
        self.requests.planned += 1;
        self.last_planned_s = arrival.at_s;
        self.tokens.input_planned += u64::from(arrival.input_tokens);
        self.tokens.output_planned += u64::from(arrival.output_tokens);
    }

    pub(crate) fn sent(&mut self, in_flight: u64) {
        self.requests.sent += 1;
        self.requests.in_flight_max = self.requests.in_flight_max.max(in_flight);
    }

    pub(crate) fn interrupted(&mut self) {
        self.interrupted = true;
    }

    pub(crate) fn sending_ended(&mut self, elapsed: Duration) {
        self.sending = elapsed;
        self.cut = self.interrupted;
    }

    /// A request whose task broke, so that nothing is known of it.
    pub(crate) fn internal(&mut self, message: String) {
        self.failed(Class::Internal, None, &message);
    }

    fn failed(&mut self, class: Class, status: Option<u16>, message: &str) {
        self.requests.failed += 1;
        *self.failures.entry(class).or_default() += 1;
        // One message of each class and status says enough; the rest is in the record.
        let known = self
            .errors
            .iter()
            .any(|(seen, code, _)| *seen == class && *code == status);
        if !known && self.errors.len() < ERRORS_MAX {
            self.errors.push((class, status, message.to_owned()));
        }
    }

    pub(crate) fn finished(&mut self, outcome: &Outcome) {
        self.tokens.output += u64::from(outcome.completion_tokens);
        if let Some(status) = outcome.status {
            *self.statuses.entry(status).or_default() += 1;
        }
        if let Some(replica) = &outcome.replica
            && (self.replicas.len() < REPLICAS_MAX || self.replicas.contains_key(replica))
        {
            *self.replicas.entry(replica.clone()).or_default() += 1;
        }
        if let Some(ttft_ms) = outcome.ttft_ms {
            self.ttft.record_ms(ttft_ms);
        }
        for pair in outcome.token_ms.windows(2) {
            self.itl.record_ms(f64::from(pair[1] - pair[0]));
        }
        let capped = outcome
            .failure
            .as_ref()
            .is_some_and(|failure| failure.class == Class::InFlightCap);
        if !capped {
            self.start_lag.record_ms(outcome.start_lag_ms());
        }
        match &outcome.failure {
            Some(failure) => self.failed(failure.class, outcome.status, &failure.message),
            None => self.succeeded(outcome),
        }
    }

    fn succeeded(&mut self, outcome: &Outcome) {
        self.requests.ok += 1;
        self.tokens.input += u64::from(outcome.prompt_tokens.unwrap_or(outcome.input_tokens));
        self.e2e.record_ms(outcome.e2e_ms);
        let tpot_ms = outcome.tpot_ms();
        if let Some(tpot_ms) = tpot_ms {
            self.tpot.record_ms(tpot_ms);
        }
        // A request of one token has no gap, so it cannot miss that objective.
        let met =
            |value: Option<f64>, limit: Option<f64>| limit.is_none_or(|limit| value.is_none_or(|value| value <= limit));
        let (ttft_met, itl_met) = (met(outcome.ttft_ms, self.slo.ttft_ms), met(tpot_ms, self.slo.itl_ms));
        self.ttft_met += u64::from(ttft_met);
        self.itl_met += u64::from(itl_met);
        self.all_met += u64::from(ttft_met && itl_met);
    }

    /// How it stands; `ttft` is that of the streams that began in the last interval.
    pub(crate) fn progress(&self, elapsed: Duration, in_flight: u64, ttft: Percentiles) -> Progress {
        let some = |ms: f64| (ttft.count > 0).then_some(ms);
        Progress {
            t_s: elapsed.as_secs_f64(),
            sent: self.requests.sent,
            in_flight,
            ok: self.requests.ok,
            failed: self.requests.failed,
            ttft_p50_ms: some(ttft.p50_ms),
            ttft_p95_ms: some(ttft.p95_ms),
        }
    }

    pub(crate) fn report(self, wall: Duration) -> Report {
        let per_second = |count: u64, seconds: f64| if seconds > 0.0 { count as f64 / seconds } else { 0.0 };
        let (wall_s, sending_s) = (wall.as_secs_f64(), self.sending.as_secs_f64());
        // A plan that was cut offered what it did until then.
        let window_s = match self.plan_duration_s {
            Some(duration_s) if !self.cut => duration_s,
            _ => self.last_planned_s,
        };
        let requests = self.requests;
        let share = |count: u64| {
            if requests.planned == 0 {
                0.0
            } else {
                count as f64 / requests.planned as f64
            }
        };
        let start_lag = self.start_lag.percentiles();
        let slo = (self.slo != Slo::default()).then(|| SloReport {
            objective: self.slo,
            ttft_attained: self.slo.ttft_ms.map(|_| share(self.ttft_met)),
            itl_attained: self.slo.itl_ms.map(|_| share(self.itl_met)),
            attained: share(self.all_met),
            goodput_rps: per_second(self.all_met, wall_s),
        });
        Report {
            wall_s,
            sending_s,
            interrupted: self.interrupted,
            requests,
            failures: self.failures,
            statuses: self.statuses,
            replicas: self.replicas,
            errors: self
                .errors
                .into_iter()
                .map(|(class, _, message)| format!("{class}: {message}"))
                .collect(),
            tokens: self.tokens,
            rates: Rates {
                offered_rps: per_second(requests.planned, window_s),
                sent_rps: per_second(requests.sent, sending_s.max(window_s)),
                ok_rps: per_second(requests.ok, wall_s),
                output_tokens_per_s: per_second(self.tokens.output, wall_s),
            },
            ttft: self.ttft.percentiles(),
            itl: self.itl.percentiles(),
            tpot: self.tpot.percentiles(),
            e2e: self.e2e.percentiles(),
            start_lag,
            generator_late: start_lag.p99_ms > LATE_MS,
            slo,
        }
    }
}
