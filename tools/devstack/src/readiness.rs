//! Asks a process whether it is ready. Written by hand, because an HTTP client with TLS would
//! otherwise be compiled into the tests of every service for this one request.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

const TIMEOUT: Duration = Duration::from_secs(10);

/// Succeeds when `/readyz` at `admin` (`http://host:port`) answers 200; else the error holds the
/// answer.
pub(crate) async fn check(admin: &str) -> anyhow::Result<()> {
    let address = admin.trim_start_matches("http://");
    let response = timeout(TIMEOUT, request(address)).await;
    let response = response.with_context(|| format!("{admin}/readyz did not answer in time"))??;
    let status = response.lines().next().unwrap_or_default();
    ensure!(status.contains(" 200 "), "{admin}/readyz: {response}");
    Ok(())
}

async fn request(address: &str) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(address)
        .await
        .with_context(|| format!("connect to {address}"))?;
    // HTTP/1.0: the server closes the connection after the response.
    let request = format!("GET /readyz HTTP/1.0\r\nHost: {address}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut response = String::new();
    stream.read_to_string(&mut response).await?;
    Ok(response)
}
