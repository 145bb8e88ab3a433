//! The supervisor with real processes: the engines are `examples/fake_engine.rs`.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

mod fixture;
mod lifecycle;
mod takeover;
