//! One or two captured bodies, explained: what `infer-agent inspect` prints.

use std::fmt::Write;

use infer_proto::v1;
use serde::Serialize;

use crate::{
    delta::{self, Error, Reader, ReaderOptions},
    engine::{Latency, Lora},
    histogram::{Observations, QuantileMs},
    mapping::Mapping,
};

/// What the bodies say. Numbers the engine does not give are left out, never zero.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Inspection {
    /// "vllm", "sglang", or the mapping's name.
    pub engine: String,
    /// As it follows from the families ("`>=0.32`"); may be empty.
    pub version: String,
    /// Served model name; may be empty.
    pub model: String,
    /// Data-parallel engines in the process.
    pub engines: u32,
    /// "python", "rust" or "v0"; empty where there is only one.
    pub front_end: String,
    /// As of the later body.
    pub gauges: Gauges,
    /// Between the bodies; with one body, since the engine started.
    pub deltas: Counters,
    /// Time to first token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttft_ms: Option<Distribution>,
    /// Inter-token latency.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub itl_ms: Option<Distribution>,
    /// Time per output token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tpot_ms: Option<Distribution>,
    /// End to end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub e2e_ms: Option<Distribution>,
    /// In the engine's queue.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue_ms: Option<Distribution>,
    /// LoRA adapters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora: Option<Lora>,
    /// The engine was restarted between the bodies; the deltas are what the new process counted.
    pub engine_restarted: bool,
    /// Histograms whose bounds changed between the bodies; their deltas are empty.
    pub layout_changes: u32,
    /// Lines and values passed over in the later body.
    pub skipped: u32,
    /// Samples of known meaning in the later body.
    pub samples: usize,
}

/// See the protocol's `Gauges`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Gauges {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub running: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waiting: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kv_usage: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kv_capacity_tokens: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub in_flight: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub asleep: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_running: Option<u64>,
}

/// See the protocol's `Counters`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Counters {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_tokens: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_tokens_cached: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation_tokens: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests_failed: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests_rejected: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preemptions: Option<u64>,
}

/// A signal's observations, in milliseconds. Sum, mean and quantiles are left out where nothing was observed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Distribution {
    /// Observations.
    pub count: u64,
    /// Their sum, exact.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sum: Option<f64>,
    /// Their mean, exact.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mean: Option<f64>,
    /// The median.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p50: Option<Quantile>,
    /// 90 %.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p90: Option<Quantile>,
    /// 95 %.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p95: Option<Quantile>,
    /// 99 %.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p99: Option<Quantile>,
}

/// The quantile of what the engine observed lies in `[low, high]`, whichever usual definition is meant; see
/// [`Observations::quantile`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Quantile {
    /// Not below this.
    pub low: f64,
    /// Not above this; null when the last bucket has no bound.
    pub high: Option<f64>,
    /// Linear within the bucket.
    pub estimate: f64,
}

impl From<QuantileMs> for Quantile {
    fn from(q: QuantileMs) -> Self {
        Self {
            low: q.low,
            high: q.high,
            estimate: q.estimate,
        }
    }
}

impl From<&Observations> for Distribution {
    fn from(all: &Observations) -> Self {
        let sum = all.sum_us.filter(|_| all.count > 0).map(|us| us / 1e3);
        let quantile = |q| all.quantile(q).map(Quantile::from);
        Self {
            count: all.count,
            sum,
            mean: sum.map(|sum| sum / all.count as f64),
            p50: quantile(0.5),
            p90: quantile(0.9),
            p95: quantile(0.95),
            p99: quantile(0.99),
        }
    }
}

/// Reads `after`, and counts from `before` where there is one, else from the engine's start.
pub fn inspect(after: &[u8], before: Option<&[u8]>, mapping: Option<Mapping>) -> Result<Inspection, Error> {
    let mut reader = Reader::new(ReaderOptions { mapping });
    match before {
        Some(before) => {
            reader.advance_raw(before)?;
        }
        None => reader.expect_restart(),
    }
    let delta = reader.advance_raw(after)?;
    let engine = reader.engine().cloned().unwrap_or_default();
    let v1::Gauges {
        running,
        waiting,
        kv_usage,
        kv_capacity_tokens,
        in_flight,
        asleep,
        max_running,
    } = delta.reading.gauges;
    let counters = delta::counters(&delta.counters);
    let distribution = |latency: Latency| delta.latencies[latency as usize].as_ref().map(Distribution::from);
    Ok(Inspection {
        engine: engine.name,
        version: engine.version,
        model: engine.model,
        engines: engine.engines,
        front_end: engine.front_end,
        gauges: Gauges {
            running,
            waiting,
            kv_usage,
            kv_capacity_tokens,
            in_flight,
            asleep,
            max_running,
        },
        deltas: Counters {
            prompt_tokens: counters.prompt_tokens,
            prompt_tokens_cached: counters.prompt_tokens_cached,
            generation_tokens: counters.generation_tokens,
            requests: counters.requests,
            requests_failed: counters.requests_failed,
            requests_rejected: counters.requests_rejected,
            preemptions: counters.preemptions,
        },
        ttft_ms: distribution(Latency::Ttft),
        itl_ms: distribution(Latency::Itl),
        tpot_ms: distribution(Latency::Tpot),
        e2e_ms: distribution(Latency::E2e),
        queue_ms: distribution(Latency::Queue),
        lora: delta.reading.lora.clone(),
        engine_restarted: delta.engine_restarted,
        layout_changes: delta.layout_changes,
        skipped: delta::skipped(&delta.reading),
        samples: delta.reading.summary.samples,
    })
}

