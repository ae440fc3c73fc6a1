//! The wire contract of Concord, generated from `v1/*.proto`, and its conversions.
//!
//! [`v1`] is generated code. [`model`] holds the validated types that the daemons work with,
//! [`convert`] is the one place where raw input becomes them, and [`status`] is the one place
//! where a [`concord_core::reason::Reason`] becomes a gRPC status and back. [`local`] is how
//! processes of one host reach each other.

pub mod convert;
pub mod local;
pub mod model;
pub mod status;
pub mod transport;

/// Package `concord.v1`: messages, clients and servers.
#[allow(
    clippy::all,
    clippy::pedantic,
    clippy::unwrap_used,
    missing_debug_implementations
)]
pub mod v1 {
    tonic::include_proto!("concord.v1");

    /// Descriptors of the whole package, for gRPC reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] =
        include_bytes!(concat!(env!("OUT_DIR"), "/concord_descriptor.bin"));
}
