//! Builds the programs of this workspace with the cargo that built the running program.

use std::path::Path;

use anyhow::{Context as _, ensure};
use tokio::process::Command;

/// Cargo with the environment of the user's shell. `cargo run` and `cargo test` set variables
/// about the package that they run. Build scripts that read those would run again, and everything
/// that depends on them would be compiled a second time.
pub fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| {
            let of_package = ["CARGO_PKG_", "CARGO_MANIFEST_", "OUT_DIR"];
            of_package.iter().any(|prefix| name.starts_with(prefix))
        }) {
            cargo.env_remove(name);
        }
    }
    cargo.current_dir(env!("CARGO_MANIFEST_DIR"));
    cargo
}

/// Builds every program of the workspace into `directory`, which is `target/debug` or
/// `target/release`.
pub async fn build(directory: &Path, arguments: &[&str]) -> anyhow::Result<()> {
    let mut cargo = cargo();
    cargo
        .args(["build", "--workspace", "--bins", "--locked"])
        .args(arguments);
    if directory.ends_with("release") {
        cargo.arg("--release");
    }
    // Ctrl-C during the build must end the compilers, too.
    let built = cargo
        .kill_on_drop(true)
        .status()
        .await
        .context("run cargo build")?;
    ensure!(
        built.success(),
        "the programs could not be built; cargo has printed the reason above"
    );
    Ok(())
}
