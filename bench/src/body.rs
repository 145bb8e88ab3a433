//! Expositions that move: what a busy engine says, second after second, for as long as wanted.

use std::{
    collections::HashMap,
    fmt::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::Context as _;
use tokio::time::Instant;

use crate::{
    Setting,
    http::{self, Connection},
    process::{Process, free_port},
};

/// One engine's exposition, extrapolated: counters rise at the rate at which they did between two captures.
///
/// Cumulative buckets stay cumulative: where both captures are, so is every weighted sum of the first and the
/// difference.
#[derive(Debug)]
pub(crate) struct MovingBody {
    lines: Vec<Line>,
    steps: f64,
}

#[derive(Debug)]
enum Line {
    /// As captured.
    Still(String),
    /// Rises for ever.
    Counter { series: String, at: f64, change: f64 },
    /// Goes up and down between the two captures.
    Gauge { series: String, at: f64, change: f64 },
}

fn parts(line: &str) -> Option<(&str, f64)> {
    let (series, value) = line.rsplit_once(' ')?;
    Some((series, value.parse().ok()?))
}

impl MovingBody {
    /// From two captures of one engine that were `steps` steps apart.
    pub(crate) fn new(before: &str, after: &str, steps: u32) -> Self {
        let was: HashMap<&str, f64> = before.lines().filter_map(parts).collect();
        let moving = |line: &str| {
            let (series, value) = parts(line).filter(|_| !line.starts_with('#'))?;
            let at = was.get(series).copied().unwrap_or(0.0);
            let name = series.split('{').next().unwrap_or(series);
            let counts = ["_total", "_bucket", "_count", "_sum"]
                .iter()
                .any(|end| name.ends_with(end));
            let series = series.to_owned();
            match value - at {
                0.0 => None,
                change if counts && change > 0.0 => Some(Line::Counter { series, at, change }),
                _ if counts || name.ends_with("_created") => None,
                change => Some(Line::Gauge { series, at, change }),
            }
        };
        let line = |line: &str| moving(line).unwrap_or_else(|| Line::Still(line.to_owned()));
        MovingBody {
            lines: after.lines().map(line).collect(),
            steps: f64::from(steps.max(1)),
        }
    }

    /// The body at a step.
    pub(crate) fn at(&self, step: u32) -> String {
        let share = f64::from(step) / self.steps;
        let mut out = String::with_capacity(64 << 10);
        for line in &self.lines {
            // Writing to a string does not fail.
            let _ = match line {
                Line::Still(line) => writeln!(out, "{line}"),
                Line::Counter { series, at, change } => {
                    let whole = at.fract() == 0.0 && change.fract() == 0.0;
                    let value = at + change * share;
                    writeln!(out, "{series} {:?}", if whole { value.floor() } else { value })
                }
                Line::Gauge { series, at, change } => {
                    let wave = 1.0 - (share.rem_euclid(2.0) - 1.0).abs();
                    writeln!(out, "{series} {:?}", at + change * wave)
                }
            };
        }
        out
    }

    /// From files written by [`Captures::save`].
    pub(crate) fn load(directory: &Path) -> anyhow::Result<Self> {
        let read = |name| std::fs::read_to_string(directory.join(name)).with_context(|| format!("reading {name}"));
        Ok(Self::new(
            &read("before.prom")?,
            &read("after.prom")?,
            read("steps")?.trim().parse()?,
        ))
    }
}

/// Two captures of one engine.
#[derive(Debug)]
pub(crate) struct Captures {
    /// What was captured, for the report.
    pub(crate) of: String,
    /// The earlier one.
    pub(crate) before: String,
    /// The later one.
    pub(crate) after: String,
    /// Seconds between them.
    pub(crate) steps: u32,
}

impl Captures {
    /// The body that goes on where they ended.
    pub(crate) fn moving(&self) -> MovingBody {
        MovingBody::new(&self.before, &self.after, self.steps)
    }

    /// Writes them where [`MovingBody::load`] finds them.
    pub(crate) fn save(&self, directory: &Path) -> anyhow::Result<()> {
        for (name, text) in [
            ("before.prom", &self.before),
            ("after.prom", &self.after),
            ("steps", &self.steps.to_string()),
        ] {
            std::fs::write(directory.join(name), text)?;
        }
        Ok(())
    }

    /// A capture of real vLLM, where the data shared between projects is at hand.
    pub(crate) fn of_real_engine() -> Option<Captures> {
        let directory = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data/engines"));
        let read = |name| std::fs::read_to_string(directory.join(name)).ok();
        Some(Captures {
            of: "a capture of vLLM 0.32.0".to_owned(),
            before: read("vllm-0.32.0-run1-before.prom")?,
            after: read("vllm-0.32.0-after.prom")?,
            steps: 60,
        })
    }

    /// Starts `infersim engine`, keeps it busy and captures it twice.
    pub(crate) async fn of_stand_in(setting: &Setting) -> anyhow::Result<Captures> {
        let port = free_port()?;
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let mut command = Command::new(setting.binary("infersim")?);
        command.args(["engine", "--profile", "h100-llama-8b", "--port", &port.to_string()]);
        let _engine = Process::start("infersim engine", command.stdout(Stdio::null()).stderr(Stdio::null()))?;
        until_served(address).await?;
        let seconds = setting.either(5, 1);
        let load: Vec<_> = (0..24).map(|at| tokio::spawn(keep_busy(address, at))).collect();
        tokio::time::sleep(Duration::from_secs(2)).await;
        let capture = || async { anyhow::Ok(String::from_utf8(http::request(address, "GET", "/metrics", "").await?)?) };
        let before = capture().await?;
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        let after = capture().await?;
        load.iter().for_each(tokio::task::JoinHandle::abort);
        Ok(Captures {
            of: "infersim engine, vllm flavour".to_owned(),
            before,
            after,
            steps: seconds as u32,
        })
    }
}

/// Waits until an engine answers.
pub(crate) async fn until_served(address: SocketAddr) -> anyhow::Result<()> {
    let began = Instant::now();
    while http::request(address, "GET", "/health", "").await.is_err() {
        anyhow::ensure!(
            began.elapsed() < Duration::from_secs(20),
            "no engine at {address} after 20 s"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// Requests of many lengths, one after the other, for ever.
async fn keep_busy(address: SocketAddr, at: u32) -> anyhow::Result<()> {
    let mut connection = Connection::open(address).await?;
    loop {
        let (prompt, output) = (fastrand::u32(20..2000), fastrand::u32(5..200) + at);
        let body = format!(
            r#"{{"prompt":"{}","max_tokens":{output}}}"#,
            "word ".repeat(prompt as usize)
        );
        connection.exchange("POST", "/v1/completions", &body).await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_rise_and_buckets_stay_cumulative() {
        let before = "# TYPE a counter\na_total 10.0\nh_bucket{le=\"1\"} 1.0\nh_bucket{le=\"+Inf\"} 1.0\nq{x=\"y\"} 0.0\nstill 1.0\n";
        let after = "# TYPE a counter\na_total 13.0\nh_bucket{le=\"1\"} 2.0\nh_bucket{le=\"+Inf\"} 6.0\nq{x=\"y\"} 4.0\nstill 1.0\n";
        let body = MovingBody::new(before, after, 2);
        assert_eq!(body.at(0), before);
        assert_eq!(body.at(2), after);
        let value = |text: &str, series: &str| {
            text.lines()
                .find_map(|line| parts(line).filter(|(name, _)| *name == series))
                .unwrap()
                .1
        };
        for step in 0..100 {
            let (now, next) = (body.at(step), body.at(step + 1));
            assert!(value(&now, "a_total") <= value(&next, "a_total"));
            assert!(value(&now, "h_bucket{le=\"1\"}") <= value(&now, "h_bucket{le=\"+Inf\"}"));
            assert!((0.0..=4.0).contains(&value(&now, "q{x=\"y\"}")));
        }
    }
}
