//! Compiles `v1/*.proto` without `protoc`: protox parses, tonic-prost-build generates.

use std::path::Path;
use std::{env, fs};

use prost::Message;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "v1/types.proto",
        "v1/participant.proto",
        "v1/outcome.proto",
        "v1/transaction.proto",
        "v1/bank.proto",
        "v1/inventory.proto",
        "v1/admin.proto",
    ];
    println!("cargo:rerun-if-changed=v1");
    let descriptors = protox::compile(files, ["."])?;
    let out = env::var("OUT_DIR")?;
    fs::write(
        Path::new(&out).join("concord_descriptor.bin"),
        descriptors.encode_to_vec(),
    )?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
