//! Arrivals from a rate: a curve of requests per second over time, and a process that draws arrivals from it.
//!
//! Arrivals are drawn in "operational time", where the rate is 1, and carried to real time through the inverse of the
//! curve's integral (time rescaling of a renewal process). So every process follows every curve exactly, however sharp
//! its edges: expected arrivals in a window are the area under the curve.

mod curve;

pub use curve::Curve;

use crate::plan::{Arrival, Plan};
use crate::random::{self, Purpose};
use crate::{Lengths, trace::split_numbers};
use std::str::FromStr;

/// The longest plan in seconds, about thirty years: what "without end" means here.
pub const ENDLESS_S: f64 = 1e9;

/// Why a rate, a curve or a process is refused.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// A rate that is not a number in range.
    #[error("rate {0}: expected requests per second, a number from 0 to 1000000")]
    Rate(f64),
    /// A duration that is not a number in range.
    #[error("duration {0}: expected seconds, a number above 0 and at most 1000000000")]
    Duration(f64),
    /// A burst that lies outside the curve.
    #[error("burst at {start_s} s: the plan ends at {end_s} s")]
    BurstOutside {
        /// Start of the burst.
        start_s: f64,
        /// End of the curve.
        end_s: f64,
    },
    /// Stages that overlap or go backwards.
    #[error(
        "stage {start_s}-{end_s}: it must start at or after {previous_end_s}, where the one before ends, and end later than it starts"
    )]
    StageOrder {
        /// Start of the stage.
        start_s: f64,
        /// End of the stage.
        end_s: f64,
        /// End of the stage before it.
        previous_end_s: f64,
    },
    /// No stage at all.
    #[error("no stages: expected START-END:RATE, for example 0-10:2,10-20:20")]
    NoStages,
    /// Text that is not of the expected form.
    #[error("{text:?}: expected {expected}")]
    Form {
        /// What was read.
        text: String,
        /// What would be right.
        expected: &'static str,
    },
}

/// How arrivals are spread at a given rate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Process {
    /// Evenly spaced.
    Constant,
    /// Independent users: exponential gaps.
    Poisson,
    /// Gamma gaps with this coefficient of variation: 1 is Poisson, more is burstier, less is smoother.
    Gamma {
        /// Standard deviation of a gap over its mean.
        cv: f64,
    },
}

impl FromStr for Process {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let form = || Error::Form {
            text: text.into(),
            expected: "constant, poisson or gamma:CV with CV from 0.05 to 20",
        };
        match text {
            "constant" => Ok(Self::Constant),
            "poisson" => Ok(Self::Poisson),
            _ => {
                let cv: f64 = text
                    .strip_prefix("gamma:")
                    .and_then(|cv| cv.parse().ok())
                    .ok_or_else(form)?;
                if (0.05..=20.0).contains(&cv) {
                    Ok(Self::Gamma { cv })
                } else {
                    Err(form())
                }
            }
        }
    }
}

impl Process {
    /// The next gap in operational time; its mean is 1.
    fn gap(self, rng: &mut fastrand::Rng) -> f64 {
        match self {
            Self::Constant => 1.0,
            Self::Poisson => random::exponential(rng),
            Self::Gamma { cv } => {
                let shape = 1.0 / (cv * cv);
                random::gamma(rng, shape) / shape
            }
        }
    }
}

/// A window with its own rate, over whatever the curve says there.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Burst {
    /// Start in seconds.
    pub start_s: f64,
    /// Length in seconds.
    pub length_s: f64,
    /// Requests per second inside it.
    pub rate_rps: f64,
}

impl FromStr for Burst {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let [start_s, length_s, rate_rps] = split_numbers(text, ':').ok_or_else(|| Error::Form {
            text: text.into(),
            expected: "START_S:LENGTH_S:RATE, for example 60:30:20",
        })?;
        Ok(Self {
            start_s,
            length_s,
            rate_rps,
        })
    }
}

/// One stage of a piecewise curve: linear from one rate to the other, or flat when they are equal.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stage {
    /// Start in seconds.
    pub start_s: f64,
    /// End in seconds.
    pub end_s: f64,
    /// Requests per second at its start.
    pub from_rps: f64,
    /// Requests per second at its end.
    pub to_rps: f64,
}

/// Stages as written on a command line: `0-10:2,10-20:2..20,20-30:1`. Between stages nothing arrives.
#[derive(Clone, Debug, PartialEq)]
pub struct Stages(pub Vec<Stage>);

