//! Tests of the documents as an operator meets them: text in, documents or messages out.

#![allow(clippy::expect_used)]

mod bad;
mod crds;
mod good;
mod manifests;
mod resolve;
mod roundtrip;
mod schemas;
