//! `sagacity sqlx`: writes what sqlx must know of the databases to check queries without one, or
//! checks that it is up to date. The data lies in `.sqlx` of each crate.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Stdio,
    time::SystemTime,
};

use ::sqlx::{AssertSqlSafe, Executor as _};
use anyhow::{Context as _, bail, ensure};
use clap::Args;
use devstack::test;

/// Write or check.
#[derive(Args, Clone, Debug)]
pub struct Sqlx {
    /// Only compare; exit code 1 when something is stale
    #[arg(long)]
    pub check: bool,
}

/// Crates with queries, and the directories whose migrations their databases have.
const CRATES: [(&str, &str, &[&str]); 5] = [
    ("messaging", "shared/messaging", &["shared/messaging"]),
    (
        "order",
        "services/order",
        &["shared/messaging", "services/order"],
    ),
    (
        "payment",
        "services/payment",
        &["shared/messaging", "services/payment"],
    ),
    (
        "inventory",
        "services/inventory",
        &["shared/messaging", "services/inventory"],
    ),
    (
        "notification",
        "services/notification",
        &["shared/messaging", "services/notification"],
    ),
];

impl Sqlx {
    /// Writes or checks.
    pub async fn run(&self) -> anyhow::Result<()> {
        let root = devstack::workspace();
        let mut stale = Vec::new();
        for (name, directory, migrations) in CRATES {
            let (kept, fresh) = (
                root.join(directory).join(".sqlx"),
                target().join("sqlx").join(name),
            );
            let _absent = std::fs::remove_dir_all(&fresh);
            std::fs::create_dir_all(&fresh)?;
            ask(root, name, directory, migrations, &fresh).await?;
            let (before, after) = (files(&kept)?, files(&fresh)?);
            ensure!(
                !after.is_empty(),
                "{name} has no queries: was it checked at all?"
            );
            if before == after {
                continue;
            }
            stale.push(name);
            if !self.check {
                let _absent = std::fs::remove_dir_all(&kept);
                std::fs::create_dir_all(&kept)?;
                for (file, text) in after {
                    std::fs::write(kept.join(file), text)?;
                }
            }
        }
        match (self.check, stale.is_empty()) {
            (_, true) => println!("query data is up to date"),
            (false, false) => println!("wrote query data of {}", stale.join(", ")),
            (true, false) => bail!(
                "query data of {} is stale: run `cargo sagacity sqlx`",
                stale.join(", ")
            ),
        }
        Ok(())
    }
}

/// Lets the macros of one crate ask a migrated database and write down the answers.
async fn ask(
    root: &Path,
    name: &str,
    directory: &str,
    migrations: &[&str],
    answers: &Path,
) -> anyhow::Result<()> {
    let (pool, url) = test::database(&[]).await?;
    for migrated in migrations {
        for text in files(&root.join(migrated).join("migrations"))?.into_values() {
            pool.execute(AssertSqlSafe(text))
                .await
                .with_context(|| format!("migrations of {migrated}"))?;
        }
    }
    // What it depends on first: those queries belong to other crates and must not be asked with it.
    check(name, &[]).await?;
    // The macros run only when the crate is compiled.
    let source = std::fs::File::options()
        .append(true)
        .open(root.join(directory).join("src/lib.rs"))?;
    source.set_modified(SystemTime::now())?;
    let answers = answers.to_string_lossy();
    check(
        name,
        &[
            ("SQLX_OFFLINE", "false"),
            ("DATABASE_URL", &url),
            ("SQLX_OFFLINE_DIR", &answers),
        ],
    )
    .await
}

async fn check(name: &str, environment: &[(&str, &str)]) -> anyhow::Result<()> {
    let mut cargo = devstack::programs::cargo();
    cargo.args(["check", "--quiet", "--locked", "--package", name]);
    cargo
        .env("SQLX_OFFLINE", "true")
        .envs(environment.iter().copied());
    // Without its data the crate itself may not compile yet; only the second run counts.
    if environment.is_empty() {
        cargo.stderr(Stdio::null());
    }
    let checked = cargo.status().await.context("run cargo check")?;
    ensure!(
        checked.success() || environment.is_empty(),
        "{name} does not compile against its database"
    );
    Ok(())
}

fn files(directory: &Path) -> anyhow::Result<BTreeMap<String, String>> {
    let entries = std::fs::read_dir(directory).into_iter().flatten();
    let file = |entry: std::io::Result<std::fs::DirEntry>| {
        let entry = entry?;
        Ok((
            entry.file_name().to_string_lossy().into_owned(),
            std::fs::read_to_string(entry.path())?,
        ))
    };
    entries.map(file).collect()
}

fn target() -> PathBuf {
    devstack::tools::target_directory()
}