impl FromStr for Stages {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let stage = |part: &str| {
            let form = || Error::Form {
                text: part.into(),
                expected: "START-END:RATE or START-END:FROM..TO, for example 0-10:2",
            };
            let (window, rates) = part.split_once(':').ok_or_else(form)?;
            let [start_s, end_s] = split_numbers(window, '-').ok_or_else(form)?;
            let (from, to) = rates.split_once("..").unwrap_or((rates, rates));
            let rate = |text: &str| text.trim().parse::<f64>().map_err(|_| form());
            Ok(Stage {
                start_s,
                end_s,
                from_rps: rate(from)?,
                to_rps: rate(to)?,
            })
        };
        text.split(',')
            .map(|part| stage(part.trim()))
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

/// A plan that draws its arrivals from a curve. The same seed gives the same plan.
pub fn plan(curve: Curve, process: Process, lengths: Lengths, seed: u64) -> Plan {
    let end_s = curve.end_s();
    let mut gaps = random::stream(seed, Purpose::Arrivals, 0);
    let mut sizes = random::stream(seed, Purpose::Lengths, 0);
    // Even arrivals sit in the middle of their share of the curve, so that a window of N expected arrivals has N.
    let mut reached = if process == Process::Constant { -0.5 } else { 0.0 };
    let mut latest_s = 0.0_f64;
    let arrivals = std::iter::from_fn(move || {
        reached += process.gap(&mut gaps);
        // Rounding must not put an arrival before its predecessor.
        latest_s = latest_s.max(curve.time_of(reached)?);
        let (input_tokens, output_tokens) = lengths.draw(&mut sizes);
        Some(Arrival {
            at_s: latest_s,
            input_tokens,
            output_tokens,
        })
    });
    Plan::new(arrivals, Some(end_s))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(curve: Curve, process: Process) -> Vec<f64> {
        plan(curve, process, Lengths::default(), 5)
            .map(|arrival| arrival.at_s)
            .collect()
    }

    #[test]
    fn constant_arrivals_are_evenly_spaced() {
        assert_eq!(
            times(Curve::constant(2.0, 2.0).unwrap(), Process::Constant),
            [0.25, 0.75, 1.25, 1.75]
        );
    }

    #[test]
    fn curves_have_the_area_they_describe() {
        let cases = [
            (Curve::constant(3.0, 10.0).unwrap(), 30.0),
            (Curve::ramp(0.0, 10.0, 10.0, 15.0).unwrap(), 100.0),
            (Curve::ramp(0.0, 10.0, 10.0, 5.0).unwrap(), 12.5),
            (Curve::diurnal(1.0, 3.0, 20.0, 60.0).unwrap(), 120.0),
            (
                Curve::stages(&"0-10:2,20-30:0..4".parse::<Stages>().unwrap().0).unwrap(),
                40.0,
            ),
        ];
        for (curve, area) in cases {
            assert!((curve.expected(curve.end_s()) - area).abs() < 1e-9, "{curve:?}");
            let count = times(curve.clone(), Process::Constant).len() as f64;
            assert!((count - area).abs() <= 1.0, "{count} for {area}: {curve:?}");
        }
    }

    #[test]
    fn a_burst_replaces_the_rate_inside_it() {
        let burst = "4:2:50".parse().unwrap();
        let curve = Curve::diurnal(1.0, 1.0, 10.0, 10.0).unwrap().with_burst(burst).unwrap();
        assert!((curve.rate_at(3.9) - 1.0).abs() < 1e-9);
        assert!((curve.rate_at(4.0) - 50.0).abs() < 1e-9);
        assert!((curve.rate_at(6.0) - 1.0).abs() < 1e-9);
        assert!((curve.expected(10.0) - 108.0).abs() < 1e-6);
        let inside = times(curve, Process::Constant)
            .into_iter()
            .filter(|t| (4.0..6.0).contains(t))
            .count();
        assert_eq!(inside, 100);
    }

    #[test]
    fn nothing_arrives_between_stages() {
        let curve = Curve::stages(&"0-5:10,15-20:10".parse::<Stages>().unwrap().0).unwrap();
        let times = times(curve, Process::Poisson);
        assert!(times.iter().all(|t| !(5.0..15.0).contains(t)));
        assert!(times.iter().any(|t| *t >= 15.0));
    }

    #[test]
    fn mistakes_are_named() {
        let text = |error: Error| error.to_string();
        assert!(text("1:2".parse::<Burst>().unwrap_err()).contains("START_S:LENGTH_S:RATE"));
        assert!(text("0-10".parse::<Stages>().unwrap_err()).contains("START-END:RATE"));
        assert!(text("gamma:x".parse::<Process>().unwrap_err()).contains("gamma:CV"));
        assert!(text(Curve::constant(-1.0, 5.0).unwrap_err()).contains("rate -1"));
        assert!(text(Curve::constant(1.0, 0.0).unwrap_err()).contains("duration 0"));
        let overlap = "0-10:1,5-20:2".parse::<Stages>().unwrap();
        assert!(text(Curve::stages(&overlap.0).unwrap_err()).contains("at or after 10"));
        let late = Burst {
            start_s: 9.0,
            length_s: 1.0,
            rate_rps: 1.0,
        };
        assert!(text(Curve::constant(1.0, 5.0).unwrap().with_burst(late).unwrap_err()).contains("ends at 5"));
    }
}
