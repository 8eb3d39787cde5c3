//! The inventory service: knows products, prices and stock, and reserves stock for paid orders.
//!
//! Reading order: `domain` (what a reservation is), `saga` (what it does on which event), `store`.

mod aggregate;
mod catalogue;
mod config;
mod domain;
mod grpc;
mod outgoing;
mod saga;
mod store;

use std::{process::ExitCode, time::Duration};

use anyhow::Context as _;
use backon::Retryable as _;
use chassis::{ServiceContext, Task};
use contracts::Service;
use messaging::backoff;
use proto::inventory::v1::inventory_service_server::InventoryServiceServer;
use sqlx::{PgPool, migrate::Migrator};
use tonic::service::Routes;

pub use config::Config;
use grpc::InventoryApi;
use saga::Saga;

const FIRST_RETRY: Duration = Duration::from_millis(100);
const SLOWEST_RETRY: Duration = Duration::from_secs(1);

/// Runs the inventory service, or the task that the command line names.
pub fn main() -> ExitCode {
    chassis::main(Service::Inventory, run)
}

async fn run(config: Config, mut service: ServiceContext) -> anyhow::Result<()> {
    if let Some(Task::Migrate) = config.task {
        return service.migrate(&config.service, migrator()).await;
    }
    let participant = service.join_saga(&config.service, migrator()).await?;
    seed(&participant.pool, config.initial_stock).await?;
    let inventory = InventoryServiceServer::new(InventoryApi::new(participant.pool.clone()));
    service.serve_grpc(Routes::new(inventory).add_service(chassis::event_log(&participant)))?;
    service.handle_events(participant, Saga);
    service.until_shutdown().await
}

/// Loads the seed catalogue, or waits for the replica that loads it.
async fn seed(pool: &PgPool, stock_each: i64) -> anyhow::Result<()> {
    let seed = || messaging::in_time(async { Ok(store::seed(pool, stock_each).await?) });
    seed.retry(backoff::exponential(FIRST_RETRY, SLOWEST_RETRY))
        .when(messaging::is_unavailable)
        .notify(|error, delay| {
            tracing::warn!(
                error = format!("{error:#}"),
                "the seed catalogue cannot be loaded yet; the next attempt is in {delay:?}"
            );
        })
        .await
        .context("load the seed catalogue")
}

fn migrator() -> Migrator {
    sqlx::migrate!("./migrations")
}
