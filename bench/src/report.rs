//! A bench's result: a JSON file that says how it came about, and a table.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::Context as _;
use serde::Serialize;

use crate::{
    Setting,
    machine::{self, Machine},
};

/// Beyond this a run on a quiet machine is not one.
const STALL_MS: f64 = 500.0;

/// What is promised of a figure.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Target {
    /// At most this.
    AtMost(f64),
    /// At least this.
    AtLeast(f64),
}

impl Target {
    fn met_by(self, value: f64) -> bool {
        match self {
            Target::AtMost(bound) => value <= bound,
            Target::AtLeast(bound) => value >= bound,
        }
    }
}

/// One measured number.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Figure {
    name: String,
    unit: &'static str,
    /// What is judged.
    value: f64,
    /// Which statistic of the samples `value` is: "median", "p99", "max", "total".
    statistic: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<Target>,
    /// Absent where nothing is promised.
    #[serde(skip_serializing_if = "Option::is_none")]
    met: Option<bool>,
    samples: usize,
    min: f64,
    median: f64,
    p99: f64,
    max: f64,
    #[serde(skip_serializing_if = "String::is_empty")]
    note: String,
}

/// The `q`-quantile by nearest rank of ascending values; NaN without any.
fn quantile(ascending: &[f64], q: f64) -> f64 {
    let rank = (q * ascending.len() as f64).ceil().max(1.0) as usize;
    ascending.get(rank - 1).copied().unwrap_or(f64::NAN)
}

impl Figure {
    fn of(name: impl Into<String>, unit: &'static str, samples: &[f64], statistic: &'static str) -> Self {
        let mut ascending = samples.to_vec();
        ascending.sort_by(f64::total_cmp);
        let (median, p99) = (quantile(&ascending, 0.5), quantile(&ascending, 0.99));
        let max = quantile(&ascending, 1.0);
        let value = match statistic {
            "median" => median,
            "p99" => p99,
            _ => max,
        };
        Figure {
            name: name.into(),
            unit,
            value,
            statistic,
            target: None,
            met: None,
            samples: samples.len(),
            min: quantile(&ascending, 0.0),
            median,
            p99,
            max,
            note: String::new(),
        }
    }

    /// The median of `samples`.
    pub(crate) fn median(name: impl Into<String>, unit: &'static str, samples: &[f64]) -> Self {
        Self::of(name, unit, samples, "median")
    }

    /// The 99th percentile of `samples`, nearest rank.
    pub(crate) fn p99(name: impl Into<String>, unit: &'static str, samples: &[f64]) -> Self {
        Self::of(name, unit, samples, "p99")
    }

    /// The largest of `samples`.
    pub(crate) fn max(name: impl Into<String>, unit: &'static str, samples: &[f64]) -> Self {
        Self::of(name, unit, samples, "max")
    }

    /// One number over the whole run, with the parts it was also measured in, if any.
    pub(crate) fn total(name: impl Into<String>, unit: &'static str, value: f64, parts: &[f64]) -> Self {
        let parts = if parts.is_empty() { &[value][..] } else { parts };
        Figure {
            value,
            ..Self::of(name, unit, parts, "total")
        }
    }

    /// Judged by `target`.
    pub(crate) fn promised(mut self, target: Target) -> Self {
        self.target = Some(target);
        self.met = Some(target.met_by(self.value));
        self
    }

    /// What is judged.
    pub(crate) fn value(&self) -> f64 {
        self.value
    }

    /// With something to know about it.
    pub(crate) fn note(mut self, note: impl Into<String>) -> Self {
        self.note = note.into();
        self
    }
}

/// A bench's result.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    bench: String,
    /// Run this to get it again.
    command: String,
    /// True: a short run that shows that the bench works, not a measurement.
    quick: bool,
    date: String,
    duration_s: f64,
    machine: Machine,
    load_average_before: f64,
    load_average_after: f64,
    /// The longest time for which a thread that wanted to wake up could not: a machine that stood still, or was busy.
    longest_stall_ms: f64,
    build: String,
    versions: BTreeMap<String, String>,
    figures: Vec<Figure>,
    /// What was measured against what, what limits the figures, what was left out.
    notes: Vec<String>,
    /// The same measured on another program in the same run, or why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    peer: Option<String>,
    #[serde(skip)]
    began: std::time::Instant,
    #[serde(skip)]
    stalls: machine::StallWatch,
}

impl Report {
    /// An empty one, dated now.
    pub(crate) fn begin(bench: &str, setting: &Setting) -> Self {
        Report {
            bench: bench.to_owned(),
            command: format!("bench/run {}{bench}", if setting.quick { "--quick " } else { "" }),
            quick: setting.quick,
            date: utc(SystemTime::now()),
            duration_s: 0.0,
            machine: Machine::this(),
            load_average_before: machine::load_average(),
            load_average_after: 0.0,
            longest_stall_ms: 0.0,
            build: setting.build.clone(),
            versions: machine::versions(),
            figures: Vec::new(),
            notes: Vec::new(),
            peer: None,
            began: std::time::Instant::now(),
            stalls: machine::StallWatch::start(),
        }
    }

