//! Certificates as clients verify them, and TLS servers as clients find them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr, missing_docs)]

mod authority;
mod openssl;
mod tls;
mod verify;
