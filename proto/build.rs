//! Generates the contracts with protox, a compiler in Rust: no `protoc` is needed.
use std::path::{Path, PathBuf};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=sagacity");
    let mut files = Vec::new();
    proto_files(Path::new("sagacity"), &mut files)?;
    files.sort();
    tonic_prost_build::configure().compile_fds(protox::compile(&files, ["."])?)?;
    Ok(())
}

fn proto_files(directory: &Path, found: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            proto_files(&path, found)?;
        } else if path
            .extension()
            .is_some_and(|extension| extension == "proto")
        {
            found.push(path);
        }
    }
    Ok(())
}
