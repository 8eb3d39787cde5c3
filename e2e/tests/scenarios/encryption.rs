//! Connections inside the system: nobody gets one without a certificate of its authority.

use std::str::FromStr as _;

use anyhow::{Context as _, ensure};
use async_nats::ConnectOptions;
use e2e::Harness;
use sqlx::{
    Connection as _, PgConnection,
    postgres::{PgConnectOptions, PgSslMode},
};

use crate::{Outcome, close};

/// The passwords are right; the certificate is missing.
pub async fn nothing_inside_is_reached_without_a_certificate(harness: &Harness) -> Outcome {
    let shop = harness.open("encryption", &[]).await?;
    shop.customer.place(&[("SKU-0001", 1)], "tok_visa").await?;
    for (service, url) in &shop.endpoints().databases {
        shop.database(service).await?;
        let plain = PgConnectOptions::from_str(url)?.ssl_mode(PgSslMode::Disable);
        ensure!(
            PgConnection::connect_with(&plain).await.is_err(),
            "the database of {service} takes a connection that is not encrypted"
        );
        let (anonymous, _) = url.split_once('?').context("the URL names a certificate")?;
        let anonymous = format!("{anonymous}?sslmode=require");
        ensure!(
            PgConnection::connect(&anonymous).await.is_err(),
            "the database of {service} takes a connection without a certificate"
        );
    }
    shop.jetstream().await?;
    let nats = &shop.endpoints().nats;
    let (anonymous, directory) = nats
        .split_once("?tls_dir=")
        .context("the URL names a certificate")?;
    // The server is trusted, so that only the certificate of the client is missing.
    let options = ConnectOptions::new().add_root_certificates(format!("{directory}/ca.crt").into());
    ensure!(
        devstack::jetstream::connect(options, anonymous)
            .await
            .is_err(),
        "the broker takes a connection without a certificate"
    );
    close(shop).await
}
