//! What only containers can show: stopping, starting and scaling them.

use anyhow::ensure;
use devstack::test::wait_for;
use e2e::{Harness, docker};

use crate::{Outcome, close, faults::place_all_kinds, load::Load};

/// `docker compose stop` while orders are in progress, then `up` twice: every order is still there
/// and ends.
pub async fn containers_can_be_stopped_and_started(harness: &Harness) -> Outcome {
    let mut shop = harness.open("stopped", &[]).await?;
    let mut placed = place_all_kinds(&shop, 8).await?;
    let containers = shop.deployment.containers()?;
    containers.stop(&[]).await?;
    containers.up(&["--wait"]).await?;
    containers.up(&["--wait"]).await?;
    placed.extend(place_all_kinds(&shop, 8).await?);
    let list = shop.customer.get("/api/v1/orders?limit=100").await?;
    let listed = list["orders"].as_array().map_or(0, Vec::len);
    ensure!(
        listed == placed.len(),
        "{listed} of {} orders are listed",
        placed.len()
    );
    close(shop).await
}

/// As Kubernetes may run it: any user, a file system that cannot be written, 64 MiB of memory, a
/// tenth of a core. It starts, takes its share of the work, and ends well at SIGTERM.
pub async fn a_process_lives_with_little(harness: &Harness) -> Outcome {
    const LITTLE: [&str; 6] = [
        "--user=12345:12345",
        "--read-only",
        "--memory=64m",
        "--cpus=0.1",
        "--cap-drop=ALL",
        "--security-opt=no-new-privileges",
    ];
    let mut shop = harness.open("little", &[]).await?;
    let mut ids = Vec::new();
    for service in ["order", "payment", "inventory", "notification", "gateway"] {
        let id = shop
            .deployment
            .containers()?
            .run_like(service, &LITTLE)
            .await?;
        let is_ready = async || Ok(docker(&["exec", &id, "/service", "healthcheck"]).await.ok());
        wait_for(&format!("{service} is ready"), is_ready).await?;
        ids.push(id);
    }
    let mut load = Load::start(&shop.customer);
    load.advance(40).await?;
    load.stop().await?;
    for id in ids {
        docker(&["stop", "--time=120", &id]).await?;
        let status = docker(&[
            "inspect",
            "--format={{.State.ExitCode}} {{.State.OOMKilled}}",
            &id,
        ])
        .await?;
        ensure!(status.trim() == "0 false", "{id} ended with {status}");
        docker(&["rm", &id]).await?;
    }
    close(shop).await
}

/// Two replicas of order and three of payment share the work, and one of each may be killed.
pub async fn replicas_share_the_work(harness: &Harness) -> Outcome {
    let mut shop = harness.open("scaled", &[]).await?;
    let containers = shop.deployment.containers()?;
    containers.scale("order", 2).await?;
    containers.scale("payment", 3).await?;
    let mut load = Load::start(&shop.customer);
    load.advance(40).await?;
    let containers = shop.deployment.containers()?;
    containers.kill_one("payment").await?;
    containers.kill_one("order").await?;
    load.advance(40).await?;
    load.stop().await?;
    let containers = shop.deployment.containers()?;
    containers.scale("order", 1).await?;
    containers.scale("payment", 1).await?;
    close(shop).await
}
