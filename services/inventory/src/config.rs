//! Settings of the inventory service; `inventory --help` documents them.

use std::net::SocketAddr;

use bootstrap::settings::{Addresses, BrokerSettings, DatabaseSettings, Settings};
use clap::Parser;

/// The inventory service of Sagacity: knows products, prices and stock, and sets stock aside for
/// orders.
#[derive(Parser, Clone, Debug)]
#[command(version)]
pub struct Config {
    /// Where gRPC listens
    #[arg(long, env = "LISTEN", default_value = "127.0.0.1:50053")]
    pub listen: SocketAddr,
    /// Where health and metrics listen
    #[arg(long, env = "ADMIN_LISTEN", default_value = "127.0.0.1:9083")]
    pub admin_listen: SocketAddr,
    #[command(flatten)]
    pub database: DatabaseSettings,
    #[command(flatten)]
    pub broker: BrokerSettings,
    /// Units of each product that the seed catalogue starts with; counts only when the database is
    /// new
    #[arg(long, env = "INITIAL_STOCK", default_value_t = 1_000_000, value_parser = clap::value_parser!(i64).range(0..))]
    pub initial_stock: i64,
}

impl Settings for Config {
    fn addresses(&self) -> Addresses {
        Addresses {
            listen: self.listen,
            admin: self.admin_listen,
        }
    }
}
