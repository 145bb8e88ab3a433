//! What is printed and written.

use crate::event::{Event, Outcome};
use crate::histogram::Percentiles;
use crate::report::Report;
use anyhow::Context;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::path::{Path, PathBuf};

/// A line on stderr. A closed stderr is no reason to stop.
pub(super) fn note(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// A line of progress for the events that have one.
pub(super) fn progress(event: &Event) {
    match event {
        Event::Progress(progress) => {
            let ms = |value: Option<f64>| value.map_or_else(|| "-".into(), |ms| format!("{ms:.0}ms"));
            note(&format!(
                "t={:.1}s sent={} in_flight={} ok={} failed={} ttft_p50={} ttft_p95={}",
                progress.t_s,
                progress.sent,
                progress.in_flight,
                progress.ok,
                progress.failed,
                ms(progress.ttft_p50_ms),
                ms(progress.ttft_p95_ms),
            ));
        }
        Event::SendingEnded { interrupted: false } => note("all sent: waiting for requests in flight"),
        Event::SendingEnded { interrupted: true } | Event::Started { .. } | Event::Finished(_) => {}
    }
}

/// Writes one JSON line a request.
pub(super) struct Recorder {
    file: PathBuf,
    out: BufWriter<File>,
    /// The first error; nothing is written after it.
    error: Option<io::Error>,
}

impl Recorder {
    pub(super) fn create(file: &Path) -> anyhow::Result<Self> {
        let out = File::create(file).with_context(|| format!("{}: cannot be created", file.display()))?;
        Ok(Self {
            file: file.into(),
            out: BufWriter::new(out),
            error: None,
        })
    }

    pub(super) fn record(&mut self, outcome: &Outcome) {
        if self.error.is_none() {
            let written = serde_json::to_writer(&mut self.out, outcome).map_err(io::Error::from);
            self.error = written.and_then(|()| self.out.write_all(b"\n")).err();
        }
    }

    pub(super) fn finish(mut self) -> anyhow::Result<()> {
        let result = self.error.map_or_else(|| self.out.flush(), Err);
        result.with_context(|| format!("{}: cannot be written", self.file.display()))
    }
}

/// The report for people.
pub(super) fn table(report: &Report) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = write_table(&mut text, report);
    text
}

fn write_table(out: &mut String, report: &Report) -> std::fmt::Result {
    let (requests, rates, tokens) = (&report.requests, &report.rates, &report.tokens);
    let interrupted = if report.interrupted { ", interrupted" } else { "" };
    writeln!(
        out,
        "time         {:.1} s, sending {:.1} s{interrupted}",
        report.wall_s, report.sending_s
    )?;
    writeln!(
        out,
        "requests     planned {}  sent {}  ok {}  failed {}  most in flight {}",
        requests.planned, requests.sent, requests.ok, requests.failed, requests.in_flight_max
    )?;
    writeln!(
        out,
        "rates        offered {:.3}/s  sent {:.3}/s  answered {:.3}/s  output {:.1} tokens/s",
        rates.offered_rps, rates.sent_rps, rates.ok_rps, rates.output_tokens_per_s
    )?;
    writeln!(
        out,
        "tokens       planned {} in, {} out  answered {} in, {} out",
        tokens.input_planned, tokens.output_planned, tokens.input, tokens.output
    )?;
    writeln!(out)?;
    writeln!(
        out,
        "{:<12} {:>9} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10}",
        "ms", "count", "mean", "p50", "p90", "p95", "p99", "max"
    )?;
    let rows = [
        ("ttft", &report.ttft),
        ("itl", &report.itl),
        ("tpot", &report.tpot),
        ("e2e", &report.e2e),
        ("start lag", &report.start_lag),
    ];
    for (name, p) in rows {
        write_row(out, name, p)?;
    }
    if let Some(slo) = &report.slo {
        writeln!(out)?;
        let percent = |share: f64| share * 100.0;
        write!(
            out,
            "slo          all {:.2} %  goodput {:.3}/s",
            percent(slo.attained),
            slo.goodput_rps
        )?;
        if let (Some(limit_ms), Some(share)) = (slo.objective.ttft_ms, slo.ttft_attained) {
            write!(out, "  ttft <= {limit_ms} ms {:.2} %", percent(share))?;
        }
        if let (Some(limit_ms), Some(share)) = (slo.objective.itl_ms, slo.itl_attained) {
            write!(out, "  itl <= {limit_ms} ms {:.2} %", percent(share))?;
        }
        writeln!(out)?;
    }
    if !report.failures.is_empty() {
        writeln!(out)?;
        let failures: Vec<_> = report
            .failures
            .iter()
            .map(|(class, count)| format!("{class} {count}"))
            .collect();
        writeln!(out, "failures     {}", failures.join("  "))?;
        for error in &report.errors {
            writeln!(out, "             {error}")?;
        }
    }
    if report.statuses.keys().any(|status| *status != 200) {
        let statuses: Vec<_> = report
            .statuses
            .iter()
            .map(|(status, count)| format!("{status}: {count}"))
            .collect();
        writeln!(out, "statuses     {}", statuses.join("  "))?;
    }
    if !report.replicas.is_empty() {
        let replicas: Vec<_> = report
            .replicas
            .iter()
            .map(|(replica, count)| format!("{replica} {count}"))
            .collect();
        writeln!(out, "replicas     {}", replicas.join("  "))?;
    }
    if report.generator_late {
        writeln!(
            out,
            "warning      the generator started requests late (p99 {:.0} ms): it was short of CPU, so the load was not as planned",
            report.start_lag.p99_ms
        )?;
    }
    Ok(())
}

fn write_row(out: &mut String, name: &str, p: &Percentiles) -> std::fmt::Result {
    writeln!(
        out,
        "{name:<12} {:>9} {:>10.2} {:>10.2} {:>10.2} {:>10.2} {:>10.2} {:>10.2}",
        p.count, p.mean_ms, p.p50_ms, p.p90_ms, p.p95_ms, p.p99_ms, p.max_ms
    )
}
