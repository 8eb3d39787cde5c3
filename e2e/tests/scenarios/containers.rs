//! What only containers can show: they are stopped, started and multiplied.

use std::{collections::BTreeSet, time::Duration};

use anyhow::ensure;
use e2e::{Pair, Shop};
use tokio_util::sync::CancellationToken;

use crate::{
    close,
    faults::{flow, place_all_kinds, stop},
};

type Result = anyhow::Result<BTreeSet<Pair>>;

/// `docker compose stop` while orders are under way, then `up`, twice: every order is there and
/// comes to its end.
pub(crate) async fn stopped_and_started() -> Result {
    let mut shop = Shop::open("stopped", &[]).await?;
    let mut placed = place_all_kinds(&shop, 8).await?;
    let containers = shop.site.containers()?;
    containers.stop(&[]).await?;
    containers.up(&["--wait"]).await?;
    containers.up(&["--wait"]).await?;
    placed.extend(place_all_kinds(&shop, 8).await?);
    let list = shop.customer.get("/api/v1/orders?limit=100").await?;
    let listed = list["orders"].as_array().map_or(0, Vec::len);
    ensure!(
        listed == placed.len(),
        "{listed} of {} orders are there",
        placed.len()
    );
    close(shop).await
}

/// Two replicas of order and three of payment share the work, and one of each may be killed.
pub(crate) async fn scaled_out() -> Result {
    let mut shop = Shop::open("scaled", &[]).await?;
    let containers = shop.site.containers()?;
    containers.scale("order", 2).await?;
    containers.scale("payment", 3).await?;
    let end = CancellationToken::new();
    let flows = flow(&shop.customer, &end);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let containers = shop.site.containers()?;
    containers.kill_one("payment").await?;
    containers.kill_one("order").await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let placed = stop(flows, &end).await?;
    ensure!(placed > 20, "only {placed} orders flowed");
    let containers = shop.site.containers()?;
    containers.scale("order", 1).await?;
    containers.scale("payment", 1).await?;
    close(shop).await
}
