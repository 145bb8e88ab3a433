//! The decider over real gRPC, with a backend that obeys at once.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod agents;
mod people;
mod review;
mod support;
