//! The payment service: charges orders at the payment service provider and undoes that when they
//! are cancelled.
//!
//! Reading order: [`domain`] (what a payment is), [`saga`] (what it does on which event), `worker`
//! (how the provider is asked), `provider` (in which words).

mod breaker;
mod config;
mod decisions;
pub mod domain;
mod grpc;
mod provider;
pub mod saga;
mod store;
mod worker;

use std::sync::Arc;

use bootstrap::{
    Listeners, Readiness, Supervisor, admin, database, grpc as transport, process::Registry,
};
use contracts::choreography::Service;
use messaging::{Broker, EventLog, Node};
use proto::{
    eventlog::v1::event_log_service_server::EventLogServiceServer,
    payment::v1::payment_service_server::PaymentServiceServer,
};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

pub use config::{ApiKey, Config};

/// The migrations of the payment service; run them after messaging's.
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
    let service = Service::Payment;
    let pool = database::connect(
        &config.database,
        service.name(),
        &[messaging::migrator(), migrator()],
    )
    .await?;
    let broker = Broker::connect(&config.broker.url, service.name()).await?;
    let node = Node::new(service, pool.clone(), broker);
    let work = Arc::new(Notify::new());
    let provider = provider::Provider::new(&config.provider_url, &config.provider_api_key.0)?;
    let worker = worker::Worker {
        node: node.clone(),
        provider,
        work: Arc::clone(&work),
    };
    let routes = Routes::new(PaymentServiceServer::new(grpc::Grpc { pool: pool.clone() }))
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
    supervisor.spawn("worker", worker.run(shutdown.clone()));
    supervisor.spawn(
        "saga",
        messaging::run(node, Arc::new(saga::Saga { work }), shutdown),
    );
    supervisor.run().await
}
