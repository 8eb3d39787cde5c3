//! Telemetry: traces, metrics, health.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context as _, ensure};
use devstack::services;
use e2e::{Harness, Shop, wait_for};
use opentelemetry_proto::tonic::{
    collector::{
        logs::v1::{
            ExportLogsServiceRequest, ExportLogsServiceResponse,
            logs_service_server::{LogsService, LogsServiceServer},
        },
        metrics::v1::{
            ExportMetricsServiceRequest, ExportMetricsServiceResponse,
            metrics_service_server::{MetricsService, MetricsServiceServer},
        },
        trace::v1::{
            ExportTraceServiceRequest, ExportTraceServiceResponse,
            trace_service_server::{TraceService, TraceServiceServer},
        },
    },
    common::v1::any_value::Value as Attribute,
    resource::v1::Resource,
    trace::v1::Span,
};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, transport::Server};

use crate::{Outcome, close};

/// An OpenTelemetry collector that keeps everything it receives.
#[derive(Clone, Default)]
struct Collector {
    /// By the service that sent them.
    spans: Arc<Mutex<Vec<(String, Span)>>>,
    /// Services that sent metrics.
    metrics: Arc<Mutex<HashSet<String>>>,
    /// Services that sent logs.
    logs: Arc<Mutex<HashSet<String>>>,
}

fn service_name(resource: Option<Resource>) -> String {
    let attributes = resource
        .map(|resource| resource.attributes)
        .unwrap_or_default();
    let name = attributes
        .into_iter()
        .find(|attribute| attribute.key == "service.name");
    match name.and_then(|name| name.value?.value) {
        Some(Attribute::StringValue(name)) => name,
        _ => "unknown".to_owned(),
    }
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut kept = lock(&self.spans);
        for resource in request.into_inner().resource_spans {
            let service = service_name(resource.resource);
            let spans = resource
                .scope_spans
                .into_iter()
                .flat_map(|scope| scope.spans);
            kept.extend(spans.map(|span| (service.clone(), span)));
        }
        Ok(Response::new(Default::default()))
    }
}

#[tonic::async_trait]
impl MetricsService for Collector {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        let names = request
            .into_inner()
            .resource_metrics
            .into_iter()
            .map(|resource| service_name(resource.resource));
        lock(&self.metrics).extend(names);
        Ok(Response::new(Default::default()))
    }
}

#[tonic::async_trait]
impl LogsService for Collector {
    async fn export(
        &self,
        request: Request<ExportLogsServiceRequest>,
    ) -> Result<Response<ExportLogsServiceResponse>, Status> {
        let names = request
            .into_inner()
            .resource_logs
            .into_iter()
            .map(|resource| service_name(resource.resource));
        lock(&self.logs).extend(names);
        Ok(Response::new(Default::default()))
    }
}

impl Collector {
    /// Listens on a free port; returns the endpoint.
    async fn listen(&self) -> anyhow::Result<String> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let endpoint = format!("http://{}", listener.local_addr()?);
        let server = Server::builder()
            .add_service(TraceServiceServer::new(self.clone()))
            .add_service(MetricsServiceServer::new(self.clone()))
            .add_service(LogsServiceServer::new(self.clone()));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        Ok(endpoint)
    }

    fn trace(&self, id: &str) -> Vec<(String, Span)> {
        lock(&self.spans)
            .iter()
            .filter(|(_, span)| hex(&span.trace_id) == id)
            .cloned()
            .collect()
    }
}

