//! Logs, traces and metrics. Logs are pretty on a terminal and JSON otherwise. Metrics are always
//! collected and served at `/metrics`. Traces, metrics and logs are exported by OTLP when
//! `OTEL_EXPORTER_OTLP_ENDPOINT` is set; otherwise no span is recorded.

use std::{io::IsTerminal as _, sync::mpsc};

use anyhow::Context as _;
use opentelemetry::{Key, KeyValue, global, trace::TracerProvider as _};
use opentelemetry_appender_tracing::layer::OpenTelemetryTracingBridge;
use opentelemetry_otlp::{
    LogExporter, MetricExporter, SpanExporter, WithTonicConfig as _,
    tonic_types::transport::ClientTlsConfig,
};
use opentelemetry_sdk::{
    Resource, logs::SdkLoggerProvider, metrics::SdkMeterProvider,
    propagation::TraceContextPropagator, trace::SdkTracerProvider,
};
use prometheus::Registry;
use tracing_subscriber::{
    EnvFilter, Layer, filter::filter_fn, layer::SubscriberExt as _, util::SubscriberInitExt as _,
};

use crate::shutdown;

/// OpenTelemetry's own logs only at warn and above.
const DEFAULT_FILTER: &str = "info,opentelemetry=warn,opentelemetry_sdk=warn";
const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";

/// The telemetry of a process. Dropping it exports what is left; keep it until the end of `main`.
#[derive(Debug)]
pub(crate) struct Telemetry {
    tracer: Option<SdkTracerProvider>,
    logger: Option<SdkLoggerProvider>,
    meter: SdkMeterProvider,
    /// What `/metrics` serves.
    pub(crate) registry: Registry,
}

/// Sets up telemetry for this process. Call once, inside the runtime.
///
/// # Errors
/// When `LOG_FORMAT`, `RUST_LOG` or the exporter's settings are wrong.
pub(crate) fn init(service: &'static str) -> anyhow::Result<Telemetry> {
    let export = std::env::var_os(ENDPOINT).is_some_and(|endpoint| !endpoint.is_empty());
    let resource = resource(service);
    let tracer = export.then(|| tracer(resource.clone())).transpose()?;
    let layer = tracer.as_ref().map(|provider| {
        global::set_text_map_propagator(TraceContextPropagator::new());
        tracing_opentelemetry::layer().with_tracer(provider.tracer("sagacity"))
    });
    let logger = export.then(|| logger(resource.clone())).transpose()?;
    let exported_logs = logger.as_ref().map(|provider| {
        // The exporter's own logs must not be exported: exporting them would log more.
        OpenTelemetryTracingBridge::new(provider).with_filter(filter_fn(|metadata| {
            !metadata.target().starts_with("opentelemetry")
        }))
    });
    let filter =
        EnvFilter::try_new(std::env::var("RUST_LOG").unwrap_or_else(|_| DEFAULT_FILTER.to_owned()))
            .context("RUST_LOG: expected a filter like info or info,order=debug")?;
    let logs = if json()? {
        tracing_subscriber::fmt::layer()
            .json()
            .flatten_event(true)
            .with_target(false)
            .boxed()
    } else {
        tracing_subscriber::fmt::layer()
            .with_target(false)
            .with_ansi(colour())
            .boxed()
    };
    tracing_subscriber::registry()
        .with(filter)
        .with(layer)
        .with(logs)
        .with(exported_logs)
        .try_init()
        .context("set up logging")?;
    let registry = Registry::new();
    let meter = meter(&registry, export, resource)?;
    global::set_meter_provider(meter.clone());
    Ok(Telemetry {
        tracer,
        logger,
        meter,
        registry,
    })
}

fn resource(service: &'static str) -> Resource {
    const INSTANCE: &str = "service.instance.id";
    let by_environment = Resource::builder().with_service_name(service).build();
    if by_environment
        .get(&Key::from_static_str(INSTANCE))
        .is_some()
    {
        return by_environment;
    }
    // The counters of two replicas would be taken for one that goes back now and then.
    let instance = KeyValue::new(INSTANCE, uuid::Uuid::new_v4().to_string());
    let resource = Resource::builder().with_service_name(service);
    resource.with_attribute(instance).build()
}

fn json() -> anyhow::Result<bool> {
    match std::env::var("LOG_FORMAT").as_deref() {
        Ok("json") => Ok(true),
        Ok("pretty") => Ok(false),
        Ok("auto" | "") | Err(_) => Ok(!std::io::stdout().is_terminal()),
        Ok(other) => anyhow::bail!("LOG_FORMAT is {other:?}: expected auto, pretty or json"),
    }
}

/// <https://no-color.org>; `CLICOLOR_FORCE` for a parent process that passes this output on to its
/// terminal.
fn colour() -> bool {
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    !set("NO_COLOR") && (set("CLICOLOR_FORCE") || std::io::stdout().is_terminal())
}

fn tracer(resource: Resource) -> anyhow::Result<SdkTracerProvider> {
    let exporter = SpanExporter::builder()
        .with_tonic()
        .with_tls_config(tls())
        .build()
        .context(ENDPOINT)?;
    Ok(SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_resource(resource)
        .build())
}

fn logger(resource: Resource) -> anyhow::Result<SdkLoggerProvider> {
    let exporter = LogExporter::builder()
        .with_tonic()
        .with_tls_config(tls())
        .build()
        .context(ENDPOINT)?;
    Ok(SdkLoggerProvider::builder()
        .with_batch_exporter(exporter)
        .with_resource(resource)
        .build())
}

/// For a collector at https://: the authorities of the system, or those in `SSL_CERT_FILE`.
fn tls() -> ClientTlsConfig {
    ClientTlsConfig::new().with_enabled_roots()
}

fn meter(
    registry: &Registry,
    export: bool,
    resource: Resource,
) -> anyhow::Result<SdkMeterProvider> {
    let prometheus = opentelemetry_prometheus::exporter()
        .with_registry(registry.clone())
        .build()?;
    let mut builder = SdkMeterProvider::builder()
        .with_reader(prometheus)
        .with_resource(resource);
    if export {
        builder = builder.with_periodic_exporter(
            MetricExporter::builder()
                .with_tonic()
                .with_tls_config(tls())
                .build()
                .context(ENDPOINT)?,
        );
    }
    Ok(builder.build())
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        // When the collector is unavailable at the end, there is nobody left to report it to.
        if let Some(tracer) = &self.tracer {
            let _unsent = tracer.shutdown_with_timeout(shutdown::EXPORT);
        }
        if let Some(logger) = &self.logger {
            let _unsent = logger.shutdown_with_timeout(shutdown::EXPORT);
        }
        // Its own limit is five seconds, whatever is asked for.
        let meter = self.meter.clone();
        let (done, ended) = mpsc::channel();
        std::thread::spawn(move || done.send(meter.shutdown()));
        let _unsent = ended.recv_timeout(shutdown::EXPORT);
    }
}
