//! A process that stands in for an inference server: the OpenAI-compatible API, the metrics of vLLM or SGLang, failures
//! on demand, all from a calibrated model of continuous batching.
//!
//! * `profile`, `model`, `model_types`: the pure engine, no clock and no I/O; also what a fleet simulation is made of.
//! * `stats`, `http_stats`, `view`: what has been counted.
//! * `exposition`, `vllm`, `vllm_rust`, `sglang`, `sglang_off`, `process`: how it is shown.
//! * `core`: the model driven in real time.
//! * `api`, `handlers`, `levers`, `reply`, `server`, `faults`, `cli`: the process around it.

pub mod api;
pub mod cli;
pub mod core;
pub mod exposition;
pub mod faults;
mod handlers;
pub mod http_stats;
mod levers;
pub mod model;
mod model_types;
mod process;
pub mod profile;
mod reply;
pub mod server;
pub mod sglang;
mod sglang_off;
pub mod stats;
pub mod view;
pub mod vllm;
pub mod vllm_rust;
