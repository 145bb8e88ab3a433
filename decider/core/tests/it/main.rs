//! The core's laws and scenarios.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod histogram;
mod packing;
mod reconfigure;
mod review;
mod roles;
mod rules;
mod scenario;
mod windows;
mod world;
