//! No log of the whole suite has a secret.

use std::{fs, path::Path};

use anyhow::Context as _;

/// What the suite uses: passwords in addresses, the key of the provider, access tokens, API keys,
/// cards.
const SECRETS: [&str; 6] = [
    ":sagacity@",
    "sk_test_sagacity",
    "eyJ",
    "sagacity_",
    "tok_visa",
    "tok_chargeDeclined",
];

/// The secrets that the logs of this process's systems have, each with its file and line. `None`
/// when there are no logs.
pub fn in_logs() -> anyhow::Result<Option<Vec<String>>> {
    let logs = devstack::tools::target_directory().join("test-logs");
    let own = format!("{}-", std::process::id());
    let (mut found, mut files) = (Vec::new(), 0);
    if !logs.exists() {
        return Ok(None);
    }
    for directory in fs::read_dir(&logs)? {
        let directory = directory?;
        if directory.file_name().to_string_lossy().starts_with(&own) {
            for file in fs::read_dir(directory.path())? {
                search(&file?.path(), &mut found)?;
                files += 1;
            }
        }
    }
    Ok((files > 0).then_some(found))
}

fn search(file: &Path, found: &mut Vec<String>) -> anyhow::Result<()> {
    let text = fs::read(file).with_context(|| format!("read {}", file.display()))?;
    for line in String::from_utf8_lossy(&text).lines() {
        if let Some(secret) = SECRETS.iter().find(|secret| line.contains(**secret)) {
            found.push(format!("{}: {secret} in {line}", file.display()));
        }
    }
    Ok(())
}
