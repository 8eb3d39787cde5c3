//! Settings of the gateway; `gateway --help` documents them.

use bootstrap::settings::{BrokerSettings, Common, ProcessSettings, Settings, service_urls};
use clap::Parser;

use crate::{identity::IdentitySettings, limits::LimitSettings};

/// The gateway of Sagacity: the HTTP API in front of the services.
#[derive(Parser, Clone, Debug)]
#[command(version)]
pub struct Config {
    #[command(flatten)]
    pub process: ProcessSettings<8080, 9080>,
    #[command(flatten)]
    pub identity: IdentitySettings,
    #[command(flatten)]
    pub limits: LimitSettings,
    /// NATS, only to notify live streams; everything else works without it
    #[command(flatten)]
    pub broker: BrokerSettings,
    /// Address of the order service, or those of its replicas, separated by commas
    #[arg(
        long,
        env = "ORDER_URL",
        default_value = "http://127.0.0.1:50051",
        value_parser = service_urls
    )]
    pub order_url: String,
    /// Address of the payment service, or those of its replicas, separated by commas
    #[arg(
        long,
        env = "PAYMENT_URL",
        default_value = "http://127.0.0.1:50052",
        value_parser = service_urls
    )]
    pub payment_url: String,
    /// Address of the inventory service, or those of its replicas, separated by commas
    #[arg(
        long,
        env = "INVENTORY_URL",
        default_value = "http://127.0.0.1:50053",
        value_parser = service_urls
    )]
    pub inventory_url: String,
    /// Address of the notification service, or those of its replicas, separated by commas
    #[arg(
        long,
        env = "NOTIFICATION_URL",
        default_value = "http://127.0.0.1:50054",
        value_parser = service_urls
    )]
    pub notification_url: String,
}

impl Settings for Config {
    fn common(&self) -> Common {
        self.process.common()
    }

    fn validate(&self) -> Result<(), String> {
        let environment = self.process.environment;
        self.identity.validate(environment)?;
        self.broker.validate(environment)
    }
}
