//! `sagacity up`: starts the whole system on this machine and stops it at Ctrl-C.

use std::{
    io::{IsTerminal as _, Write as _},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use devstack::{
    Certificates, Durability, Endpoints, Logs, Options, Ports, Reaper, Stack, programs, services,
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};

#[derive(Args, Clone, Debug)]
pub(crate) struct Up {
    /// Start empty: remove the data of earlier runs. What other servers keep is not removed
    #[arg(long, conflicts_with_all = ["database", "nats"])]
    fresh: bool,
    /// Administrator's URL of a PostgreSQL server to use instead of a private one
    #[arg(
        long,
        env = "DATABASE",
        value_name = "postgres://USER:PASSWORD@HOST:PORT/postgres"
    )]
    database: Option<String>,
    /// URL of a NATS server to use instead of a private one
    #[arg(long, env = "NATS", value_name = "nats://HOST:PORT")]
    nats: Option<String>,
    /// Listen on free ports instead of the documented ones
    #[arg(long)]
    free_ports: bool,
    /// Three NATS servers, three PostgreSQL servers and two processes of each service, on empty
    /// databases: kill any of them, and it is replaced
    #[arg(long, conflicts_with_all = ["database", "nats"])]
    ha: bool,
    /// Mutual TLS between all processes, with a development authority in the state directory
    #[arg(long, conflicts_with_all = ["database", "nats"])]
    tls: bool,
    /// A setting of one service, for example order:ORDER_DEADLINE_SECONDS=5; may be repeated
    #[arg(long = "set", value_name = "SERVICE:NAME=VALUE", value_parser = setting)]
    settings: Vec<Setting>,
}

/// How long servers may fail to be replaced: one may end while another one is replaced.
const HEAL_TIMEOUT: Duration = Duration::from_secs(60);

/// (service, name, value)
type Setting = (String, String, String);

fn setting(text: &str) -> Result<Setting, String> {
    let parse = || {
        let (service, rest) = text.split_once(':')?;
        let (name, value) = rest.split_once('=')?;
        let known = services().any(|known| known == service);
        known.then(|| (service.to_owned(), name.to_owned(), value.to_owned()))
    };
    parse().ok_or_else(|| {
        let names: Vec<&str> = services().collect();
        let names = names.join(", ");
        format!("expected SERVICE:NAME=VALUE with one of the services {names}")
    })
}

impl Up {
    /// Runs until Ctrl-C, SIGTERM or the end of a service.
    pub(crate) async fn run(self, state: &Path) -> anyhow::Result<()> {
        ensure!(
            !self.ha || self.fresh || !state.exists(),
            "--ha starts empty, and {} has data of an earlier run: add --fresh to remove it",
            state.display()
        );
        // From here on a signal no longer ends the process by itself, but by an orderly stop.
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut stop_requested =
            async || tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} };
        let programs = std::env::current_exe()?;
        let programs = programs.parent().context("a program is in a directory")?;
        tokio::select! {
            built = programs::build(programs, &[]) => built?,
            () = stop_requested() => return Ok(()),
        }
        let _in_use = devstack::state::claim(state, self.fresh, &self.kind())?;
        let (lines, mut received) = mpsc::unbounded_channel::<(String, String)>();
        let colours = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        let printer = tokio::spawn(async move {
            while let Some((name, line)) = received.recv().await {
                print(&name, &line, colours);
            }
        });
        let options = self.options(state, programs, Logs::Lines(lines))?;
        let began = Instant::now();
        let mut stack = tokio::select! {
            started = Stack::start(options, Reaper::new()?) => started?,
            // Dropping the future kills what it has started.
            () = stop_requested() => return Ok(()),
        };
        stack.endpoints().write(state)?;
        welcome(&stack, state, began);
        let ended = tokio::select! {
            ended = watch(&mut stack, state) => Some(ended),
            () = stop_requested() => None,
        };
        Endpoints::remove(state);
        println!("stopping ...");
        let stopped = stack.stop().await;
        printer.abort();
        if let Some(ended) = ended {
            bail!(ended);
        }
        stopped?;
        println!("stopped; the data is kept in {}", state.display());
        Ok(())
    }

    /// What the data in the state directory belongs to.
    fn kind(&self) -> String {
        let server = |name: &str, url: &Option<String>| {
            let url = url.as_ref()?;
            let host = url.rsplit('@').next().unwrap_or_default();
            Some(format!("--{name} {}", host.trim_start_matches("nats://")))
        };
        let servers = [("database", &self.database), ("nats", &self.nats)];
        let servers = servers.iter().filter_map(|(name, url)| server(name, url));
        let options: Vec<_> = self
            .ha
            .then(|| "--ha".to_owned())
            .into_iter()
            .chain(servers)
            .collect();
        match options.is_empty() {
            true => "a system with its own servers".to_owned(),
            false => format!("a system with {}", options.join(" ")),
        }
    }

    fn options(self, state: &Path, programs: &Path, logs: Logs) -> anyhow::Result<Options> {
        Ok(Options {
            state: state.to_owned(),
            programs: programs.to_owned(),
            ports: match self.free_ports {
                true => Ports::free()?,
                false => Ports::default(),
            },
            durability: Durability::Durable,
            database: self.database,
            database_prefix: String::new(),
            nats: self.nats,
            certificates: match self.tls {
                true => Some(Certificates::issue(&state.join("certificates"), 0o600)?),
                false => None,
            },
            single_role: false,
            highly_available: self.ha,
            settings: with_log_format(self.settings),
            logs,
            server_logs: Logs::Directory(state.join("logs")),
        })
    }
}