fn lock<T>(kept: &Mutex<T>) -> MutexGuard<'_, T> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// From the customer's request to the notification, over HTTP, gRPC, outbox and broker: one trace,
/// one tree.
pub async fn one_order_is_one_trace(harness: &Harness) -> Outcome {
    let collector = Collector::default();
    let endpoint = collector.listen().await?;
    let mut settings = Vec::new();
    for service in services() {
        settings.push((service, "OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()));
        settings.push((service, "OTEL_BSP_SCHEDULE_DELAY", "100"));
        settings.push((service, "OTEL_METRIC_EXPORT_INTERVAL", "200"));
    }
    let shop = harness.open("one_trace", &settings).await?;
    let trace = trace_of_a_confirmed_order(&shop).await?;
    // The last link of the chain.
    let is_last = |(service, span): &(String, Span)| {
        service == "notification" && span.name == "order.confirmed.v1"
    };
    wait_for("the whole trace", async || {
        let spans = collector.trace(&trace);
        let services: BTreeSet<&str> = spans.iter().map(|(service, _)| service.as_str()).collect();
        Ok((services.len() == 5 && spans.iter().any(is_last)).then_some(()))
    })
    .await?;
    let mut errors = shop.warnings().await?;
    errors.retain(|line| !line.contains("\"WARN\""));
    ensure!(errors.is_empty(), "{errors:?}");
    let pairs = close(shop).await?;

    // The services have ended and exported everything.
    check_tree(&collector.trace(&trace))?;
    let metrics = lock(&collector.metrics).clone();
    let mut exporters = services().filter(|service| *service != "psp-sandbox");
    ensure!(
        exporters.all(|service| metrics.contains(service)),
        "metrics came from {metrics:?} only"
    );
    let logs = lock(&collector.logs).clone();
    ensure!(
        services().all(|service| logs.contains(service)),
        "logs came from {logs:?} only"
    );
    Ok(pairs)
}

async fn trace_of_a_confirmed_order(shop: &Shop) -> anyhow::Result<String> {
    let lines = [("SKU-0001", 1)];
    let order = shop.order_until(&lines, "tok_visa", "confirmed").await?;
    let id = order["id"].as_str().context("an order has an id")?;
    let path = format!("/api/v1/orders/{id}/timeline");
    let timeline = shop.customer.get(&path).await?;
    let trace = timeline["events"][0]["trace_id"].as_str();
    Ok(trace.context("an event has a trace")?.to_owned())
}

/// The customer's request is the only root, and each step is below the one that caused it.
fn check_tree(spans: &[(String, Span)]) -> anyhow::Result<()> {
    let names: BTreeMap<String, &str> = spans
        .iter()
        .map(|(_, span)| (hex(&span.span_id), span.name.as_str()))
        .collect();
    let roots: Vec<&str> = spans
        .iter()
        .filter(|(_, span)| !names.contains_key(&hex(&span.parent_span_id)))
        .map(|(_, span)| span.name.as_str())
        .collect();
    ensure!(
        roots == ["POST /api/v1/orders"],
        "expected one root, the customer's request: {roots:?} of {names:?}"
    );
    let chain = [
        "POST /api/v1/orders",
        "sagacity.order.v1.OrderService/CreateOrder",
        "order.created.v1",
        "payment.completed.v1",
        "inventory.reserved.v1",
        "order.confirmed.v1",
    ];
    for (expected, child) in std::iter::zip(chain, &chain[1..]) {
        let span = spans.iter().find(|(_, span)| span.name == *child);
        let parent = span.and_then(|(_, span)| names.get(&hex(&span.parent_span_id)).copied());
        ensure!(
            parent == Some(expected),
            "{child} should be below {expected}: {parent:?}"
        );
    }
    Ok(())
}

pub async fn metrics_and_health_are_served(harness: &Harness) -> Outcome {
    let shop = harness.open("metrics", &[]).await?;
    shop.order_until(&[("SKU-0001", 1)], "tok_visa", "confirmed")
        .await?;
    let client = client::http_client()?;
    let mut all = String::new();
    for service in services() {
        let admin = &shop.endpoints().admin[service];
        for path in ["livez", "readyz", "startupz"] {
            shop.until_served(service, path).await?;
        }
        let metrics = client
            .get(format!("{admin}/metrics"))
            .send()
            .await?
            .error_for_status()?
            .text()
            .await?;
        ensure!(
            metrics.contains(&format!("service_name=\"{service}\"")),
            "{service}: {metrics}"
        );
        all.push_str(&metrics);
    }
    let measured: BTreeSet<&str> = all
        .lines()
        .filter_map(|line| line.split(['{', ' ']).next())
        .filter(|name| !name.starts_with('#'))
        .collect();
    for name in shown()? {
        ensure!(
            measured.contains(name.as_str()) || NOT_YET_RECORDED.contains(&name.as_str()),
            "dashboard or alerts show {name}, which no service records: {measured:?}"
        );
    }
    close(shop).await
}

/// What has a value only after an incident.
const NOT_YET_RECORDED: [&str; 3] = [
    "messaging_consumer_paused_seconds",
    "messaging_outbox_set_aside_total",
    "notification_mails_total",
];

/// The metrics that the dashboard and the alerts show.
fn shown() -> anyhow::Result<BTreeSet<String>> {
    let deploy = devstack::workspace().join("deploy");
    let dashboard = std::fs::read(deploy.join("observability/sagacity.json"))?;
    let dashboard: serde_json::Value = serde_json::from_slice(&dashboard)?;
    let alerts = deploy.join("k8s/components/monitoring/alerts.yaml");
    let alerts = std::fs::read_to_string(alerts)?;
    let panels = dashboard["panels"]
        .as_array()
        .context("a dashboard has panels")?;
    let targets = panels
        .iter()
        .filter_map(|panel| panel["targets"].as_array())
        .flatten();
    let metrics = targets.filter(|target| target["datasource"]["type"] == "prometheus");
    let expressions = metrics.filter_map(|target| target["expr"].as_str());
    let words = expressions
        .chain([alerts.as_str()])
        .flat_map(|expression| expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_'));
    let labels = ["http_route", "http_response_status_code"];
    let names = words.filter(|word| {
        let prefixes = ["http_", "messaging_", "notification_"];
        prefixes.iter().any(|prefix| word.starts_with(prefix))
    });
    let names: BTreeSet<String> = names
        .filter(|name| !labels.contains(name))
        .map(str::to_owned)
        .collect();
    ensure!(names.len() > 5, "only {names:?} are shown");
    Ok(names)
}
