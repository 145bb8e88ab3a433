//! `infersim load`: the arguments, and a run of them with its output.

mod output;
mod source;

use crate::event::Event;
use crate::prompt::{Api, Prompt};
use crate::rate::{Burst, Process, Stages};
use crate::report::Slo;
use crate::run::{Options, Shutdown};
use crate::{plan::Plan, trace};
use anyhow::Context;
use clap::{ArgGroup, Parser, ValueEnum};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Exit code when requests failed.
const EXIT_FAILED: u8 = 1;
/// Exit code for a mistake in the arguments or in a trace.
const EXIT_USAGE: u8 = 2;

/// Send requests on a schedule, whatever the server does, and measure what a client sees.
///
/// The schedule is a rate (--rate, --ramp, --diurnal or --stages, each with any number of --burst) or a trace (--trace).
/// Progress goes to stderr, the report to stdout. Exit code: 0 when every request was answered in full, 1 when one
/// failed (unless --allow-failures), 2 for a mistake in the arguments or the trace.
#[derive(Clone, Debug, Parser)]
#[command(group = ArgGroup::new("schedule").required(true).args(["rate", "ramp", "diurnal", "stages", "trace"]))]
pub struct Args {
    /// Base URL of the server or of a proxy before it
    #[arg(long, default_value = "http://127.0.0.1:8000", value_name = "URL")]
    pub url: String,
    /// Model to ask for
    #[arg(long, value_name = "NAME")]
    pub model: String,
    /// API: completions or chat
    #[arg(long, default_value = "completions", value_name = "API")]
    pub api: Api,
    /// Prompts: words, or ids (token ids, which give exactly the length asked for; completions only)
    #[arg(long, default_value = "words", value_name = "KIND")]
    pub prompt: Prompt,

    /// The same rate all the time, in requests per second
    #[arg(long, value_name = "RATE", help_heading = "Schedule")]
    pub rate: Option<f64>,
    /// From one rate to another within some seconds, then on at that rate
    #[arg(long, value_name = "FROM:TO:SECONDS", help_heading = "Schedule")]
    pub ramp: Option<source::Triple>,
    /// A wave of this period in seconds that starts at the low rate
    #[arg(long, value_name = "LOW:HIGH:PERIOD_S", help_heading = "Schedule")]
    pub diurnal: Option<source::Triple>,
    /// Stages, flat or sloped; nothing arrives between them: 0-10:2,10-20:2..20,25-30:1
    #[arg(long, value_name = "START-END:RATE,...", help_heading = "Schedule")]
    pub stages: Option<Stages>,
    /// Trace file, also compressed with gzip
    #[arg(long, value_name = "FILE", help_heading = "Schedule")]
    pub trace: Option<PathBuf>,
    /// Format of the trace, told from its first line by default: azure, mooncake, burstgpt, servegen or csv
    #[arg(long, value_name = "FORMAT", requires = "trace", help_heading = "Schedule")]
    pub format: Option<trace::Format>,
    /// Another rate for a while; repeatable, the last one counts where they overlap
    #[arg(
        long,
        value_name = "START_S:LENGTH_S:RATE",
        conflicts_with = "trace",
        help_heading = "Schedule"
    )]
    pub burst: Vec<Burst>,
    /// How arrivals spread at a given rate: constant, poisson or gamma:CV (burstier above 1)
    #[arg(long, default_value = "poisson", value_name = "PROCESS", help_heading = "Schedule")]
    pub arrivals: Process,
    /// Length of the schedule in its own seconds
    #[arg(long, value_name = "SECONDS", help_heading = "Schedule")]
    pub duration_s: Option<f64>,
    /// Start of the part of the schedule to play
    #[arg(long, default_value_t = 0.0, value_name = "SECONDS", help_heading = "Schedule")]
    pub from_s: f64,
    /// End of the part of the schedule to play
    #[arg(long, value_name = "SECONDS", help_heading = "Schedule")]
    pub to_s: Option<f64>,
    /// At most so many requests
    #[arg(long, value_name = "COUNT", help_heading = "Schedule")]
    pub limit: Option<usize>,
    /// Compress time: 10 plays ten seconds of the schedule in one
    #[arg(long, default_value_t = 1.0, value_name = "FACTOR", help_heading = "Schedule")]
    pub time_scale: f64,
    /// Seed of arrivals, lengths and prompts
    #[arg(long, default_value_t = 0, value_name = "NUMBER", help_heading = "Schedule")]
    pub seed: u64,

    /// Mean prompt length, for rates
    #[arg(long, default_value_t = 512.0, value_name = "TOKENS", help_heading = "Lengths")]
    pub input_tokens: f64,
    /// Mean output length, for rates
    #[arg(long, default_value_t = 128.0, value_name = "TOKENS", help_heading = "Lengths")]
    pub output_tokens: f64,
    /// Spread of lognormal lengths, for rates: 0 makes all equal, about 1 is usual in production
    #[arg(long, default_value_t = 0.0, value_name = "SIGMA", help_heading = "Lengths")]
    pub length_sigma: f64,
    /// Cut prompts to this length
    #[arg(long, default_value_t = u32::MAX, hide_default_value = true, value_name = "TOKENS", help_heading = "Lengths")]
    pub max_input: u32,
    /// Cut outputs to this length
    #[arg(long, default_value_t = u32::MAX, hide_default_value = true, value_name = "TOKENS", help_heading = "Lengths")]
    pub max_output: u32,

    /// The longest a request may take
    #[arg(long, default_value_t = 600.0, value_name = "SECONDS", help_heading = "Requests")]
    pub timeout_s: f64,
    /// The most requests at once; one that would exceed it is not sent and counts as failed
    #[arg(long, default_value_t = 4096, value_name = "COUNT", help_heading = "Requests")]
    pub max_in_flight: usize,
    /// Sampling temperature
    #[arg(long, default_value_t = 0.0, value_name = "NUMBER", help_heading = "Requests")]
    pub temperature: f64,
    /// Let the model end an answer early, without that being a failure
    #[arg(long, help_heading = "Requests")]
    pub respect_eos: bool,
    /// Another request header; repeatable
    #[arg(long, value_name = "NAME:VALUE", help_heading = "Requests")]
    pub header: Vec<source::Header>,

    /// Form of the report
    #[arg(long, value_enum, default_value_t = Output::Table, help_heading = "Output")]
    pub output: Output,
    /// Write one JSON line for each request into this file
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub record: Option<PathBuf>,
    /// Seconds between lines of progress
    #[arg(long, default_value_t = 2.0, value_name = "SECONDS", help_heading = "Output")]
    pub progress_s: f64,
    /// No progress
    #[arg(long, short, help_heading = "Output")]
    pub quiet: bool,
    /// Objective for the time to first token
    #[arg(long, value_name = "MS", help_heading = "Output")]
    pub slo_ttft_ms: Option<f64>,
    /// Objective for a request's mean time per output token after the first
    #[arg(long, value_name = "MS", help_heading = "Output")]
    pub slo_itl_ms: Option<f64>,
    /// Exit with 0 even if requests failed
    #[arg(long, help_heading = "Output")]
    pub allow_failures: bool,
    /// How long to wait for requests in flight after Ctrl-C; a second Ctrl-C ends the wait
    #[arg(long, default_value_t = 30.0, value_name = "SECONDS", help_heading = "Output")]
    pub drain_s: f64,
}

