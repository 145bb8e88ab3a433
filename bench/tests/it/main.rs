//! The benches' results parse and say how to get them again; every bench runs.

#![allow(clippy::unwrap_used)]

mod results;
mod runs;
