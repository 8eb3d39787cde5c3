//! Two builds beside each other, as in a rolling upgrade and its roll-back: the programs of another
//! commit and those of this one.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use devstack::test::System;
use e2e::{Harness, Shop};
use tokio::process::Command;

use crate::{Outcome, close, load::Load};

/// The other build: a commit, or a directory with its programs.
const PREVIOUS: &str = "SAGACITY_PREVIOUS";
/// Orders between two steps.
const SOME: usize = 8;

pub fn previous() -> Option<String> {
    let previous = std::env::var(PREVIOUS).ok();
    previous.filter(|previous| !previous.is_empty())
}

/// A system of the previous build, under load all the time: rolled forward one service after the
/// other, rolled back, and rolled forward again, because the auditor knows the tables of today.
pub async fn two_builds_beside_each_other_lose_no_order(_: &Harness) -> Outcome {
    let today = devstack::test::programs().await?;
    let previous = previous().with_context(|| format!("{PREVIOUS} is not set"))?;
    let previous = programs_of(&previous, &today).await?;
    let system = System {
        programs: Some(&previous),
        ..System::default()
    };
    let mut shop = Harness::open_processes("builds", system).await?;
    let mut load = Load::start(&shop.customer);
    load.advance(SOME).await?;
    for programs in [&today, &previous, &today] {
        roll(&mut shop, &mut load, programs).await?;
    }
    load.stop().await?;
    close(shop).await
}

/// Replaces one service after the other. Each service first runs in both builds at the same time.
async fn roll(shop: &mut Shop, load: &mut Load, programs: &Path) -> anyhow::Result<()> {
    let members = devstack::MEMBERS.iter().filter(|member| !member.stand_in);
    for member in members {
        let stack = shop.deployment.processes()?;
        stack.use_programs(programs);
        stack.add_replica(member.name, &[]).await?;
        load.advance(SOME).await?;
        // The replica is not called by others: it works while the service is replaced.
        let stack = shop.deployment.processes()?;
        stack.stop_service(member.name).await?;
        stack.start_service(member.name)?;
        stack.wait_until_ready(member.name).await?;
        stack.stop_replicas(member.name).await?;
        load.advance(SOME).await?;
    }
    Ok(())
}

/// A directory with the services of another commit. The stand-in for the provider is today's: it is
/// no part of the system.
async fn programs_of(previous: &str, today: &Path) -> anyhow::Result<PathBuf> {
    let given = devstack::workspace().join(previous);
    let built = match given.join("order").is_file() {
        true => given,
        false => build(previous).await?,
    };
    let mixed = target().join("mixed");
    if mixed.exists() {
        std::fs::remove_dir_all(&mixed)?;
    }
    std::fs::create_dir_all(&mixed)?;
    for member in devstack::MEMBERS {
        let directory = if member.stand_in { today } else { &built };
        let link = mixed.join(member.name);
        std::os::unix::fs::symlink(directory.join(member.name), link)?;
    }
    Ok(mixed)
}

fn target() -> PathBuf {
    devstack::tools::target_directory().join("previous")
}

/// Builds the programs of a commit in a tree of its own.
async fn build(commit: &str) -> anyhow::Result<PathBuf> {
    let (tree, output) = (target().join("tree"), target().join("build"));
    let git = |arguments: &[&str]| {
        let mut git = Command::new("git");
        git.args(arguments).arg(&tree);
        git.current_dir(devstack::workspace());
        git
    };
    // It may be left from a run that was killed.
    let mut remove = git(&["worktree", "remove", "--force"]);
    let _not_there = remove.output().await?;
    let mut add = git(&["worktree", "add", "--quiet", "--force", "--detach"]);
    let added = add.arg(commit).output().await?;
    let error = String::from_utf8_lossy(&added.stderr);
    ensure!(added.status.success(), "check out {commit}: {error}");
    let mut cargo = devstack::programs::cargo();
    cargo.args(["build", "--workspace", "--bins", "--locked"]);
    cargo.current_dir(&tree).env("CARGO_TARGET_DIR", &output);
    let built = cargo.status().await?;
    remove.output().await?;
    ensure!(built.success(), "{commit} cannot be built");
    Ok(output.join("debug"))
}
