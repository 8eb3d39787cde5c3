//! Settings of the gateway; `gateway --help` documents them.

use std::net::SocketAddr;

use bootstrap::settings::{Addresses, BrokerSettings, Settings, service_url};
use clap::Parser;

/// The gateway of Sagacity: the HTTP API in front of the services.
#[derive(Parser, Clone, Debug)]
#[command(version)]
pub struct Config {
    /// Where the HTTP API listens
    #[arg(long, env = "LISTEN", default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,
    /// Where health and metrics listen
    #[arg(long, env = "ADMIN_LISTEN", default_value = "127.0.0.1:9080")]
    pub admin_listen: SocketAddr,
    /// Only for live order streams; everything else works without
    #[command(flatten)]
    pub broker: BrokerSettings,
    /// Address of the order service
    #[arg(long, env = "ORDER_URL", default_value = "http://127.0.0.1:50051", value_parser = service_url)]
    pub order_url: String,
    /// Address of the payment service
    #[arg(long, env = "PAYMENT_URL", default_value = "http://127.0.0.1:50052", value_parser = service_url)]
    pub payment_url: String,
    /// Address of the inventory service
    #[arg(long, env = "INVENTORY_URL", default_value = "http://127.0.0.1:50053", value_parser = service_url)]
    pub inventory_url: String,
    /// Address of the notification service
    #[arg(long, env = "NOTIFICATION_URL", default_value = "http://127.0.0.1:50054", value_parser = service_url)]
    pub notification_url: String,
}

impl Settings for Config {
    fn addresses(&self) -> Addresses {
        Addresses {
            listen: self.listen,
            admin: self.admin_listen,
        }
    }
}
