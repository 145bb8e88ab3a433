//! The core's laws and scenarios.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod histogram;
mod review;
mod rules;
mod scenario;
mod windows;
mod world;
