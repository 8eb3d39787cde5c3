//! Settings of API keys.

use std::path::Path;

use anyhow::Context as _;
use clap::Args;

use crate::{ApiKeys, read};

const NAME: &str = "API_KEYS_FILE";

/// Where API keys are kept, for `#[command(flatten)]`.
#[derive(Args, Clone, Debug, Default)]
pub struct ApiKeySettings {
    /// File of API keys, which `sagacity api-key` writes; a change takes effect within seconds.
    /// Without it there are no keys, and in production nobody may use the routes of operators on
    /// admin listeners
    #[arg(
        id = "api-keys-file",
        long,
        env = NAME,
        default_value = "",
        hide_default_value = true
    )]
    pub file: String,
}

impl ApiKeySettings {
    /// The file, if there is one.
    pub fn path(&self) -> Option<&Path> {
        Some(&*self.file)
            .filter(|file| !file.is_empty())
            .map(Path::new)
    }

    /// Checks the file.
    ///
    /// # Errors
    /// Names the setting and what is wrong.
    pub fn validate(&self) -> Result<(), String> {
        let keys = self.path().map(read).transpose();
        keys.map(drop).map_err(|error| format!("{NAME}: {error:#}"))
    }

    /// Reads the file, if there is one.
    ///
    /// # Errors
    /// When it cannot be read, or is not valid.
    pub fn open(&self) -> anyhow::Result<Option<ApiKeys>> {
        self.path().map(ApiKeys::open).transpose().context(NAME)
    }
}
