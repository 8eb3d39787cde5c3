//! Settings of the inventory service; `inventory --help` documents them.

use bootstrap::settings::{Common, Settings};
use chassis::{ServiceSettings, Task};
use clap::Parser;

/// The inventory service of Sagacity: knows products, prices and stock, reserves stock for orders
#[derive(Parser, Clone, Debug)]
#[command(version)]
pub struct Config {
    #[command(flatten)]
    pub service: ServiceSettings<50053, 9083>,
    /// Units of each product in the seed catalogue; applied when the database is first created
    #[arg(long, env = "INITIAL_STOCK", default_value_t = 1_000_000, value_parser = clap::value_parser!(i64).range(0..))]
    pub initial_stock: i64,
    /// Run this task instead of the service
    #[command(subcommand)]
    pub task: Option<Task>,
}

impl Settings for Config {
    fn common(&self) -> Common {
        self.service.common(self.task.as_ref())
    }

    fn validate(&self) -> Result<(), String> {
        self.service.validate()
    }
}
