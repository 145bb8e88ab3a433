//! The core's laws and scenarios.

mod histogram;
mod rules;
mod scenario;
mod windows;
