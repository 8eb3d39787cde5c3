//! The composition root of every service that takes part in the saga.
//!
//! A service calls [`main`] with its `run(config, service)`, and `run` lists what the service is:
//! join the saga, serve gRPC, spawn its loops, handle its events, until shutdown.
#![warn(missing_docs, unreachable_pub)]

mod dead_letters;
mod erasure;
mod event_log;
mod operators;
mod settings;
pub mod status;

use std::{process::ExitCode, sync::Arc, time::Duration};

use anyhow::Context as _;
use axum::Router;
use bootstrap::{
    Process, Replicas, database, process,
    settings::{BrokerSettings, DatabaseSettings, Migrations, Settings},
    shutdown,
};
use contracts::Service;
use futures::future::BoxFuture;
use messaging::{Broker, Handler, Login, Participant, StreamSettings};
use sqlx::{PgPool, migrate::Migrator};
use tokio::time::{Interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use operators::Operators;

pub use erasure::{Erase, Step};
pub use event_log::event_log;
pub use settings::{ServiceSettings, Task};

// At shutdown a consumer finishes its batch, then the relay flushes the outbox. Both must fit into
// the time that tasks have.
const _: () = assert!(
    messaging::TRANSACTION_TIMEOUT.as_millis() + messaging::FLUSH_TIMEOUT.as_millis()
        < shutdown::TASKS.as_millis()
);

/// Runs a service as a process: see [`process::main`].
pub fn main<S, F>(service: Service, run: impl FnOnce(S, ServiceContext) -> F) -> ExitCode
where
    S: Settings,
    F: Future<Output = anyhow::Result<()>>,
{
    process::main(service.name(), |config, process| {
        let context = ServiceContext {
            service,
            process,
            operators: Operators::Nobody,
        };
        run(config, context)
    })
}

/// A service that is being put together, and then runs.
#[derive(Debug)]
pub struct ServiceContext {
    service: Service,
    process: Process,
    /// Nobody, until the service joins the saga.
    operators: Operators,
}

impl ServiceContext {
    /// Connects to the service's own database, and migrates it or waits until it is migrated. Waits
    /// for a database that is not up yet.
    ///
    /// # Errors
    /// A migration that fails, or that was changed after it had been applied.
    pub async fn connect_database<const PORT: u16, const ADMIN_PORT: u16>(
        &self,
        settings: &ServiceSettings<PORT, ADMIN_PORT>,
        migrator: Migrator,
    ) -> anyhow::Result<PgPool> {
        self.connect(&settings.database, migrator).await
    }

    /// Applies the migrations of the service's database: the task `migrate`.
    ///
    /// # Errors
    /// A migration that fails, or that was changed after it had been applied.
    pub async fn migrate<const PORT: u16, const ADMIN_PORT: u16>(
        &self,
        settings: &ServiceSettings<PORT, ADMIN_PORT>,
        migrator: Migrator,
    ) -> anyhow::Result<()> {
        let apply = DatabaseSettings {
            migrations: Migrations::Apply,
            // Migrations have a connection of their own.
            pool_size: 1,
            ..settings.database.clone()
        };
        let pool = self.connect(&apply, migrator).await?;
        pool.close().await;
        tracing::info!("the database has every migration of this version");
        Ok(())
    }

    async fn connect(
        &self,
        settings: &DatabaseSettings,
        migrator: Migrator,
    ) -> anyhow::Result<PgPool> {
        let migrators = vec![messaging::migrator(), migrator];
        database::connect(settings, self.service.name(), migrators).await
    }

    /// Connects to database and broker and becomes a participant of the saga. Readiness then
    /// watches both, and the admin listener serves the service's dead letters to operators. Waits
    /// for what is not up yet.
    ///
    /// # Errors
    /// When the broker's address is wrong or it is too old, a migration fails, or the API keys
    /// cannot be read.
    pub async fn join_saga<const PORT: u16, const ADMIN_PORT: u16>(
        &mut self,
        settings: &ServiceSettings<PORT, ADMIN_PORT>,
        migrator: Migrator,
    ) -> anyhow::Result<Participant> {
        let keys = settings.api_keys.open()?;
        if let Some(keys) = &keys {
            self.spawn("API keys", keys.clone().run(self.stopping()));
        }
        self.operators = Operators::new(keys, settings.process.environment);
        self.join(&settings.database, &settings.broker, migrator)
            .await
    }

    /// Boxed, so that the clients of database and broker are compiled once, here, and not again in
    /// every service.
    fn join<'a>(
        &'a mut self,
        database: &'a DatabaseSettings,
        broker: &'a BrokerSettings,
        migrator: Migrator,
    ) -> BoxFuture<'a, anyhow::Result<Participant>> {
        Box::pin(async move {
            let pool = self.connect(database, migrator).await?;
            let streams = StreamSettings {
                max_bytes: broker.stream_max_bytes,
                replicas: broker.stream_replicas,
            };
            let login = Login {
                user: self.service.name(),
                password: broker.password(),
                tls_dir: self.process.tls_dir(),
            };
            let broker = Broker::connect(&broker.url, login).await;
            let broker = broker
                .context("connect to the broker that NATS_URL names")?
                .with_streams(streams);
            let participant = Participant::new(self.service, pool.clone(), broker);
            let routes = dead_letters::routes(&participant);
            self.serve_operators(routes);
            let readiness = &self.process.readiness;
            readiness.check("database", move || database::ping(pool.clone()));
            let progress = participant.progress.clone();
            readiness.check("saga", move || std::future::ready(progress.check()));
            Ok(participant)
        })
    }

    /// Clients of another service, whose addresses are `urls`: see [`Process::replicas`].
    ///
    /// # Errors
    /// When `urls` are no addresses of a service.
    pub fn replicas(&self, urls: &str, service: Service) -> anyhow::Result<Replicas> {
        self.process.replicas(urls, service)
    }

    /// Serves gRPC on the service's listener.
    ///
    /// # Errors
    /// When the listener is served already.
    pub fn serve_grpc(&mut self, routes: Routes) -> anyhow::Result<()> {
        self.process.serve_grpc(routes)
    }

    /// Serves the erasure of customers on the admin listener.
    pub fn erase_customers<E: Erase>(&self, participant: &Participant) {
        self.serve_operators(erasure::routes::<E>(participant));
    }

    fn serve_operators(&self, routes: Router) {
        self.process
            .serve_admin(self.operators.clone().guard(routes));
    }

    /// Cancelled when tasks should end.
    pub fn stopping(&self) -> CancellationToken {
        self.process.stopping()
    }

    /// Starts a loop of the service, which must not end before `stopping`.
    pub fn spawn(
        &mut self,
        name: &'static str,
        task: impl Future<Output = anyhow::Result<()>> + Send + 'static,
    ) {
        self.process.spawn(name, task);
    }

    /// Relays the participant's outbox and hands its inbound events to `handler`.
    pub fn handle_events<H: Handler>(&mut self, participant: Participant, handler: H) {
        let stopping = self.stopping();
        let run = messaging::run::run(participant, Arc::new(handler), stopping);
        self.spawn("saga", run);
    }

    /// Declares the start complete, then waits until shutdown and until all tasks have ended.
    ///
    /// # Errors
    /// Names the task that failed, panicked, ended by itself or did not end in time.
    pub async fn until_shutdown(self) -> anyhow::Result<()> {
        self.process.until_shutdown().await
    }
}

/// The ticks of a periodic task. Those that were missed during an outage do not follow one another
/// in a burst.
pub fn ticks(interval: Duration) -> Interval {
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}