/// Waits until a process ends that is not replaced, and returns what happened. In a highly
/// available system all are replaced; a failure to do so may pass.
async fn watch(stack: &mut Stack, state: &Path) -> String {
    let mut ticks = tokio::time::interval(Duration::from_millis(500));
    let mut failing_since = None;
    loop {
        ticks.tick().await;
        if !stack.is_highly_available() {
            match stack.ended() {
                Some(ended) => return ended,
                None => continue,
            }
        }
        let healed = async {
            let done = stack.heal().await?;
            if !done.is_empty() {
                println!("{}", done.join("\n"));
                // With the new process ids.
                stack.endpoints().write(state)?;
            }
            anyhow::Ok(())
        };
        match healed.await {
            Ok(()) => failing_since = None,
            Err(error) => {
                let since = *failing_since.get_or_insert_with(Instant::now);
                if since.elapsed() > HEAL_TIMEOUT {
                    return format!("what has ended could not be replaced: {error:#}");
                }
                println!("what has ended could not be replaced; trying again: {error:#}");
            }
        }
    }
}

/// On a terminal the services log as if they wrote to it themselves. What the user sets comes
/// last and wins.
fn with_log_format(settings: Vec<Setting>) -> Vec<Setting> {
    let is_terminal = std::io::stdout().is_terminal();
    let formats = services().filter(|_| is_terminal).flat_map(|service| {
        [("LOG_FORMAT", "pretty"), ("CLICOLOR_FORCE", "1")]
            .map(|(name, value)| (service.to_owned(), name.to_owned(), value.to_owned()))
    });
    formats.chain(settings).collect()
}

fn print(name: &str, line: &str, colours: bool) {
    let position = services().position(|service| service == name);
    // The first of the six colours of a terminal, red, is 31.
    let colour = 31 + position.unwrap_or_default() % 6;
    let mut out = std::io::stdout().lock();
    // A closed terminal or pipe must not end the services.
    let _closed = match colours {
        true => writeln!(out, "\x1b[{colour}m{name:>12} |\x1b[0m {line}"),
        false => writeln!(out, "{name:>12} | {line}"),
    };
}

fn welcome(stack: &Stack, state: &Path, began: Instant) {
    let Endpoints {
        gateway,
        provider,
        nats,
        databases,
        admin,
        ..
    } = stack.endpoints();
    println!("\nready after {:.1} s\n", began.elapsed().as_secs_f64());
    let row = |name: &str, text: &str| println!("  {name:<17} {text}");
    row(
        "gateway",
        &format!("{gateway}  (documentation: {gateway}/docs)"),
    );
    row("psp-sandbox", provider);
    row("nats", nats);
    for (service, url) in databases {
        row(&format!("{service} (db)"), url);
    }
    for (service, after) in stack.ready_after() {
        let url = admin.get(*service).map_or("", String::as_str);
        let after = after.as_millis();
        row(
            service,
            &format!("{url}/readyz  {url}/metrics  (ready after {after} ms)"),
        );
    }
    row("state", &state.display().to_string());
    let customer = "-H \"Authorization: Bearer $TOKEN\"";
    let order = r#"{"items":[{"sku":"SKU-0001","quantity":2}],"payment_method":"tok_visa"}"#;
    println!("\ntry:");
    println!("  curl '{gateway}/api/v1/products?limit=3'");
    println!("  TOKEN=$(cargo sagacity token)");
    println!(
        "  curl {customer} -H \"Idempotency-Key: $(date +%s%N)\" \
         -H 'Content-Type: application/json' -d '{order}' {gateway}/api/v1/orders"
    );
    println!("  curl {customer} '{gateway}/api/v1/orders?limit=3'");
    println!("or, in another terminal: cargo sagacity order\n\nCtrl-C stops everything.\n");
}
