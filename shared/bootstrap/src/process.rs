//! A process from its first line to its exit code.

use std::{path::Path, process::ExitCode, sync::Arc, time::Duration};

use anyhow::Context as _;
use axum::{Router, middleware};
use contracts::Service;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use crate::{
    Readiness, Replicas, Tls,
    admin::{self, AddedRoutes, Admin},
    grpc, healthcheck, http,
    listen::Listeners,
    settings::{self, Settings},
    shutdown::{self, Shutdown},
    supervise::Supervisor,
    telemetry::{self, Telemetry},
};

/// Runs a service: settings, telemetry, signals, listeners, `run`. Exit code 0 after SIGTERM or
/// Ctrl-C, 2 for a wrong setting, 1 for any other error, which is logged once with its causes.
///
/// The admin listener serves from the start to the end, also while `run` waits for a database.
/// `<service> healthcheck` runs the health check instead: see `healthcheck.rs`.
///
/// Call it from the service's library and not from its `main.rs`: an async function is compiled in
/// the crate that runs it, and the binary would compile the whole service a second time.
pub fn main<S, F>(service: &'static str, run: impl FnOnce(S, Process) -> F) -> ExitCode
where
    S: Settings,
    F: Future<Output = anyhow::Result<()>>,
{
    if let Some(exit_code) = healthcheck::run_if_requested() {
        return exit_code;
    }
    let settings: S = settings::parse();
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(error) => return fail_without_log(service, &error, ExitCode::FAILURE),
    };
    let _guard = runtime.enter();
    let tls = settings.common().tls_dir.map(Tls::load).transpose();
    match tls.and_then(|tls| Ok((tls, telemetry::init(service)?))) {
        Ok((tls, telemetry)) => runtime.block_on(serve(service, settings, tls, telemetry, run)),
        Err(error) => fail_without_log(service, &error, ExitCode::from(2)),
    }
}

fn fail_without_log(service: &str, error: &anyhow::Error, exit_code: ExitCode) -> ExitCode {
    eprintln!("{service}: {error:#}");
    exit_code
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    // Once per process, before anything can use TLS.
    let installed = rustls::crypto::ring::default_provider().install_default();
    installed.map_err(|_| anyhow::anyhow!("TLS is set up twice"))?;
    // The number of threads is TOKIO_WORKER_THREADS, by default the number of cores.
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.enable_all().build().context("start the runtime")
}

async fn serve<S, F>(
    service: &'static str,
    settings: S,
    tls: Option<Tls>,
    // Owned: it exports what is left when it is dropped, and needs the runtime for that.
    telemetry: Telemetry,
    run: impl FnOnce(S, Process) -> F,
) -> ExitCode
where
    S: Settings,
    F: Future<Output = anyhow::Result<()>>,
{
    let result = async {
        let settings::Common {
            listen,
            admin_listen,
            shutdown_lag,
            ..
        } = settings.common();
        let shutdown = Shutdown::on_signal(shutdown_lag)?;
        let listeners = Listeners::bind(listen, admin_listen).await?;
        let readiness = Readiness::default();
        let admin_routes = AddedRoutes::default();
        let close_admin = CancellationToken::new();
        let admin = Admin {
            readiness: readiness.clone(),
            registry: telemetry.registry.clone(),
            draining: shutdown.draining.clone(),
            was_ready: Arc::default(),
            routes: admin_routes.clone(),
        };
        let admin = tokio::spawn(admin::serve(listeners.admin, admin, close_admin.clone()));
        let starting = shutdown.stopping.clone();
        let mut process = Process {
            supervisor: Supervisor::new(shutdown.stopping.clone()),
            tls: tls.clone(),
            listener: Some(listeners.main),
            readiness: readiness.clone(),
            admin_routes,
            shutdown,
        };
        if let Some(tls) = tls {
            process.spawn("TLS certificate", tls.run(starting.clone()));
        }
        let result = tokio::select! {
            biased;
            result = run(settings, process) => result,
            // Nothing has been started that would have to end in order.
            () = stopped_while_starting(&starting, &readiness) => Ok(()),
        };
        // Last, so that an operator can look at a process that hangs in its shutdown.
        close_admin.cancel();
        let closed = tokio::time::timeout(Duration::from_secs(1), admin).await;
        result.and(
            closed
                .unwrap_or(Ok(Ok(())))
                .context("the admin listener panicked")?,
        )
    }
    .await;
    match result {
        Ok(()) => {
            tracing::info!(service, "the process has stopped");
            ExitCode::SUCCESS
        }
        Err(error) => {
            tracing::error!(
                service,
                error = format!("{error:#}"),
                "the process failed and stops"
            );
            ExitCode::FAILURE
        }
    }
}

async fn stopped_while_starting(stopping: &CancellationToken, readiness: &Readiness) {
    stopping.cancelled().await;
    if readiness.has_started() {
        std::future::pending().await
    }
}

/// The running process, as a service's `run` uses it.
#[derive(Debug)]
pub struct Process {
    supervisor: Supervisor,
    listener: Option<TcpListener>,
    tls: Option<Tls>,
    /// What must hold for the process to be ready; checks are added while it starts.
    pub readiness: Readiness,
    admin_routes: AddedRoutes,
    shutdown: Shutdown,
}

impl Process {
    /// Cancelled when tasks should end.
    pub fn stopping(&self) -> CancellationToken {
        self.shutdown.stopping.clone()
    }

    /// Starts a task that must not end before `stopping`.
    pub fn spawn(
        &mut self,
        name: &'static str,
        task: impl Future<Output = anyhow::Result<()>> + Send + 'static,
    ) {
        self.supervisor.spawn(name, task);
    }

    /// Directory of the certificate of this process, if it has one.
    pub fn tls_dir(&self) -> Option<&Path> {
        self.tls.as_ref().map(Tls::directory)
    }

    /// Clients of `service`, whose addresses are `urls`: see [`Replicas::new`].
    ///
    /// # Errors
    /// When `urls` are not `https://host:port` where the process has a certificate, and
    /// `http://host:port` where it has none.
    pub fn replicas(&self, urls: &str, service: Service) -> anyhow::Result<Replicas> {
        Replicas::new(urls, service, self.tls.as_ref())
    }

    /// Serves gRPC on the service's listener.
    pub fn serve_grpc(&mut self, routes: Routes) -> anyhow::Result<()> {
        let listener = self.take_listener()?;
        let served = grpc::serve(listener, routes, self.tls.clone(), self.stopping());
        self.spawn("gRPC server", served);
        Ok(())
    }

    /// Serves HTTP on the service's listener.
    pub fn serve_http(&mut self, router: Router) -> anyhow::Result<()> {
        let listener = self.take_listener()?;
        let draining = self.shutdown.draining.clone();
        let close = middleware::from_fn_with_state(draining, http::close_while_draining);
        let served = http::serve(listener, router.layer(close), self.stopping());
        self.spawn("HTTP server", served);
        Ok(())
    }

    /// Serves more routes on the admin listener. Each path may be added once.
    pub fn serve_admin(&self, routes: Router) {
        self.admin_routes.add(routes);
    }

    fn take_listener(&mut self) -> anyhow::Result<TcpListener> {
        self.listener
            .take()
            .context("the listener is served already")
    }

    /// Declares the start complete, then waits until shutdown and until all tasks have ended.
    ///
    /// # Errors
    /// Names the task that failed, panicked, ended by itself or did not end in time.
    pub async fn until_shutdown(self) -> anyhow::Result<()> {
        self.readiness.set_started();
        self.supervisor.run(shutdown::TASKS).await
    }
}
