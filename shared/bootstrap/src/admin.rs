//! The admin listener of every process: `/livez`, `/readyz`, `/startupz`, `/metrics`, and the
//! routes that the service adds.
//!
//! - Liveness: the process answers. Nothing else, so that a database outage does not restart every
//!   service.
//! - Startup: the process has been ready once. It serves before that, so that a slow start can be
//!   told from a dead process.
//! - Readiness: work gets done. It turns off first at shutdown, and this listener closes last.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use axum::{
    Json, Router,
    extract::{Request, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use futures::future::{BoxFuture, FutureExt as _, join_all};
use parking_lot::Mutex;
use prometheus::{Encoder as _, Registry, TextEncoder};
use serde_json::{Map, Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use crate::http;

type Check = Arc<dyn Fn() -> BoxFuture<'static, Result<(), String>> + Send + Sync>;

/// What must hold for a process to be ready; cheap to clone.
#[derive(Clone, Default)]
pub struct Readiness {
    checks: Arc<Mutex<Vec<(&'static str, Check)>>>,
    /// Everything is wired up. Before that there is nothing to check, and the process is not ready.
    started: Arc<AtomicBool>,
}

impl std::fmt::Debug for Readiness {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let checks = self.checks.lock();
        f.debug_list()
            .entries(checks.iter().map(|(name, _)| name))
            .finish()
    }
}

impl Readiness {
    /// Adds a named check; its error describes what is wrong.
    pub fn check<F>(&self, name: &'static str, check: impl Fn() -> F + Send + Sync + 'static)
    where
        F: Future<Output = Result<(), String>> + Send + 'static,
    {
        let check: Check = Arc::new(move || check().boxed());
        self.checks.lock().push((name, check));
    }

    pub(crate) fn set_started(&self) {
        self.started.store(true, Ordering::Release);
    }

    pub(crate) fn has_started(&self) -> bool {
        self.started.load(Ordering::Acquire)
    }

    async fn report(&self) -> Result<Value, Value> {
        if !self.has_started() {
            return Err(not_ready("start", "waiting for the database or the broker"));
        }
        let checks = self.checks.lock().clone();
        let checks = checks
            .iter()
            .map(async |(name, check)| (*name, check().await));
        let results = join_all(checks).await;
        let ready = results.iter().all(|(_, result)| result.is_ok());
        let describe = |result: Result<(), String>| result.err().unwrap_or_else(|| "ok".to_owned());
        let checks = results.into_iter();
        let checks: Map<String, Value> = checks
            .map(|(name, result)| (name.to_owned(), Value::from(describe(result))))
            .collect();
        let report = json!({ "ready": ready, "checks": checks });
        if ready { Ok(report) } else { Err(report) }
    }
}

fn not_ready(check: &str, reason: &str) -> Value {
    json!({ "ready": false, "checks": { check: reason } })
}

/// What the admin listener serves.
#[derive(Clone)]
pub(crate) struct Admin {
    pub(crate) readiness: Readiness,
    pub(crate) registry: Registry,
    /// Cancelled when shutdown begins: the process is not ready any more.
    pub(crate) draining: CancellationToken,
    /// The process has been ready once.
    pub(crate) was_ready: Arc<AtomicBool>,
    pub(crate) routes: AddedRoutes,
}

/// Routes of the service, which it adds while it starts: the listener serves before that.
#[derive(Clone, Debug, Default)]
pub(crate) struct AddedRoutes(Arc<Mutex<Option<Router>>>);

impl AddedRoutes {
    /// Each path may be added once.
    pub(crate) fn add(&self, routes: Router) {
        let mut all = self.0.lock();
        *all = Some(all.take().unwrap_or_default().merge(routes));
    }

    fn get(&self) -> Option<Router> {
        self.0.lock().clone()
    }
}

/// Serves the admin listener until `close`.
pub(crate) async fn serve(
    listener: TcpListener,
    admin: Admin,
    close: CancellationToken,
) -> anyhow::Result<()> {
    let router = Router::new()
        .route("/livez", get(async || "ok"))
        .route("/readyz", get(readyz))
        .route("/startupz", get(startupz))
        .route("/metrics", get(metrics))
        .fallback(added)
        .with_state(admin);
    http::serve(listener, router, close).await
}

/// A route that the service has added.
async fn added(State(admin): State<Admin>, request: Request) -> Response {
    match admin.routes.get() {
        Some(routes) => match routes.oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        },
        None if !admin.readiness.has_started() => respond(Err(not_ready(
            "start",
            "waiting for the database or the broker",
        ))),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

async fn readyz(State(admin): State<Admin>) -> Response {
    if admin.draining.is_cancelled() {
        return respond(Err(not_ready("shutdown", "in progress")));
    }
    let report = admin.readiness.report().await;
    admin.was_ready.fetch_or(report.is_ok(), Ordering::Relaxed);
    respond(report)
}

async fn startupz(State(admin): State<Admin>) -> Response {
    if admin.was_ready.load(Ordering::Relaxed) {
        return respond(Ok(json!({ "started": true })));
    }
    readyz(State(admin)).await
}

fn respond(report: Result<Value, Value>) -> Response {
    match report {
        Ok(report) => Json(report).into_response(),
        Err(report) => (StatusCode::SERVICE_UNAVAILABLE, Json(report)).into_response(),
    }
}

async fn metrics(State(admin): State<Admin>) -> Response {
    let mut text = Vec::new();
    match TextEncoder::new().encode(&admin.registry.gather(), &mut text) {
        Ok(()) => text.into_response(),
        Err(error) => {
            tracing::error!(%error, "metrics cannot be written; the scrape fails");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}
