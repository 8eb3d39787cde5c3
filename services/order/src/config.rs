//! Settings of the order service; `order --help` documents them.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use bootstrap::settings::{Addresses, BrokerSettings, DatabaseSettings, Settings, service_url};
use clap::{Parser, Subcommand};

/// The order service of Sagacity: accepts orders and sees them through.
#[derive(Parser, Clone, Debug)]
#[command(version)]
pub struct Config {
    /// Where gRPC listens
    #[arg(long, env = "LISTEN", default_value = "127.0.0.1:50051")]
    pub listen: SocketAddr,
    /// Where health and metrics listen
    #[arg(long, env = "ADMIN_LISTEN", default_value = "127.0.0.1:9081")]
    pub admin_listen: SocketAddr,
    #[command(flatten)]
    pub database: DatabaseSettings,
    #[command(flatten)]
    pub broker: BrokerSettings,
    /// Address of the inventory service, which knows the prices
    #[arg(long, env = "INVENTORY_URL", default_value = "http://127.0.0.1:50053", value_parser = service_url)]
    pub inventory_url: String,
    /// Seconds after which an order that is not confirmed is cancelled
    #[arg(long, env = "ORDER_DEADLINE_SECONDS", default_value_t = 60,
          value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub deadline_seconds: u64,
    /// Do this instead of serving
    #[command(subcommand)]
    pub task: Option<Task>,
}

/// What the order binary can do besides serving.
#[derive(Subcommand, Clone, Copy, Debug)]
pub enum Task {
    /// Folds the event log of every order and compares it with the orders table; fails when they
    /// differ
    Rebuild {
        /// Mend the rows that differ
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

const ANY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

impl Settings for Config {
    fn addresses(&self) -> Addresses {
        match self.task {
            None => Addresses {
                listen: self.listen,
                admin: self.admin_listen,
            },
            // A task serves nobody; any free port does, so that it can run beside the service.
            Some(_) => Addresses {
                listen: ANY,
                admin: ANY,
            },
        }
    }
}
