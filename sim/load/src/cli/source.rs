//! From arguments to a plan.

use super::Args;
use crate::lengths::Lengths;
use crate::plan::Plan;
use crate::rate::{self, Curve};
use crate::trace::{self, split_numbers};
use anyhow::{Context, ensure};
use std::str::FromStr;

/// Three numbers with colons between them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Triple(pub [f64; 3]);

impl FromStr for Triple {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        split_numbers(text, ':')
            .map(Self)
            .ok_or("expected three numbers with colons between them, for example 1:10:60")
    }
}

/// A request header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
}

impl FromStr for Header {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, value) = text.split_once(':').ok_or("expected NAME:VALUE")?;
        Ok(Self {
            name: name.trim().into(),
            value: value.trim().into(),
        })
    }
}

pub(super) fn plan(args: &Args) -> anyhow::Result<Plan> {
    let from_s = args.from_s;
    ensure!(
        from_s >= 0.0 && from_s.is_finite(),
        "--from-s {from_s}: expected seconds, zero or more"
    );
    let mut to_s = args.to_s.unwrap_or(f64::INFINITY);
    ensure!(
        to_s > from_s,
        "--to-s {to_s}: expected more than --from-s, which is {from_s}"
    );
    let plan = match &args.trace {
        Some(file) => {
            if let Some(duration_s) = args.duration_s {
                ensure!(
                    duration_s > 0.0,
                    "--duration-s {duration_s}: expected more than 0 seconds"
                );
                to_s = to_s.min(from_s + duration_s);
            }
            trace::load(file, args.format)?.into_plan()
        }
        None => {
            let lengths = Lengths::new(args.input_tokens, args.output_tokens, args.length_sigma)?;
            rate::plan(curve(args)?, args.arrivals, lengths, args.seed)
        }
    };
    let whole = from_s == 0.0 && to_s.is_infinite();
    let plan = if whole { plan } else { plan.slice(from_s, to_s) };
    let plan = plan.clamp_tokens(args.max_input, args.max_output);
    Ok(match args.limit {
        Some(count) => plan.limit(count),
        None => plan,
    })
}

fn curve(args: &Args) -> anyhow::Result<Curve> {
    // A rate and a wave have no end of their own: a duration, an end or a count has to give one.
    let endless = || {
        let bounded = args.limit.is_some() || args.to_s.is_some();
        args.duration_s
            .or(bounded.then_some(rate::ENDLESS_S))
            .context("no end: expected --duration-s, --to-s or --limit")
    };
    let mut curve = if let Some(rate_rps) = args.rate {
        Curve::constant(rate_rps, endless()?).context("--rate")?
    } else if let Some(Triple([from_rps, to_rps, ramp_s])) = args.ramp {
        Curve::ramp(from_rps, to_rps, ramp_s, args.duration_s.unwrap_or(ramp_s)).context("--ramp")?
    } else if let Some(Triple([low_rps, high_rps, period_s])) = args.diurnal {
        // Endless waves are made period by period, so they end with the part that is played.
        let duration_s = args
            .duration_s
            .or(args.to_s)
            .context("no end: expected --duration-s or --to-s")?;
        Curve::diurnal(low_rps, high_rps, period_s, duration_s).context("--diurnal")?
    } else {
        let stages = args
            .stages
            .as_ref()
            .context("no schedule: expected --rate, --ramp, --diurnal, --stages or --trace")?;
        let curve = Curve::stages(&stages.0).context("--stages")?;
        match args.duration_s {
            Some(duration_s) => curve.until(duration_s).context("--duration-s")?,
            None => curve,
        }
    };
    for burst in &args.burst {
        curve = curve.with_burst(*burst).context("--burst")?;
    }
    Ok(curve)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn args(rest: &str) -> Result<Args, clap::Error> {
        Args::try_parse_from(["load", "--model", "m"].into_iter().chain(rest.split_whitespace()))
    }

    #[track_caller]
    fn counts(rest: &str, count: usize) {
        let plan = args(rest).unwrap().plan().unwrap();
        assert_eq!(plan.count(), count, "{rest}");
    }

    #[test]
    fn arguments_become_plans() {
        counts("--rate 5 --duration-s 10 --arrivals constant", 50);
        counts("--rate 5 --limit 7", 7);
        counts("--rate 5 --to-s 4 --from-s 2 --arrivals constant", 10);
        counts("--ramp 0:10:10 --arrivals constant", 50);
        counts("--diurnal 1:3:10 --duration-s 20 --arrivals constant", 40);
        counts("--stages 0-10:2,20-30:1 --burst 2:1:10 --arrivals constant", 38);
        let plan = args("--rate 1 --limit 1 --input-tokens 900 --max-input 100 --output-tokens 3")
            .unwrap()
            .plan();
        let arrival = plan.unwrap().next().unwrap();
        assert_eq!((arrival.input_tokens, arrival.output_tokens), (100, 3));
    }

    #[test]
    fn arguments_fit_into_a_subcommand() {
        #[derive(Parser)]
        enum Command {
            Load(Box<Args>),
        }
        let Command::Load(args) =
            Command::try_parse_from(["sim", "load", "--model", "m", "--rate", "2", "--limit", "3"]).unwrap();
        assert_eq!((args.rate, args.limit), (Some(2.0), Some(3)));
        <Command as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn mistakes_are_named() {
        let cases = [
            ("--rate 5", "--duration-s"),
            ("--rate 5 --duration-s 10 --to-s 1 --from-s 2", "--from-s"),
            ("--rate -5 --duration-s 10", "unexpected argument"),
            ("--rate=-5 --duration-s 10", "requests per second"),
            ("--rate 5 --trace x", "cannot be used with"),
            ("--trace x --burst 1:1:1", "cannot be used with"),
            ("--ramp 1:2", "three numbers"),
            ("--duration-s 10", "required"),
            ("--trace absent.csv", "absent.csv"),
            ("--rate 5 --duration-s 5 --burst 9:1:1", "ends at 5 s"),
            ("--rate 5 --duration-s 5 --input-tokens 0", "input of 0 tokens"),
            ("--rate 5 --duration-s 5 --api soap", "completions or chat"),
        ];
        for (rest, words) in cases {
            let error = match args(rest) {
                Err(error) => error.to_string(),
                Ok(args) => format!("{:#}", args.plan().unwrap_err()),
            };
            assert!(error.contains(words), "{rest}: {error}");
        }
    }
}
