//! `sagacity up`: the whole system on this machine, until Ctrl-C.

use std::{
    io::{IsTerminal as _, Write as _},
    path::Path,
    time::Instant,
};

use anyhow::{Context as _, ensure};
use clap::Args;
use devstack::{
    Durability, Endpoints, Logs, Options, Ports, Reaper, SERVICES, Stack, programs, wipe,
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};

/// How to start the system.
#[derive(Args, Clone, Debug)]
pub struct Up {
    /// Start empty: removes what an earlier run has kept
    #[arg(long)]
    pub fresh: bool,
    /// Use this PostgreSQL server instead of a private one: an administrator's address
    #[arg(
        long,
        env = "DATABASE",
        value_name = "postgres://USER:PASSWORD@HOST:PORT/postgres"
    )]
    pub database: Option<String>,
    /// Use this NATS server instead of a private one
    #[arg(long, env = "NATS", value_name = "nats://HOST:PORT")]
    pub nats: Option<String>,
    /// Listen on free ports instead of the documented ones
    #[arg(long)]
    pub free_ports: bool,
    /// A setting for one service, for example order:ORDER_DEADLINE_SECONDS=5; may be given several
    /// times
    #[arg(long = "set", value_name = "SERVICE:NAME=VALUE", value_parser = setting)]
    pub settings: Vec<(String, String, String)>,
}

fn setting(text: &str) -> Result<(String, String, String), String> {
    let expected = || {
        format!(
            "expected SERVICE:NAME=VALUE with one of the services {}",
            SERVICES.join(", ")
        )
    };
    let (service, rest) = text.split_once(':').ok_or_else(expected)?;
    let (name, value) = rest.split_once('=').ok_or_else(expected)?;
    if !SERVICES.contains(&service) {
        return Err(expected());
    }
    Ok((service.to_owned(), name.to_owned(), value.to_owned()))
}

impl Up {
    /// Runs until Ctrl-C, SIGTERM or the end of a service.
    pub async fn run(self, state: &Path) -> anyhow::Result<()> {
        // From here on a signal ends this in good order.
        let (mut int, mut term) = (
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
        );
        let mut interrupted =
            async || tokio::select! { _ = int.recv() => {}, _ = term.recv() => {} };
        let programs = std::env::current_exe()?
            .parent()
            .context("a program lies in a directory")?
            .to_owned();
        tokio::select! {
            built = programs::build(&programs, &[]) => built?,
            () = interrupted() => return Ok(()),
        }
        if self.fresh {
            wipe(state)?;
        }
        std::fs::create_dir_all(state).with_context(|| format!("make {}", state.display()))?;
        let (lines, mut printed) = mpsc::unbounded_channel::<(String, String)>();
        let options = Options {
            state: state.to_owned(),
            programs,
            ports: if self.free_ports {
                Ports::free()?
            } else {
                Ports::default()
            },
            durability: Durability::Durable,
            database: self.database,
            database_prefix: String::new(),
            nats: self.nats,
            settings: with_log_format(self.settings),
            logs: Logs::Lines(lines),
            server_logs: Logs::Directory(state.join("logs")),
        };
        let colours = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        let printer = tokio::spawn(async move {
            while let Some((name, line)) = printed.recv().await {
                print(&name, &line, colours);
            }
        });
        let began = Instant::now();
        let starting = Stack::start(options, Reaper::new()?);
        let mut stack = tokio::select! {
            started = starting => started?,
            // Dropping what has been started kills it.
            () = interrupted() => return Ok(()),
        };
        stack.endpoints().write(state)?;
        welcome(&stack, state, began);
        let mut ticks = tokio::time::interval(std::time::Duration::from_millis(500));
        let died = loop {
            tokio::select! {
                () = interrupted() => break None,
                _ = ticks.tick() => if let Some(ended) = stack.ended() { break Some(ended) },
            }
        };
        Endpoints::remove(state);
        println!("stopping ...");
        let stopped = stack.stop().await;
        printer.abort();
        ensure!(
            died.is_none(),
            "{}; its last lines are above",
            died.unwrap_or_default()
        );
        stopped?;
        println!("stopped; state is kept in {}", state.display());
        Ok(())
    }
}

/// On a terminal the services' lines should look as they do there.
fn with_log_format(mut settings: Vec<(String, String, String)>) -> Vec<(String, String, String)> {
    if std::io::stdout().is_terminal() {
        for service in SERVICES {
            settings.insert(
                0,
                (
                    service.to_owned(),
                    "LOG_FORMAT".to_owned(),
                    "pretty".to_owned(),
                ),
            );
            settings.insert(
                0,
                (
                    service.to_owned(),
                    "CLICOLOR_FORCE".to_owned(),
                    "1".to_owned(),
                ),
            );
        }
    }
    settings
}

fn print(name: &str, line: &str, colours: bool) {
    let mut out = std::io::stdout().lock();
    let colour = SERVICES
        .iter()
        .position(|service| *service == name)
        .unwrap_or_default()
        + 31;
    // Nobody reads any more; the services go on.
    let _closed = match colours {
        true => writeln!(out, "\x1b[{colour}m{name:>12} |\x1b[0m {line}"),
        false => writeln!(out, "{name:>12} | {line}"),
    };
}

fn welcome(stack: &Stack, state: &Path, began: Instant) {
    let endpoints = stack.endpoints();
    println!("\nready after {:.1} s\n", began.elapsed().as_secs_f64());
    println!(
        "  {:<14} {}  (documentation at {}/docs)",
        "gateway", endpoints.gateway, endpoints.gateway
    );
    println!("  {:<14} {}", "psp-sandbox", endpoints.provider);
    println!("  {:<14} {}", "nats", endpoints.nats);
    for (service, url) in &endpoints.databases {
        println!("  {:<14} {url}", format!("{service} (db)"));
    }
    for (service, after) in stack.ready_after() {
        let url = endpoints.admin.get(*service).map_or("", String::as_str);
        println!(
            "  {service:<14} {url}/readyz  {url}/metrics  (ready {} ms after its start)",
            after.as_millis()
        );
    }
    println!("  {:<14} {}", "state", state.display());
    let (gateway, customer) = (&endpoints.gateway, "01890000-0000-7000-8000-000000000001");
    println!("\ntry:");
    println!("  curl '{gateway}/api/v1/products?limit=3'");
    println!(
        "  curl -H 'X-Customer-Id: {customer}' -H \"Idempotency-Key: $(date +%s%N)\" -H 'Content-Type: application/json' \
         -d '{{\"items\":[{{\"sku\":\"SKU-0001\",\"quantity\":2}}],\"payment_method\":\"tok_visa\"}}' {gateway}/api/v1/orders"
    );
    println!("  curl -H 'X-Customer-Id: {customer}' '{gateway}/api/v1/orders?limit=3'");
    println!("or, in another terminal: cargo sagacity order\n\nCtrl-C stops everything.\n");
}
