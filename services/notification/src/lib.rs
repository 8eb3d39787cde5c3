//! The notification service: notifies customers of the outcomes of their orders, once.
//!
//! It has no rules, therefore no `domain` and no unit of work: a row per notification, and a
//! constraint that keeps it unique. Reading order: `saga` (what it does on which event), `mailer`,
//! `store`.

mod config;
mod erasure;
mod grpc;
mod kind;
mod mailer;
mod saga;
mod smtp;
mod store;

use std::process::ExitCode;

use chassis::{ServiceContext, Task};
use contracts::Service;
use proto::notification::v1::notification_service_server::NotificationServiceServer;
use sqlx::migrate::Migrator;
use tonic::service::Routes;

pub use config::Config;
use erasure::Notifications;
use grpc::NotificationApi;
use mailer::Mailer;
use saga::Saga;

/// Runs the notification service, or the task that the command line names.
pub fn main() -> ExitCode {
    chassis::main(Service::Notification, run)
}

async fn run(config: Config, mut service: ServiceContext) -> anyhow::Result<()> {
    if let Some(Task::Migrate) = config.task {
        return service.migrate(&config.service, migrator()).await;
    }
    let participant = service.join_saga(&config.service, migrator()).await?;
    let mailer = Mailer::from_config(&config, participant.pool.clone())?;
    let saga = Saga::new(mailer.is_some());
    let notifications = NotificationApi::new(participant.pool.clone());
    service.serve_grpc(Routes::new(NotificationServiceServer::new(notifications)))?;
    service.erase_customers::<Notifications>(&participant);
    if let Some(mailer) = mailer {
        service.spawn("mailer", mailer.run(service.stopping()));
    }
    service.handle_events(participant, saga);
    service.until_shutdown().await
}

fn migrator() -> Migrator {
    sqlx::migrate!("./migrations")
}
