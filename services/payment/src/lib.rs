//! The payment service: charges orders at the payment service provider, and voids or refunds
//! cancelled ones.
//!
//! Reading order: `domain` (what a payment is), `saga` (what it does on which event), `worker` (how
//! the provider is called), `charge` and `refund` (what is called, and what follows from the
//! answer), `provider` (its HTTP API).

mod aggregate;
mod breaker;
mod charge;
mod config;
mod domain;
mod erasure;
mod forget;
mod grpc;
mod outgoing;
mod provider;
mod refund;
mod request;
mod saga;
mod store;
mod worker;

use std::process::ExitCode;

use chassis::{ServiceContext, Task};
use contracts::Service;
use proto::payment::v1::payment_service_server::PaymentServiceServer;
use sqlx::migrate::Migrator;
use tonic::service::Routes;

pub use config::Config;
use erasure::Payments;
use grpc::PaymentApi;
use provider::Provider;
use saga::Saga;
use worker::Worker;

/// Runs the payment service, or the task that the command line names.
pub fn main() -> ExitCode {
    chassis::main(Service::Payment, run)
}

async fn run(config: Config, mut service: ServiceContext) -> anyhow::Result<()> {
    if let Some(Task::Migrate) = config.task {
        return service.migrate(&config.service, migrator()).await;
    }
    let participant = service.join_saga(&config.service, migrator()).await?;
    let provider = Provider::new(&config.provider_url, config.provider_api_key)?;
    let worker = Worker::new(participant.clone(), provider);
    let saga = Saga::new(worker.waker());
    let payments = PaymentServiceServer::new(PaymentApi::new(participant.pool.clone()));
    service.serve_grpc(Routes::new(payments).add_service(chassis::event_log(&participant)))?;
    service.erase_customers::<Payments>(&participant);
    service.spawn("provider worker", worker.run(service.stopping()));
    service.spawn(
        "old payment methods",
        forget::run(participant.pool.clone(), service.stopping()),
    );
    service.handle_events(participant, saga);
    service.until_shutdown().await
}

fn migrator() -> Migrator {
    sqlx::migrate!("./migrations")
}
