//! `sagacity sqlx`: regenerates or checks sqlx's offline query metadata, with which the crates are
//! compiled without a database. It is in the `.sqlx` directory of each crate.

use std::{collections::BTreeMap, path::Path, process::Stdio, time::SystemTime};

use ::sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use anyhow::{Context as _, bail, ensure};
use clap::Args;
use devstack::{programs, test, tools, with_database};

#[derive(Args, Clone, Debug)]
pub(crate) struct Sqlx {
    /// Only compare; exit code 1 when the metadata is stale
    #[arg(long)]
    check: bool,
}

/// A crate with queries.
struct Queries {
    package: &'static str,
    /// Relative to the workspace.
    directory: String,
    /// Directories whose migrations its database has, in this order.
    migrations: Vec<String>,
}

const MESSAGING: &str = "shared/messaging";

fn crates() -> Vec<Queries> {
    let messaging = Queries {
        package: "messaging",
        directory: MESSAGING.to_owned(),
        migrations: vec![MESSAGING.to_owned()],
    };
    let services = with_database().map(|member| {
        let directory = format!("services/{}", member.name);
        Queries {
            package: member.name,
            migrations: vec![MESSAGING.to_owned(), directory.clone()],
            directory,
        }
    });
    [messaging].into_iter().chain(services).collect()
}

impl Sqlx {
    pub(crate) async fn run(&self) -> anyhow::Result<()> {
        let mut stale = Vec::new();
        for queries in crates() {
            if !self.is_current(&queries).await? {
                stale.push(queries.package);
            }
        }
        let names = stale.join(", ");
        match (stale.is_empty(), self.check) {
            (true, _) => println!("the query metadata is up to date"),
            (false, false) => println!("regenerated the query metadata of {names}"),
            (false, true) => {
                bail!("the query metadata of {names} is stale: run `cargo sagacity sqlx`")
            }
        }
        Ok(())
    }

    /// Generates the metadata of one crate and compares it. Replaces what is stale unless this is
    /// only a check.
    async fn is_current(&self, queries: &Queries) -> anyhow::Result<bool> {
        let name = queries.package;
        let kept = devstack::workspace().join(&queries.directory).join(".sqlx");
        let fresh = tools::target_directory().join("sqlx").join(name);
        recreate(&fresh)?;
        generate(queries, &fresh).await?;
        let (before, after) = (files(&kept)?, files(&fresh)?);
        ensure!(!after.is_empty(), "no queries were found in {name}");
        let is_current = before == after;
        if !is_current && !self.check {
            recreate(&kept)?;
            for (file, text) in after {
                std::fs::write(kept.join(file), text)?;
            }
        }
        Ok(is_current)
    }
}

/// Compiles one crate against a migrated database; sqlx's macros write the metadata to `output`.
async fn generate(queries: &Queries, output: &Path) -> anyhow::Result<()> {
    let url = test::empty_database().await?;
    let mut database = PgConnection::connect(&url).await?;
    let root = devstack::workspace();
    for directory in &queries.migrations {
        for text in files(&root.join(directory).join("migrations"))?.into_values() {
            database
                .execute(AssertSqlSafe(text))
                .await
                .with_context(|| format!("migrations of {directory}"))?;
        }
    }
    // Dependencies first and offline: their queries belong to other databases.
    check(queries.package, &[]).await?;
    // The macros run only when cargo compiles the crate again.
    let source = std::fs::File::options()
        .append(true)
        .open(root.join(&queries.directory).join("src/lib.rs"))?;
    source.set_modified(SystemTime::now())?;
    let environment = [
        ("SQLX_OFFLINE", "false"),
        ("DATABASE_URL", &url),
        ("SQLX_OFFLINE_DIR", &output.to_string_lossy()),
    ];
    check(queries.package, &environment).await
}

async fn check(package: &str, environment: &[(&str, &str)]) -> anyhow::Result<()> {
    let mut cargo = programs::cargo();
    cargo
        .args(["check", "--quiet", "--locked", "--package", package])
        .env("SQLX_OFFLINE", "true")
        .envs(environment.iter().copied());
    // Offline the crate itself may not compile yet, because its metadata is stale. Only the run
    // against the database counts.
    let offline = environment.is_empty();
    if offline {
        cargo.stderr(Stdio::null());
    }
    let checked = cargo.status().await.context("run cargo check")?;
    ensure!(
        checked.success() || offline,
        "{package} does not compile against its database; cargo has printed the reason above"
    );
    Ok(())
}

/// Names and contents of the files in a directory, in the order of their names.
fn files(directory: &Path) -> anyhow::Result<BTreeMap<String, String>> {
    let entries = std::fs::read_dir(directory).into_iter().flatten();
    let file = |entry: std::io::Result<std::fs::DirEntry>| {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        Ok((name, std::fs::read_to_string(entry.path())?))
    };
    entries.map(file).collect()
}

fn recreate(directory: &Path) -> anyhow::Result<()> {
    let _absent = std::fs::remove_dir_all(directory);
    std::fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))
}
