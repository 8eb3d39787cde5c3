//! The settings common to all services that take part in the saga.

use api_keys::ApiKeySettings;
use bootstrap::settings::{BrokerSettings, Common, DatabaseSettings, ProcessSettings};
use clap::{Args, Subcommand};

/// Listeners with their default ports, database and broker; for `#[command(flatten)]`.
#[derive(Args, Clone, Debug)]
pub struct ServiceSettings<const PORT: u16, const ADMIN_PORT: u16> {
    /// Listeners, shutdown, environment.
    #[command(flatten)]
    pub process: ProcessSettings<PORT, ADMIN_PORT>,
    /// The service's own database.
    #[command(flatten)]
    pub database: DatabaseSettings,
    /// The broker.
    #[command(flatten)]
    pub broker: BrokerSettings,
    /// Keys of operators, for the admin listener.
    #[command(flatten)]
    pub api_keys: ApiKeySettings,
}

/// What every service can do instead of serving.
#[derive(Subcommand, Clone, Copy, Debug)]
pub enum Task {
    /// Apply the migrations of the database, then end
    Migrate,
}

impl<const PORT: u16, const ADMIN_PORT: u16> ServiceSettings<PORT, ADMIN_PORT> {
    /// For [`Settings::common`](bootstrap::settings::Settings::common). A task serves nothing, and
    /// runs beside the service.
    pub fn common<T>(&self, task: Option<&T>) -> Common {
        let common = self.process.common();
        match task {
            None => common,
            Some(_) => common.on_free_ports(),
        }
    }

    /// For [`Settings::validate`](bootstrap::settings::Settings::validate).
    ///
    /// # Errors
    /// Names the setting and what is expected.
    pub fn validate(&self) -> Result<(), String> {
        let environment = self.process.environment;
        self.database.validate(environment)?;
        self.broker.validate(environment)?;
        self.api_keys.validate()
    }
}
