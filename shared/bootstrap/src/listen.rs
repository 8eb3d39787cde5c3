//! Listening: all ports are bound and logged before any work starts.

use std::net::SocketAddr;

use anyhow::Context as _;
use tokio::net::TcpListener;

/// The bound ports of a process.
#[derive(Debug)]
pub(crate) struct Listeners {
    /// The service's own API.
    pub(crate) main: TcpListener,
    /// Health and metrics.
    pub(crate) admin: TcpListener,
}

impl Listeners {
    /// Binds both. An error names the address and the setting that changes it.
    pub(crate) async fn bind(listen: SocketAddr, admin: SocketAddr) -> anyhow::Result<Self> {
        let main = bind("LISTEN", listen).await?;
        let admin = bind("ADMIN_LISTEN", admin).await?;
        tracing::info!(listen = %main.local_addr()?, admin = %admin.local_addr()?, "listening");
        Ok(Self { main, admin })
    }
}

async fn bind(setting: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    let bound = TcpListener::bind(address).await;
    bound.with_context(|| format!("cannot listen on {address}: set {setting} to another address"))
}
