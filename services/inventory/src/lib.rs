//! The inventory service: knows products, prices and stock, and sets stock aside for orders that
//! were paid.
//!
//! Reading order: [`domain`] (what a reservation is), [`saga`] (what it does on which event),
//! `catalogue` (the seed).

mod catalogue;
mod config;
pub mod domain;
mod grpc;
pub mod saga;
mod store;

use std::sync::Arc;

use anyhow::Context as _;
use bootstrap::{
    Listeners, Readiness, Supervisor, admin, database, grpc as transport, process::Registry,
};
use contracts::choreography::Service;
use messaging::{Broker, EventLog, Node};
use proto::{
    eventlog::v1::event_log_service_server::EventLogServiceServer,
    inventory::v1::inventory_service_server::InventoryServiceServer,
};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

pub use config::Config;

/// The migrations of the inventory service; run them after messaging's.
pub fn migrator() -> sqlx::migrate::Migrator {
    sqlx::migrate!("./migrations")
}

/// Serves until `shutdown`.
pub async fn run(
    config: Config,
    listeners: Listeners,
    registry: Registry,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let service = Service::Inventory;
    let pool = database::connect(
        &config.database,
        service.name(),
        &[messaging::migrator(), migrator()],
    )
    .await?;
    store::seed(&pool, config.initial_stock)
        .await
        .context("load the seed catalogue")?;
    let broker = Broker::connect(&config.broker.url, service.name()).await?;
    let node = Node::new(service, pool.clone(), broker);
    let routes = Routes::new(InventoryServiceServer::new(grpc::Grpc {
        pool: pool.clone(),
    }))
    .add_service(EventLogServiceServer::new(EventLog::new(pool.clone())));
    let progress = node.progress.clone();
    let readiness = Readiness::default()
        .check("database", move || database::ping(pool.clone()))
        .check("saga", move || {
            let moving = progress.check();
            async { moving }
        });

    let mut supervisor = Supervisor::new(shutdown.clone());
    supervisor.spawn(
        "admin",
        admin::serve(listeners.admin, readiness, registry, shutdown.clone()),
    );
    supervisor.spawn(
        "grpc",
        transport::serve(listeners.main, routes, shutdown.clone()),
    );
    supervisor.spawn("saga", messaging::run(node, Arc::new(saga::Saga), shutdown));
    supervisor.run().await
}
