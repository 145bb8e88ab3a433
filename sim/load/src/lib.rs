//! Open-loop load for servers that speak the OpenAI completions API, with the client's own view of latency.
//!
//! Open loop means that a request starts at its planned time whatever happened to the ones before it, so a slow server
//! meets the same demand as a fast one. How far the generator itself fell behind the plan is measured and reported.
//!
//! * [`Plan`]: when requests arrive and how long they are. From a rate curve ([`rate`]) or a trace file ([`trace`]).
//! * [`run`]: sends a plan to a server, streams the answers, and returns a [`Report`].
//! * [`cli`]: the same behind command-line arguments, as `infersim load`.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use infer_load::{Lengths, Options, Shutdown, rate};
//!
//! let curve = rate::Curve::constant(2.0, 60.0)?.with_burst(rate::Burst { start_s: 20.0, length_s: 10.0, rate_rps: 20.0 })?;
//! let plan = rate::plan(curve, rate::Process::Poisson, Lengths::default(), 1);
//! let options = Options::new("http://127.0.0.1:8000", "my-model");
//! let report = infer_load::run(options, plan, |_event| (), Shutdown::default()).await?;
//! assert_eq!(report.requests.failed, 0);
//! # Ok(())
//! # }
//! ```

pub mod cli;
mod client;
mod event;
mod histogram;
mod lengths;
mod plan;
mod prompt;
mod random;
pub mod rate;
mod report;
mod run;
mod sse;
pub mod trace;

pub use event::{Class, Event, Failure, Outcome, Progress};
pub use histogram::Percentiles;
pub use lengths::{Error as LengthsError, Lengths};
pub use plan::{Arrival, Plan};
pub use prompt::{Api, Prompt};
pub use report::{Rates, Report, Requests, Slo, SloReport, Tokens};
pub use run::{Error, Options, Shutdown, run};
