//! The wire contract between agents, decider and the people who ask it: package `matrixinfer.autoscaler.v1`.
//!
//! Everything here is generated from the `.proto` files beside it, which carry the documentation.

/// Package `matrixinfer.autoscaler.v1`.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod v1 {
    tonic::include_proto!("matrixinfer.autoscaler.v1");
}

/// The encoded `FileDescriptorSet`, for gRPC server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
