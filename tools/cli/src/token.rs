//! `sagacity token`: an access token of the development issuer.

use clap::Args;
use contracts::CustomerId;
use development_issuer::{AUDIENCE, CUSTOMER_SCOPES, issue};

#[derive(Args, Clone, Debug)]
pub(crate) struct Token {
    /// The customer: a UUID, or any other name [default: a new one]
    #[arg(long)]
    customer: Option<String>,
    /// The audience: OIDC_AUDIENCE of the gateway
    #[arg(long, default_value = AUDIENCE)]
    audience: String,
    /// What the token allows, separated by spaces
    #[arg(long, default_value = CUSTOMER_SCOPES)]
    scope: String,
}

impl Token {
    pub(crate) fn issue(&self) -> String {
        let customer = self.customer.clone();
        let customer = customer.unwrap_or_else(|| CustomerId::new().to_string());
        issue(&customer, &self.audience, &self.scope)
    }
}
