//! The order service: owns orders and their event log, and sees every order to its end.
//!
//! Reading order: [`domain`] (what an order is), [`saga`] (what it does on which event),
//! `decisions` (how orders change), `intake` (how they are accepted), `sweep` (how the overdue
//! end), [`rebuild`](mod@rebuild) (the event log).

mod config;
mod decisions;
pub mod domain;
mod grpc;
mod idempotency;
mod intake;
mod log;
mod prices;
pub mod rebuild;
pub mod saga;
mod store;
mod sweep;

use std::sync::Arc;

use anyhow::Context as _;
use bootstrap::{
    Listeners, Readiness, Supervisor, admin, database, grpc as transport, process::Registry,
};
use contracts::choreography::Service;
use messaging::{Broker, EventLog, Node};
use proto::{
    eventlog::v1::event_log_service_server::EventLogServiceServer,
    order::v1::order_service_server::OrderServiceServer,
};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

pub use config::{Config, Task};
pub use idempotency::RETENTION as IDEMPOTENCY_RETENTION;

/// The migrations of the order service; run them after messaging's.
pub fn migrator() -> sqlx::migrate::Migrator {
    sqlx::migrate!("./migrations")
}

/// Serves until `shutdown`, or does the task that the settings name.
pub async fn run(
    config: Config,
    listeners: Listeners,
    registry: Registry,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let service = Service::Order;
    let pool = database::connect(
        &config.database,
        service.name(),
        &[messaging::migrator(), migrator()],
    )
    .await?;
    if let Some(Task::Rebuild { write }) = config.task {
        return report(&rebuild::rebuild(&pool, write).await?, write);
    }
    let broker = Broker::connect(&config.broker.url, service.name()).await?;
    let node = Node::new(service, pool.clone(), broker).keep_outbox_for_ever();
    let prices = Arc::new(prices::Prices::new(
        transport::channel(&config.inventory_url).context("INVENTORY_URL")?,
    ));
    let (intake, serve_intake) = intake::intake(node.clone(), shutdown.clone());
    let orders = grpc::Grpc {
        node: node.clone(),
        intake,
        prices,
        deadline: config.deadline(),
    };
    let routes = Routes::new(OrderServiceServer::new(orders))
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
    supervisor.spawn("intake", serve_intake);
    supervisor.spawn("sweep", sweep::run(node.clone(), shutdown.clone()));
    supervisor.spawn(
        "idempotency",
        idempotency::prune(node.pool.clone(), shutdown.clone()),
    );
    supervisor.spawn("saga", messaging::run(node, Arc::new(saga::Saga), shutdown));
    supervisor.run().await
}

fn report(report: &rebuild::Report, write: bool) -> anyhow::Result<()> {
    for order in &report.different {
        tracing::warn!(order.id = %order, mended = write, "the orders table differs from the event log");
    }
    tracing::info!(
        orders = report.orders,
        different = report.different.len(),
        "folded the event log"
    );
    anyhow::ensure!(
        write || report.different.is_empty(),
        "{} orders differ from their log",
        report.different.len()
    );
    Ok(())
}