/// Form of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
}

impl Args {
    /// The schedule that the arguments describe. Reads the trace if there is one.
    ///
    /// # Errors
    /// A number out of range, a combination that makes no sense, or a trace that cannot be used.
    pub fn plan(&self) -> anyhow::Result<Plan> {
        source::plan(self)
    }

    /// The options that the arguments describe.
    ///
    /// # Errors
    /// A duration out of range.
    pub fn options(&self) -> anyhow::Result<Options> {
        let seconds = |name: &str, value: f64| {
            Duration::try_from_secs_f64(value)
                .with_context(|| format!("--{name} {value}: expected seconds, zero or more"))
        };
        Ok(Options {
            api: self.api,
            prompt: self.prompt,
            time_scale: self.time_scale,
            in_flight_max: self.max_in_flight,
            timeout: seconds("timeout-s", self.timeout_s)?,
            drain: seconds("drain-s", self.drain_s)?,
            progress_interval: seconds("progress-s", self.progress_s)?,
            seed: self.seed,
            temperature: self.temperature,
            ignore_eos: !self.respect_eos,
            headers: self
                .header
                .iter()
                .map(|header| (header.name.clone(), header.value.clone()))
                .collect(),
            slo: Slo {
                ttft_ms: self.slo_ttft_ms,
                itl_ms: self.slo_itl_ms,
            },
            ..Options::new(&self.url, &self.model)
        })
    }
}

/// Runs `infersim load` and says how to exit.
///
/// # Errors
/// The report or the record cannot be written. Mistakes in the arguments are told on stderr and give exit code 2.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let prepared = args.options().and_then(|options| Ok((options, args.plan()?)));
    let (options, plan) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => return Ok(usage(&error)),
    };
    let mut recorder = match args.record.as_deref().map(output::Recorder::create).transpose() {
        Ok(recorder) => recorder,
        Err(error) => return Ok(usage(&error)),
    };
    let shutdown = Shutdown::default();
    let signals = tokio::spawn(stop_on_signals(shutdown.clone()));
    let quiet = args.quiet;
    let observer = |event: &Event| {
        if !quiet {
            output::progress(event);
        }
        if let (Event::Finished(outcome), Some(recorder)) = (event, &mut recorder) {
            recorder.record(outcome);
        }
    };
    let result = crate::run(options, plan, observer, shutdown).await;
    signals.abort();
    let report = match result {
        Ok(report) => report,
        Err(error) => return Ok(usage(&error.into())),
    };
    let mut stdout = std::io::stdout().lock();
    match args.output {
        Output::Table => stdout.write_all(output::table(&report).as_bytes()),
        Output::Json => serde_json::to_writer_pretty(&mut stdout, &report)
            .map_err(std::io::Error::from)
            .and_then(|()| stdout.write_all(b"\n")),
    }
    .and_then(|()| stdout.flush())
    .context("the report cannot be written to stdout")?;
    if let Some(recorder) = recorder {
        recorder.finish()?;
    }
    let failed = report.requests.failed > 0 && !args.allow_failures;
    Ok(if failed {
        ExitCode::from(EXIT_FAILED)
    } else {
        ExitCode::SUCCESS
    })
}

fn usage(error: &anyhow::Error) -> ExitCode {
    output::note(&format!("error: {error:#}"));
    ExitCode::from(EXIT_USAGE)
}

async fn stop_on_signals(shutdown: Shutdown) {
    if signal().await.is_ok() {
        output::note("stopping: waiting for requests in flight (Ctrl-C again to give them up)");
        shutdown.stop();
    }
    if signal().await.is_ok() {
        shutdown.abandon();
    }
}

/// Waits for Ctrl-C, or for what a supervisor sends.
async fn signal() -> std::io::Result<()> {
    #[cfg(unix)]
    {
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        tokio::select! {
            result = tokio::signal::ctrl_c() => result,
            _ = terminate.recv() => Ok(()),
        }
    }
    #[cfg(not(unix))]
    tokio::signal::ctrl_c().await
}
