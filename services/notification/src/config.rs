//! Settings of the notification service; `notification --help` documents them.

use std::net::SocketAddr;

use bootstrap::{
    process::Settings,
    settings::{Addresses, BrokerSettings, DatabaseSettings},
};
use clap::Parser;

/// The notification service of Sagacity: tells customers what became of their orders.
#[derive(Parser, Clone, Debug)]
#[command(version)]
pub struct Config {
    /// Where gRPC listens
    #[arg(long, env = "LISTEN", default_value = "127.0.0.1:50054")]
    pub listen: SocketAddr,
    /// Where health and metrics listen
    #[arg(long, env = "ADMIN_LISTEN", default_value = "127.0.0.1:9084")]
    pub admin_listen: SocketAddr,
    #[command(flatten)]
    #[expect(missing_docs, reason = "documented by its type")]
    pub database: DatabaseSettings,
    #[command(flatten)]
    #[expect(missing_docs, reason = "documented by its type")]
    pub broker: BrokerSettings,
}

impl Settings for Config {
    fn addresses(&self) -> Addresses {
        Addresses { listen: self.listen, admin: self.admin_listen }
    }
}
