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

use std::process::ExitCode;

use anyhow::Context as _;
use chassis::{ServiceContext, Task};
use contracts::Service;
use proto::inventory::v1::inventory_service_server::InventoryServiceServer;
use sqlx::migrate::Migrator;
use tonic::service::Routes;

pub use config::Config;
use grpc::InventoryApi;
use saga::Saga;

/// Runs the inventory service, or the task that the command line names.
pub fn main() -> ExitCode {
    chassis::main(Service::Inventory, run)
}

async fn run(config: Config, mut service: ServiceContext) -> anyhow::Result<()> {
    if let Some(Task::Migrate) = config.task {
        return service.migrate(&config.service, migrator()).await;
    }
    let participant = service.join_saga(&config.service, migrator()).await?;
    let seeded = store::seed(&participant.pool, config.initial_stock).await;
    seeded.context("load the seed catalogue")?;
    let inventory = InventoryServiceServer::new(InventoryApi::new(participant.pool.clone()));
    service.serve_grpc(Routes::new(inventory).add_service(chassis::event_log(&participant)))?;
    service.handle_events(participant, Saga);
    service.until_shutdown().await
}

fn migrator() -> Migrator {
    sqlx::migrate!("./migrations")
}
