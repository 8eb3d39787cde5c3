//! The gateway: the HTTP API in front of the services.
//!
//! Reading order: `orders`, `events` (live streams), `timeline`, `problem` (errors), `extract`
//! (what is taken from requests), `views` (what is answered).

mod config;
mod edge;
mod events;
mod extract;
mod live;
mod object;
mod orders;
mod problem;
mod products;
mod shop;
mod timeline;
mod views;

use anyhow::Context as _;
use axum::{Router, extract::DefaultBodyLimit, middleware};
use bootstrap::{Listeners, Readiness, Supervisor, admin, process::Registry};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tower_http::catch_panic::CatchPanicLayer;
use utoipa::OpenApi;
use utoipa_axum::{router::OpenApiRouter, routes};
use utoipa_swagger_ui::SwaggerUi;

pub use config::Config;

/// The document at `/openapi.json`; paths are added by the router.
#[derive(OpenApi)]
#[openapi(info(title = "Sagacity", description = "Orders, followed through payment and stock to their end.\n\nErrors are RFC 9457 problem documents; `retry_safe` says whether the same request may be sent again. Every answer carries `x-correlation-id`."),
          tags((name = "orders"), (name = "products")))]
struct Document;

/// How long requests in flight may go on after shutdown has begun; live streams end then.
const GRACE: std::time::Duration = std::time::Duration::from_secs(5);

fn router(shop: shop::Shop) -> Router {
    let (api, document) = OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(orders::place, orders::list))
        .routes(routes!(orders::look))
        .routes(routes!(orders::cancel))
        .routes(routes!(events::watch))
        .routes(routes!(timeline::look))
        .routes(routes!(products::list))
        .routes(routes!(products::look))
        .split_for_parts();
    api.merge(SwaggerUi::new("/docs").url("/openapi.json", document))
        .fallback(async || {
            problem::Problem::not_found("There is nothing at this path; /docs shows what there is.")
        })
        .method_not_allowed_fallback(async || problem::Problem::method_not_allowed())
        .layer(CatchPanicLayer::custom(edge::panicked))
        .layer(DefaultBodyLimit::max(extract::MAX_BODY))
        .layer(middleware::from_fn_with_state(
            edge::durations(),
            edge::travel,
        ))
        .with_state(shop)
}

/// Serves until `shutdown`.
pub async fn run(
    config: Config,
    listeners: Listeners,
    registry: Registry,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let live = live::Live::default();
    let shop = shop::Shop::new(&config, live.clone())?;
    let mut supervisor = Supervisor::new(shutdown.clone());
    let admin = admin::serve(
        listeners.admin,
        Readiness::default(),
        registry,
        shutdown.clone(),
    );
    supervisor.spawn("admin", admin);
    supervisor.spawn("live", live.run(config.broker.url, shutdown.clone()));
    supervisor.spawn("http", serve(listeners.main, router(shop), shutdown));
    supervisor.run().await
}

async fn serve(
    listener: TcpListener,
    router: Router,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let grace = async {
        shutdown.cancelled().await;
        tokio::time::sleep(GRACE).await;
    };
    let served =
        axum::serve(listener, router).with_graceful_shutdown(shutdown.clone().cancelled_owned());
    tokio::select! {
        served = async { served.await } => served.context("serve HTTP"),
        () = grace => Ok(()),
    }
}
