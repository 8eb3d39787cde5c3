//! Settings of the payment service; `payment --help` documents them.

use std::net::SocketAddr;

use bootstrap::settings::{
    Addresses, BrokerSettings, DatabaseSettings, Settings, not_of_development, service_url,
};
use clap::Parser;

/// The payment service of Sagacity: charges orders and gives back what must be given back.
#[derive(Parser, Clone, Debug)]
#[command(version)]
pub struct Config {
    /// Where gRPC listens
    #[arg(long, env = "LISTEN", default_value = "127.0.0.1:50052")]
    pub listen: SocketAddr,
    /// Where health and metrics listen
    #[arg(long, env = "ADMIN_LISTEN", default_value = "127.0.0.1:9082")]
    pub admin_listen: SocketAddr,
    #[command(flatten)]
    pub database: DatabaseSettings,
    #[command(flatten)]
    pub broker: BrokerSettings,
    /// Address of the payment service provider: psp-sandbox, or that of Stripe
    #[arg(long, env = "PROVIDER_URL", default_value = "http://127.0.0.1:12111", value_parser = service_url)]
    pub provider_url: String,
    /// Secret key of the provider; the sandbox takes any that starts with sk_test_
    #[arg(long, env = "PROVIDER_API_KEY", value_name = "PROVIDER_API_KEY", hide_env_values = true, value_parser = api_key)]
    pub provider_api_key: ApiKey,
}

/// A secret that does not show in logs.
#[derive(Clone)]
pub struct ApiKey(pub String);

impl std::fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ApiKey(hidden)")
    }
}

fn api_key(text: &str) -> Result<ApiKey, String> {
    not_of_development(text)?;
    match text.starts_with("sk_") || text.starts_with("rk_") {
        true => Ok(ApiKey(text.to_owned())),
        false => Err(
            "expected a secret key of the provider, for example sk_test_sagacity for the sandbox"
                .to_owned(),
        ),
    }
}

impl Settings for Config {
    fn addresses(&self) -> Addresses {
        Addresses {
            listen: self.listen,
            admin: self.admin_listen,
        }
    }
}
