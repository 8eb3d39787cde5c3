//! The order service: owns orders and their event log, and sees every order to its end.
//!
//! Reading order: `domain` (what an order is), `saga` (what it does on which event), `intake` (how
//! orders are accepted), `admission` (when they are refused), `sweep` (how overdue orders end),
//! `event_log`, `rebuild` and `forget` (what is removed from the log).

mod admission;
mod aggregate;
mod config;
mod domain;
mod erasure;
mod event_log;
mod forget;
mod grpc;
mod idempotency;
mod intake;
mod outgoing;
mod prices;
mod rebuild;
mod saga;
mod store;
mod sweep;

use std::process::ExitCode;

use anyhow::Context as _;
use chassis::ServiceContext;
use contracts::Service;
use proto::order::v1::order_service_server::OrderServiceServer;
use sqlx::migrate::Migrator;
use tonic::service::Routes;

use admission::Admission;
pub use config::Config;
use config::Task;
use erasure::Orders;
use grpc::OrderApi;
use intake::Intake;
use prices::Prices;
use saga::Saga;

/// Runs the order service, or the task that the command line names.
pub fn main() -> ExitCode {
    chassis::main(Service::Order, run)
}

async fn run(config: Config, mut service: ServiceContext) -> anyhow::Result<()> {
    match config.task {
        None => {}
        Some(Task::Common(chassis::Task::Migrate)) => {
            return service.migrate(&config.service, migrator()).await;
        }
        Some(Task::Rebuild { write }) => {
            let pool = service
                .connect_database(&config.service, migrator())
                .await?;
            return rebuild::run(&pool, write).await;
        }
    }
    let joined = service.join_saga(&config.service, migrator()).await?;
    let participant = joined.retain_outbox();
    let inventory = service.replicas(&config.inventory_url, Service::Inventory);
    let prices = Prices::new(inventory.context("INVENTORY_URL")?);
    let (pool, deadline) = (participant.pool.clone(), config.deadline());
    let admission = Admission::default();
    let (intake, accepting) = Intake::new(
        participant.clone(),
        deadline,
        admission.clone(),
        service.stopping(),
    );
    let orders = OrderApi::new(participant.clone(), intake, prices);
    service.serve_grpc(
        Routes::new(OrderServiceServer::new(orders)).add_service(chassis::event_log(&participant)),
    )?;
    service.erase_customers::<Orders>(&participant);
    service.spawn("intake", accepting);
    service.spawn(
        "admission",
        admission.run(participant.clone(), deadline, service.stopping()),
    );
    service.spawn(
        "deadline sweep",
        sweep::run(participant.clone(), service.stopping()),
    );
    service.spawn(
        "idempotency keys",
        idempotency::prune(pool.clone(), service.stopping()),
    );
    service.spawn("payment methods", forget::run(pool, service.stopping()));
    service.handle_events(participant, Saga);
    service.until_shutdown().await
}

fn migrator() -> Migrator {
    sqlx::migrate!("./migrations")
}
