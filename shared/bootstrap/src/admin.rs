//! The admin listener of every process: `/livez`, `/readyz`, `/startupz`, `/metrics`.
//!
//! Liveness asks only whether the process answers; a database that is away must not get every
//! process restarted. Readiness asks whether work gets done, and turns off first at shutdown.

use std::sync::Arc;

use axum::{Json, Router, extract::State, http::StatusCode, response::IntoResponse, routing::get};
use futures::future::{BoxFuture, FutureExt as _, join_all};
use prometheus::{Encoder as _, Registry, TextEncoder};
use serde_json::{Map, Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

type Check = Box<dyn Fn() -> BoxFuture<'static, Result<(), String>> + Send + Sync>;

/// What must hold for this process to be ready.
#[derive(Default)]
pub struct Readiness {
    checks: Vec<(&'static str, Check)>,
}

impl std::fmt::Debug for Readiness {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list()
            .entries(self.checks.iter().map(|(name, _)| name))
            .finish()
    }
}

impl Readiness {
    /// Adds a named check; its error says what is wrong.
    pub fn check<F>(
        mut self,
        name: &'static str,
        check: impl Fn() -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Result<(), String>> + Send + 'static,
    {
        self.checks.push((name, Box::new(move || check().boxed())));
        self
    }

    async fn report(&self) -> (bool, Value) {
        let results = join_all(
            self.checks
                .iter()
                .map(async |(name, check)| (*name, check().await)),
        )
        .await;
        let ready = results.iter().all(|(_, result)| result.is_ok());
        let checks: Map<String, Value> = results
            .into_iter()
            .map(|(name, result)| {
                (
                    name.to_owned(),
                    result.map_or_else(Value::from, |()| Value::from("ok")),
                )
            })
            .collect();
        (ready, json!({ "ready": ready, "checks": checks }))
    }
}

#[derive(Clone)]
struct Admin {
    readiness: Arc<Readiness>,
    registry: Registry,
    shutdown: CancellationToken,
}

/// Serves the admin listener until `stop`, which should come after everything else has ended; from
/// `shutdown` on the process is not ready any more.
pub async fn serve(
    listener: TcpListener,
    readiness: Readiness,
    registry: Registry,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let admin = Admin {
        readiness: Arc::new(readiness),
        registry,
        shutdown: shutdown.clone(),
    };
    let routes = Router::new()
        .route("/livez", get(async || "ok"))
        .route("/readyz", get(ready))
        .route("/startupz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(admin);
    let stop = async move { shutdown.cancelled().await };
    axum::serve(listener, routes)
        .with_graceful_shutdown(stop)
        .await?;
    Ok(())
}

async fn ready(State(admin): State<Admin>) -> impl IntoResponse {
    if admin.shutdown.is_cancelled() {
        return (
            StatusCode::SERVICE_UNAVAILABLE,
            Json(json!({ "ready": false, "checks": { "shutdown": "begun" } })),
        );
    }
    let (ready, report) = admin.readiness.report().await;
    (
        if ready {
            StatusCode::OK
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        },
        Json(report),
    )
}

async fn metrics(State(admin): State<Admin>) -> impl IntoResponse {
    let mut text = Vec::new();
    match TextEncoder::new().encode(&admin.registry.gather(), &mut text) {
        Ok(()) => (StatusCode::OK, text),
        Err(error) => (
            StatusCode::INTERNAL_SERVER_ERROR,
            error.to_string().into_bytes(),
        ),
    }
}
