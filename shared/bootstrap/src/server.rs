//! Listening: all ports are bound and logged before any work starts.

use std::net::SocketAddr;

use anyhow::Context as _;
use tokio::net::TcpListener;

use crate::settings::Addresses;

/// The bound ports of a process.
#[derive(Debug)]
pub struct Listeners {
    /// The service's own API.
    pub main: TcpListener,
    /// Health and metrics.
    pub admin: TcpListener,
}

impl Listeners {
    /// Binds both.
    ///
    /// # Errors
    /// Names the address that is taken and the setting that changes it.
    pub async fn bind(addresses: Addresses) -> anyhow::Result<Self> {
        let main = bind("LISTEN", addresses.listen).await?;
        let admin = bind("ADMIN_LISTEN", addresses.admin).await?;
        tracing::info!(listen = %main.local_addr()?, admin = %admin.local_addr()?, "listening");
        Ok(Self { main, admin })
    }
}

async fn bind(setting: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address}: set {setting} to another address"))
}
