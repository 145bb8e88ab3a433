//! Against real engines' captures, against tables of cases, and against arbitrary bytes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

mod captures;
mod deltas;
mod engines;
mod expositions;
mod fast_paths;
mod histograms;
mod mappings;
mod support;
mod truth;
