//! A process from its first line to its exit code.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::{
    Arg,
    error::{ContextKind, ContextValue},
};
pub use prometheus::Registry;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::{
    Listeners, healthcheck,
    settings::Settings,
    telemetry::{self, Telemetry},
};

/// Runs a service: settings, telemetry, signals, listeners, `run`. Exit code 0 after SIGTERM or
/// Ctrl-C, 2 for a wrong setting, 1 for anything else, with the chain of causes in the log, once.
///
/// `<service> healthcheck` asks the one that runs here whether it is ready instead: see
/// [`crate::healthcheck`].
pub fn main<S, F>(
    service: &'static str,
    run: impl FnOnce(S, Listeners, Registry, CancellationToken) -> F,
) -> ExitCode
where
    S: Settings,
    F: Future<Output = anyhow::Result<()>>,
{
    if let Some(ready) = healthcheck::asked_for::<S>() {
        return ready;
    }
    let settings = S::try_parse().unwrap_or_else(|error| without_secret::<S>(error).exit());
    let started = runtime().and_then(|runtime| {
        let _guard = runtime.enter();
        Ok((telemetry::init(service)?, runtime))
    });
    match started {
        Ok((telemetry, runtime)) => runtime.block_on(serve(service, settings, telemetry, run)),
        Err(error) => {
            // There is no log yet.
            eprintln!("{service}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// What clap says of a wrong setting, without its value where that is a secret.
fn without_secret<S: Settings>(mut error: clap::Error) -> clap::Error {
    let about = |argument: &Arg| {
        let name = ContextValue::String(argument.to_string());
        argument.is_hide_env_values_set() && error.get(ContextKind::InvalidArg) == Some(&name)
    };
    let mut command = S::command();
    command.build();
    if command.get_arguments().any(about) {
        error.insert(
            ContextKind::InvalidValue,
            ContextValue::String("(hidden)".to_owned()),
        );
    }
    error
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    // The number of threads follows TOKIO_WORKER_THREADS, else the cores.
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("start the runtime")
}

async fn serve<S, F>(
    service: &'static str,
    settings: S,
    telemetry: Telemetry,
    run: impl FnOnce(S, Listeners, Registry, CancellationToken) -> F,
) -> ExitCode
where
    S: Settings,
    F: Future<Output = anyhow::Result<()>>,
{
    let result = async {
        let shutdown = on_signal()?;
        let listeners = Listeners::bind(settings.addresses()).await?;
        run(settings, listeners, telemetry.registry.clone(), shutdown).await
    }
    .await;
    match result {
        Ok(()) => {
            tracing::info!(service, "stopped");
            ExitCode::SUCCESS
        }
        Err(error) => {
            tracing::error!(service, error = format!("{error:#}"), "stopped");
            ExitCode::FAILURE
        }
    }
}

/// A token that SIGTERM and Ctrl-C cancel.
fn on_signal() -> anyhow::Result<CancellationToken> {
    let shutdown = CancellationToken::new();
    let (mut term, mut int) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    let token = shutdown.clone();
    tokio::spawn(async move {
        tokio::select! { _ = term.recv() => {} _ = int.recv() => {} }
        token.cancel();
    });
    Ok(shutdown)
}
