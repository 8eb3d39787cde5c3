//! Settings of the payment service; `payment --help` documents them.

use bootstrap::settings::{Common, Settings, service_url};
use chassis::{ServiceSettings, Task};
use clap::Parser;
use secrecy::{ExposeSecret as _, SecretString};

/// The payment service of Sagacity: charges orders, voids or refunds cancelled ones
#[derive(Parser, Clone, Debug)]
#[command(version)]
pub struct Config {
    #[command(flatten)]
    pub service: ServiceSettings<50052, 9082>,
    /// Address of the payment service provider: psp-sandbox, or that of Stripe
    #[arg(long, env = "PROVIDER_URL", default_value = "http://127.0.0.1:12111", value_parser = service_url)]
    pub provider_url: String,
    /// Secret key of the provider; the sandbox accepts any that starts with sk_test_
    #[arg(
        long,
        env = "PROVIDER_API_KEY",
        value_name = "PROVIDER_API_KEY",
        hide_env_values = true
    )]
    pub provider_api_key: SecretString,
    /// Run this task instead of the service
    #[command(subcommand)]
    pub task: Option<Task>,
}

impl Settings for Config {
    fn common(&self) -> Common {
        self.service.common(self.task.as_ref())
    }

    fn validate(&self) -> Result<(), String> {
        self.service.validate()?;
        let key = self.provider_api_key.expose_secret();
        if !key.starts_with("sk_") && !key.starts_with("rk_") {
            let expected = "expected a secret key of the provider, for example sk_test_sagacity";
            return Err(format!("PROVIDER_API_KEY: {expected} for the sandbox"));
        }
        let environment = self.common().environment;
        environment
            .reject_development_secret(key)
            .map_err(|error| format!("PROVIDER_API_KEY: {error}"))
    }
}
