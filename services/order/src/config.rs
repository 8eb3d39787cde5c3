//! Settings of the order service; `order --help` documents them.

use std::time::Duration;

use bootstrap::settings::{Common, Settings, service_urls};
use chassis::ServiceSettings;
use clap::{Parser, Subcommand};

/// The order service of Sagacity: accepts orders and sees them to their end
#[derive(Parser, Clone, Debug)]
#[command(version)]
pub struct Config {
    #[command(flatten)]
    pub service: ServiceSettings<50051, 9081>,
    /// Address of the inventory service, which knows the prices
    #[arg(long, env = "INVENTORY_URL", default_value = "http://127.0.0.1:50053", value_parser = service_urls)]
    pub inventory_url: String,
    /// Seconds after which an order that is not confirmed is cancelled
    #[arg(long, env = "ORDER_DEADLINE_SECONDS", default_value_t = 60,
          value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub deadline_seconds: u64,
    /// Run this task instead of the service
    #[command(subcommand)]
    pub task: Option<Task>,
}

#[derive(Subcommand, Clone, Copy, Debug)]
pub enum Task {
    #[command(flatten)]
    Common(chassis::Task),
    /// Folds the event log of every order and compares it with the orders table; fails when they
    /// differ
    Rebuild {
        /// Repair the rows that differ
        #[arg(long)]
        write: bool,
    },
}

impl Config {
    /// How long an order may be in flight.
    pub fn deadline(&self) -> Duration {
        Duration::from_secs(self.deadline_seconds)
    }
}

impl Settings for Config {
    fn common(&self) -> Common {
        self.service.common(self.task.as_ref())
    }

    fn validate(&self) -> Result<(), String> {
        self.service.validate()
    }
}