/// The same for people: one line on the engine, its numbers, and a table of latencies.
pub fn render_table(inspection: &Inspection) -> String {
    let i = inspection;
    let mut out = String::new();
    let mut head = vec![i.engine.clone()];
    head.extend(
        [&i.version, &i.front_end]
            .into_iter()
            .filter(|s| !s.is_empty())
            .cloned(),
    );
    head.extend((!i.model.is_empty()).then(|| format!("model {}", i.model)));
    head.extend((i.engines > 1).then(|| format!("{} engines", i.engines)));
    let notes = [
        (i.engine_restarted, "the engine was restarted in between".to_owned()),
        (
            i.layout_changes > 0,
            format!("{} histograms changed their bounds", i.layout_changes),
        ),
        (i.skipped > 0, format!("{} lines or values skipped", i.skipped)),
    ];
    let _ = writeln!(out, "{}", head.join(", "));
    for (_, note) in notes.iter().filter(|(told, _)| *told) {
        let _ = writeln!(out, "note: {note}");
    }

    let g = &i.gauges;
    let whole = |v: Option<u64>| v.map(|v| v.to_string());
    let rows = [
        ("running", g.running.map(|v| v.to_string())),
        ("waiting", g.waiting.map(|v| v.to_string())),
        ("KV cache in use", g.kv_usage.map(|v| format!("{:.1} %", v * 100.0))),
        ("KV cache, tokens", whole(g.kv_capacity_tokens)),
        ("in flight", g.in_flight.map(|v| v.to_string())),
        ("asleep", g.asleep.map(|v| if v { "yes" } else { "no" }.to_owned())),
        ("batch limit", whole(g.max_running)),
        ("prompt tokens", whole(i.deltas.prompt_tokens)),
        ("  of them cached", whole(i.deltas.prompt_tokens_cached)),
        ("generated tokens", whole(i.deltas.generation_tokens)),
        ("requests ended", whole(i.deltas.requests)),
        ("  of them failed", whole(i.deltas.requests_failed)),
        ("requests rejected", whole(i.deltas.requests_rejected)),
        ("preemptions", whole(i.deltas.preemptions)),
    ];
    for (name, value) in rows {
        if let Some(value) = value {
            let _ = writeln!(out, "{name:<18} {value:>10}");
        }
    }
    if let Some(lora) = &i.lora {
        let _ = writeln!(
            out,
            "LoRA running: {}; waiting: {}",
            lora.running.join(" "),
            lora.waiting.join(" ")
        );
    }

    let table = [
        ("TTFT", &i.ttft_ms),
        ("ITL", &i.itl_ms),
        ("TPOT", &i.tpot_ms),
        ("E2E", &i.e2e_ms),
        ("queue", &i.queue_ms),
    ];
    let header = ["ms", "count", "mean", "p50", "p90", "p95", "p99"];
    let mut cells = vec![header.map(str::to_owned).to_vec()];
    for (name, distribution) in table {
        let Some(d) = distribution else { continue };
        let mean = d.mean.map_or("-".to_owned(), number);
        let mut row = vec![name.to_owned(), d.count.to_string(), mean];
        row.extend([d.p50, d.p90, d.p95, d.p99].map(|q| {
            q.map_or("-".to_owned(), |q| {
                format!("{}..{}", number(q.low), q.high.map_or("inf".to_owned(), number))
            })
        }));
        cells.push(row);
    }
    if cells.len() > 1 {
        let _ = writeln!(out);
        let width = |column: usize| cells.iter().map(|row| row[column].len()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..header.len()).map(width).collect();
        for row in &cells {
            let line: Vec<String> = row
                .iter()
                .zip(&widths)
                .enumerate()
                .map(|(column, (cell, &width))| match column {
                    0 => format!("{cell:<width$}"),
                    _ => format!("{cell:>width$}"),
                })
                .collect();
            let _ = writeln!(out, "{}", line.join("  ").trim_end());
        }
    }
    out
}

/// Four significant digits are more than a bucket tells.
fn number(ms: f64) -> String {
    let decimals = if ms >= 1000.0 || ms == ms.trunc() {
        0
    } else if ms >= 10.0 {
        1
    } else {
        2
    };
    format!("{ms:.decimals$}")
}
