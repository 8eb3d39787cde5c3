//! `sagacity certificates`: what mutual TLS needs on a machine of development.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;

#[derive(Args, Clone, Debug)]
pub(crate) struct Certificates {
    /// Where: a directory for each process, with tls.crt, tls.key and ca.crt. The authority that is
    /// there already goes on, so that processes take the new certificates without a restart
    directory: PathBuf,
    /// Let every user of this machine read the keys, as containers with another user must
    #[arg(long)]
    for_containers: bool,
}

impl Certificates {
    pub(crate) fn issue(&self) -> anyhow::Result<()> {
        let directory = std::path::absolute(&self.directory)
            .with_context(|| format!("find {}", self.directory.display()))?;
        let mode = if self.for_containers { 0o644 } else { 0o600 };
        devstack::Certificates::issue(&directory, mode)?;
        println!(
            "issued certificates for 397 days in {}",
            directory.display()
        );
        Ok(())
    }
}
