//! The notification service: tells customers what became of their orders, once.

mod config;
mod grpc;
mod postman;
pub mod saga;
mod store;

use std::sync::Arc;

use bootstrap::{
    Listeners, Readiness, Supervisor, admin, database, grpc as transport, process::Registry,
};
use contracts::choreography::Service;
use messaging::{Broker, Node};
use proto::notification::v1::notification_service_server::NotificationServiceServer;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use postman::Postman;

pub use config::Config;

/// The migrations of the notification service; run them after messaging's.
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
    let service = Service::Notification;
    let pool = database::connect(
        &config.database,
        service.name(),
        &[messaging::migrator(), migrator()],
    )
    .await?;
    let broker = Broker::connect(&config.broker.url, service.name()).await?;
    let node = Node::new(service, pool.clone(), broker);
    let postman = Postman::hire(&config, pool.clone())?;
    let saga = saga::Saga {
        mail: postman.is_some(),
    };
    let routes = Routes::new(NotificationServiceServer::new(grpc::Grpc {
        pool: pool.clone(),
    }));
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
    if let Some(postman) = postman {
        supervisor.spawn("postman", postman.run(shutdown.clone()));
    }
    supervisor.spawn("saga", messaging::run(node, Arc::new(saga), shutdown));
    supervisor.run().await
}
