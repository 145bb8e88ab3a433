//! The generator against a small server, its laws, and the public traces where they are at hand.

// Helpers outside test functions may panic too: all of this is test.
#![allow(clippy::unwrap_used)]

mod laws;
mod server;
mod streams;
mod traces;
