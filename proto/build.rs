//! Compiles the protocol in Rust (`protox`), so that no system `protoc` is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "proto/phalanx/v1/worker.proto",
        "proto/phalanx/v1/control.proto",
        "proto/phalanx/v1/raft.proto",
    ];
    for file in files {
        println!("cargo::rerun-if-changed={file}");
    }
    let descriptors = protox::compile(files, ["proto"])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
