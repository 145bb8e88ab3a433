//! The decider over real gRPC, with a backend that obeys at once.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod agents;
mod edges;
mod owners;
mod people;
mod plans;
mod review;
mod support;
mod targets;