    /// Adds a figure.
    pub(crate) fn figure(&mut self, figure: Figure) {
        self.figures.push(figure);
    }

    /// Adds a sentence.
    pub(crate) fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    /// Says what a figure was compared with.
    pub(crate) fn peer(&mut self, peer: impl Into<String>) {
        self.peer = Some(peer.into());
    }

    /// Says which version of something took part.
    pub(crate) fn version(&mut self, of: &str, version: impl Into<String>) {
        self.versions.insert(of.to_owned(), version.into());
    }

    /// Nothing more comes.
    pub(crate) fn end(&mut self) {
        self.duration_s = (self.began.elapsed().as_secs_f64() * 10.0).round() / 10.0;
        self.load_average_after = machine::load_average();
        self.longest_stall_ms = self.stalls.longest_ms();
        if self.longest_stall_ms > STALL_MS {
            let stall = number(self.longest_stall_ms);
            self.notes.push(format!(
                "THE MACHINE STOOD STILL for {stall} ms in this run: measure again when it is quiet"
            ));
        }
    }

    /// Writes `<bench>.json`.
    pub(crate) fn write(&self, directory: &Path) -> anyhow::Result<()> {
        let path = directory.join(format!("{}.json", self.bench));
        let json = serde_json::to_string_pretty(self)?;
        std::fs::write(&path, json + "\n").with_context(|| format!("writing {}", path.display()))
    }

    /// For a person.
    pub(crate) fn table(&self) -> String {
        let head = ["", "value", "promised", "", "n", "min", "median", "max"];
        let mut rows = vec![head.map(str::to_owned)];
        for figure in &self.figures {
            let (promised, met) = match (figure.target, figure.met) {
                (Some(Target::AtMost(bound)), Some(met)) => (format!("≤ {bound}"), met),
                (Some(Target::AtLeast(bound)), Some(met)) => (format!("≥ {bound}"), met),
                _ => (String::new(), true),
            };
            let verdict = match (figure.met, met) {
                (None, _) => "",
                (Some(_), true) => "met",
                (Some(_), false) => "MISSED",
            };
            rows.push([
                format!("{} ({})", figure.name, figure.statistic),
                format!("{} {}", number(figure.value), figure.unit),
                promised,
                verdict.to_owned(),
                figure.samples.to_string(),
                number(figure.min),
                number(figure.median),
                number(figure.max),
            ]);
        }
        let widths: Vec<usize> = (0..head.len())
            .map(|at| rows.iter().map(|row| row[at].chars().count()).max().unwrap_or(0))
            .collect();
        let mut out = format!(
            "{}: {}{}\n",
            self.bench,
            self.date,
            if self.quick { " (quick: means little)" } else { "" }
        );
        for row in &rows {
            out.push_str("  ");
            for (at, (cell, width)) in row.iter().zip(&widths).enumerate() {
                let pad = " ".repeat(width - cell.chars().count());
                let cell = if at == 0 || at == 3 {
                    format!("{cell}{pad}  ")
                } else {
                    format!("{pad}{cell}  ")
                };
                out.push_str(&cell);
            }
            out.truncate(out.trim_end().len());
            out.push('\n');
        }
        for note in self.notes.iter().chain(&self.peer) {
            let _ = writeln!(out, "  {note}");
        }
        out
    }
}

/// Four significant digits.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        v if !v.is_finite() => "-".to_owned(),
        v if v >= 1000.0 => format!("{value:.0}"),
        v => format!("{value:.*}", (3.0 - v.log10().floor()).clamp(0.0, 6.0) as usize),
    }
}

/// `2026-01-31T12:00:00Z`, after Hinnant, "chrono-compatible low-level date algorithms".
fn utc(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() as i64;
    let (days, of_day) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let shifted = days + 719_468;
    let (era, of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!(
        "{year}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z",
        of_day / 3600,
        of_day / 60 % 60,
        of_day % 60
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn dates() {
        let at = |s| utc(UNIX_EPOCH + Duration::from_secs(s));
        assert_eq!(at(0), "1970-01-01T00:00:00Z");
        assert_eq!(at(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(at(1_772_323_199), "2026-02-28T23:59:59Z");
    }

    #[test]
    fn statistics_are_by_nearest_rank() {
        let samples: Vec<f64> = (1..=50).map(f64::from).collect();
        let figure = Figure::p99("x", "ms", &samples).promised(Target::AtMost(49.0));
        assert_eq!(
            (figure.min, figure.median, figure.value, figure.max),
            (1.0, 25.0, 50.0, 50.0)
        );
        assert_eq!(figure.met, Some(false));
        assert_eq!(
            Figure::median("x", "MB/s", &samples)
                .promised(Target::AtLeast(25.0))
                .met,
            Some(true)
        );
    }

    #[test]
    fn numbers() {
        assert_eq!(
            [0.0, 0.123_456, 12.345, 1234.5].map(number),
            ["0", "0.1235", "12.35", "1234"]
        );
    }
}
