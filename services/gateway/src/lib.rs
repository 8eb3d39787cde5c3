//! The gateway: the HTTP API in front of the services.
//!
//! Reading order: `orders`, `events` (live streams), `timeline`, `problem` (errors), `extract`
//! (what handlers take from requests), `order_request` and `views` (JSON types), `document`
//! (`/openapi.json`); `edge` (what every request passes), `identity` (access tokens, API keys),
//! `limits`.

mod backends;
mod config;
mod document;
mod edge;
mod events;
mod extract;
mod identity;
mod limits;
mod live;
mod object;
mod order_request;
mod orders;
mod page;
mod per_customer;
mod position;
mod problem;
mod products;
#[cfg(test)]
mod tests;
mod timeline;
mod views;

use std::{path::Path, process::ExitCode};

use axum::{Router, middleware};
use bootstrap::Process;
use tower_http::catch_panic::CatchPanicLayer;
use utoipa_axum::{router::OpenApiRouter, routes};
use utoipa_swagger_ui::SwaggerUi;

use crate::{
    backends::Backends,
    edge::Edge,
    identity::{IdentitySettings, development},
    live::Live,
    problem::Problem,
};

pub use config::Config;

/// Runs the gateway.
pub fn main() -> ExitCode {
    bootstrap::process::main("gateway", run)
}

/// No backend is part of readiness, because the gateway still serves what the others can answer.
/// Without the keys of the issuer it serves no customer.
async fn run(config: Config, mut process: Process) -> anyhow::Result<()> {
    let live = Live::default();
    let backends = Backends::connect(&config, &process, live.clone())?;
    let edge = Edge::new(&config.identity, config.limits)?;
    let identity = edge.identity.clone();
    process.readiness.check("identity provider", move || {
        let problem = "its keys could not be read yet";
        std::future::ready(
            identity
                .is_ready()
                .then_some(())
                .ok_or_else(|| problem.to_owned()),
        )
    });
    process.spawn(
        "signing keys and API keys",
        edge.identity.clone().run(process.stopping()),
    );
    process.spawn("limits", edge.limits.clone().run(process.stopping()));
    process.serve_http(router(backends, edge, &config.identity))?;
    let tls_dir = process.tls_dir().map(Path::to_owned);
    let live = live.run(config.broker, tls_dir, process.stopping());
    process.spawn("live streams", live);
    process.until_shutdown().await
}

fn router(backends: Backends, edge: Edge, identity: &IdentitySettings) -> Router {
    let (api, document) = OpenApiRouter::with_openapi(document::base())
        .routes(routes!(orders::create_order, orders::list_orders))
        .routes(routes!(orders::get_order))
        .routes(routes!(orders::cancel_order))
        .routes(routes!(events::watch_order))
        .routes(routes!(timeline::get_timeline))
        .routes(routes!(products::list_products))
        .routes(routes!(products::get_product))
        .split_for_parts();
    let docs = SwaggerUi::new("/docs").url("/openapi.json", document::complete(document, identity));
    let api = match identity.issuer() {
        Some(_) => api,
        None => api.merge(development::routes(&identity.audience)),
    };
    let routes = api
        .merge(docs)
        .fallback(async || Problem::not_found("There is nothing at this path; see /docs."))
        .method_not_allowed_fallback(async || Problem::method_not_allowed());
    with_layers(routes, edge).with_state(backends)
}

/// What every request passes, outermost last: the context is outside, so that the response to a
/// panic has a correlation id and is counted.
fn with_layers<S: Clone + Send + Sync + 'static>(routes: Router<S>, edge: Edge) -> Router<S> {
    routes
        .layer(CatchPanicLayer::custom(edge::panic_response))
        .layer(middleware::from_fn_with_state(edge, edge::serve))
}
