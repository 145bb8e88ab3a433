//! The webhooks as an API server meets them: reviews in tables, and the whole over TLS.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr, missing_docs)]

mod http;
mod mutate;
mod review;
mod support;
mod validate;
