//! The programs of this workspace, built by the cargo that built the one that asks.

use std::path::Path;

use anyhow::{Context as _, ensure};
use tokio::process::Command;

/// Cargo as the user calls it: without what the cargo that runs this program has said about its
/// package. Build scripts that look at those variables would run again, and all that depends on
/// them would be compiled again.
pub fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| {
            name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")
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
    // Whoever gives up waiting does not leave a compiler behind.
    let built = cargo
        .kill_on_drop(true)
        .status()
        .await
        .context("run cargo build")?;
    ensure!(
        built.success(),
        "the programs do not build: cargo says why above"
    );
    Ok(())
}
