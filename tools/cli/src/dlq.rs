//! `sagacity dlq`: look at dead letters, send them back to the service that gave up, or discard
//! them.

use anyhow::{Context as _, ensure};
use async_nats::{ConnectOptions, jetstream};
use clap::{Args, Subcommand};
use contracts::{Service, dead_letter::AUDIT};
use dead_letters::{Act, DeadLetters, Filter, Letter, Task};
use devstack::{
    Endpoints,
    jetstream::{connect, context, read_stream},
};
use serde_json::json;

#[derive(Args, Clone, Debug)]
pub(crate) struct Dlq {
    /// Broker of a system that `up` did not start [default: NATS_URL, unless --state or --target
    /// is given]
    #[arg(long, global = true, value_name = "URL")]
    nats_url: Option<String>,
    #[command(subcommand)]
    act: Command,
}

#[derive(Subcommand, Clone, Debug)]
enum Command {
    /// List dead letters, oldest first
    List {
        #[command(flatten)]
        conditions: Conditions,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print a dead letter with its headers, its reason and its payload
    Show {
        /// Its sequence, as `list` prints it, or the id of its event
        id: String,
    },
    /// Send events back to the service that gave up
    Redrive(Selection),
    /// Delete dead letters for good
    Discard(Selection),
    /// List what operators did
    Audit,
}

/// Which dead letters; all conditions must hold.
#[derive(Args, Clone, Debug)]
struct Conditions {
    /// Sequence or event id; may be repeated
    #[arg(long)]
    id: Vec<String>,
    /// The service that gave up
    #[arg(long, value_parser = service)]
    service: Option<Service>,
    /// Text that the reason contains
    #[arg(long)]
    reason: Option<String>,
}

#[derive(Args, Clone, Debug)]
struct Selection {
    #[command(flatten)]
    conditions: Conditions,
    /// All dead letters
    #[arg(long, conflicts_with_all = ["id", "service", "reason"])]
    all: bool,
    /// Print what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Who does it, for the audit
    #[arg(long, env = "USER", default_value = "unknown")]
    by: String,
}

fn service(name: &str) -> Result<Service, String> {
    let found = Service::ALL.into_iter().find(|known| known.name() == name);
    found.ok_or_else(|| {
        format!(
            "expected one of {}",
            Service::ALL.map(Service::name).join(", ")
        )
    })
}

impl Conditions {
    fn filter(&self) -> Filter {
        Filter {
            ids: self.id.clone(),
            reason: self.reason.clone(),
        }
    }
}

impl Dlq {
    /// Returns false when a selected dead letter could not be handled or does not exist; the others
    /// then were handled. `names_system`: a flag says which system is meant.
    pub(crate) async fn run(
        &self,
        endpoints: impl FnOnce() -> anyhow::Result<Endpoints>,
        names_system: bool,
    ) -> anyhow::Result<bool> {
        // A flag is about this command, an exported variable about the whole shell.
        let exported = || std::env::var("NATS_URL").ok().filter(|_| !names_system);
        let url = match self.nats_url.clone().or_else(exported) {
            Some(url) => url,
            None => endpoints()?.nats,
        };
        let client = connect(ConnectOptions::new().name("sagacity dlq"), &url).await?;
        let jetstream = context(client);
        match &self.act {
            Command::List { conditions, json } => list(jetstream, conditions, *json).await?,
            Command::Show { id } => show(jetstream, id).await?,
            Command::Redrive(selection) => {
                return perform(jetstream, selection, Act::Redrive).await;
            }
            Command::Discard(selection) => {
                return perform(jetstream, selection, Act::Discard).await;
            }
            Command::Audit => {
                for line in read_stream(&jetstream, AUDIT).await? {
                    println!("{}", String::from_utf8_lossy(&line.payload));
                }
            }
        }
        Ok(true)
    }
}

async fn list(
    jetstream: jetstream::Context,
    conditions: &Conditions,
    json: bool,
) -> anyhow::Result<()> {
    let dead_letters = DeadLetters::new(jetstream, conditions.service);
    let filter = conditions.filter();
    let letters = dead_letters.select(&filter, 0, usize::MAX).await?;
    if json {
        println!("{}", serde_json::to_string_pretty(&letters)?);
    }
    for letter in letters.iter().filter(|_| !json) {
        println!(
            "{:>6}  {:<12}  {:<24}  {:<36}  {:<36}  {}",
            letter.sequence,
            letter.service,
            letter.subject,
            letter.event_id,
            letter.order_id,
            letter.reason,
        );
    }
    if !json {
        println!("{} dead letters", letters.len());
    }
    let is_named = |id: &&String| letters.iter().any(|letter| letter.is_named(id));
    let missing = filter.ids.iter().find(|id| !is_named(id));
    ensure!(
        missing.is_none(),
        "there is no dead letter {}",
        missing.map_or("", String::as_str)
    );
    Ok(())
}

async fn show(jetstream: jetstream::Context, id: &str) -> anyhow::Result<()> {
    let found = DeadLetters::new(jetstream, None).find(id).await?;
    ensure!(!found.is_empty(), "there is no dead letter {id}");
    for whole in &found {
        println!("sequence: {}", whole.letter.sequence);
        println!("service: {}", whole.letter.service);
        println!("subject: {}", whole.letter.subject);
        for (name, values) in whole.headers.iter() {
            for value in values {
                println!("{name}: {value}");
            }
        }
        match whole.event() {
            Some(event) => println!("\n{event:#?}\n"),
            None => println!(
                "\n{} bytes that are no event of this version\n",
                whole.payload.len()
            ),
        }
    }
    Ok(())
}

/// Redrives or discards what is selected.
async fn perform(
    jetstream: jetstream::Context,
    selection: &Selection,
    act: Act,
) -> anyhow::Result<bool> {
    let filter = selection.conditions.filter();
    let service = selection.conditions.service;
    ensure!(
        selection.all || service.is_some() || !filter.selects_all(),
        "no dead letter is selected: give --id, --service, --reason or --all"
    );
    let task = Task {
        act,
        filter,
        dry_run: selection.dry_run,
        by: selection.by.clone(),
        key: None,
    };
    let would = if selection.dry_run { "would " } else { "" };
    let mut tell = |letter: &Letter, done: anyhow::Result<()>| match done {
        Ok(()) => println!("{would}{act} {}", json!(letter)),
        Err(error) => eprintln!("cannot {act} dead letter {}: {error:#}", letter.sequence),
    };
    let dead_letters = DeadLetters::new(jetstream, service);
    if act == Act::Redrive && !selection.dry_run {
        // Not fatal: if the stream is full, each redrive fails and names the reason.
        if let Err(error) = dead_letters.make_room().await {
            eprintln!("cannot delete redriven events that were handled: {error:#}");
        }
    }
    let summary = dead_letters.perform(&task, usize::MAX, &mut tell).await;
    let summary = summary.with_context(|| format!("cannot {act}; nothing is done"))?;
    for id in &summary.not_found {
        eprintln!("there is no dead letter {id} among those selected");
    }
    println!(
        "{} dead letters selected, {} failed, {} ids not found",
        summary.selected,
        summary.failed,
        summary.not_found.len()
    );
    Ok(summary.is_complete())
}
