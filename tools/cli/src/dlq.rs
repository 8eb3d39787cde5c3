//! `sagacity dlq`: look at dead letters, send them back to the service that gave up, or discard
//! them.
//!
//! A redriven event goes to a stream that only its service consumes, and passes its inbox: it is
//! applied once, even if it is redriven twice. The dead letter is deleted after the broker has the
//! event; a crash in between leaves both.

use anyhow::{Context as _, bail, ensure};
use async_nats::{
    ConnectOptions, HeaderMap,
    header::NATS_MESSAGE_ID,
    jetstream::{self, stream::Stream},
};
use clap::{Args, Subcommand};
use contracts::{
    Event, Subject,
    dead_letter::{AUDIT, AUDIT_SUBJECT, REDRIVE, STREAM, header},
    header as event_header,
};
use devstack::{
    Endpoints,
    jetstream::{StreamMessage, connect, publish, read_stream},
};
use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

#[derive(Args, Clone, Debug)]
pub(crate) struct Dlq {
    /// Broker of a system that `up` did not start
    #[arg(long, env = "NATS_URL", global = true, value_name = "URL")]
    nats_url: Option<String>,
    #[command(subcommand)]
    act: Act,
}

#[derive(Subcommand, Clone, Debug)]
enum Act {
    /// List dead letters, oldest first
    List {
        #[command(flatten)]
        filter: Filter,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print one dead letter with its headers, its reason and its payload
    Show {
        /// Its sequence, as `list` prints it
        sequence: u64,
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
struct Filter {
    /// Sequence or event id; may be repeated
    #[arg(long)]
    id: Vec<String>,
    /// The service that gave up
    #[arg(long)]
    service: Option<String>,
    /// Text that the reason contains
    #[arg(long)]
    reason: Option<String>,
}

#[derive(Args, Clone, Debug)]
struct Selection {
    #[command(flatten)]
    filter: Filter,
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

impl Dlq {
    /// Returns false when a selected dead letter could not be handled; the others then were.
    pub(crate) async fn run(
        &self,
        endpoints: impl FnOnce() -> anyhow::Result<Endpoints>,
    ) -> anyhow::Result<bool> {
        let url = match &self.nats_url {
            Some(url) => url.clone(),
            None => endpoints()?.nats,
        };
        let client = connect(ConnectOptions::new().name("sagacity dlq"), &url).await?;
        let jetstream = jetstream::new(client);
        match &self.act {
            Act::List { filter, json } => list(&jetstream, filter, *json).await?,
            Act::Show { sequence } => show(&jetstream, *sequence).await?,
            Act::Redrive(selection) => return act(&jetstream, selection, "redrive").await,
            Act::Discard(selection) => return act(&jetstream, selection, "discard").await,
            Act::Audit => {
                for line in read_stream(&jetstream, AUDIT).await? {
                    println!("{}", String::from_utf8_lossy(&line.payload));
                }
            }
        }
        Ok(true)
    }
}

/// A dead letter.
struct Letter(StreamMessage);

impl Letter {
    fn header(&self, name: &str) -> &str {
        let headers = self.0.headers.as_ref();
        let value = headers.and_then(|headers| headers.get(name));
        value.map_or("", |value| value.as_str())
    }

    fn service(&self) -> &str {
        self.header(header::SERVICE)
    }

    /// The subject that the event was published on.
    fn event_subject(&self) -> &str {
        let prefix = format!("dlq.{}.", self.service());
        self.0.subject.strip_prefix(&prefix).unwrap_or_default()
    }

    fn describe(&self) -> Value {
        json!({
            "sequence": self.0.sequence,
            "service": self.service(),
            "subject": self.event_subject(),
            "event_id": self.header(event_header::ID),
            "order_id": self.header(event_header::SUBJECT),
            "attempts": self.header(header::ATTEMPTS),
            "reason": self.header(header::REASON),
        })
    }
}

impl Filter {
    fn is_empty(&self) -> bool {
        self.id.is_empty() && self.service.is_none() && self.reason.is_none()
    }

    fn matches(&self, letter: &Letter) -> bool {
        let sequence = letter.0.sequence.to_string();
        let id = |id: &String| *id == sequence || id == letter.header(event_header::ID);
        let service = |service: &String| service == letter.service();
        let reason = |reason: &String| letter.header(header::REASON).contains(reason.as_str());
        (self.id.is_empty() || self.id.iter().any(id))
            && self.service.as_ref().is_none_or(service)
            && self.reason.as_ref().is_none_or(reason)
    }
}

async fn select(jetstream: &jetstream::Context, filter: &Filter) -> anyhow::Result<Vec<Letter>> {
    let letters = read_stream(jetstream, STREAM)
        .await?
        .into_iter()
        .map(Letter);
    Ok(letters.filter(|letter| filter.matches(letter)).collect())
}

async fn list(jetstream: &jetstream::Context, filter: &Filter, json: bool) -> anyhow::Result<()> {
    let letters = select(jetstream, filter).await?;
    if json {
        let letters: Vec<Value> = letters.iter().map(Letter::describe).collect();
        println!("{}", serde_json::to_string_pretty(&letters)?);
        return Ok(());
    }
    for letter in &letters {
        println!(
            "{:>6}  {:<12}  {:<24}  {:<36}  {:<36}  {}",
            letter.0.sequence,
            letter.service(),
            letter.event_subject(),
            letter.header(event_header::ID),
            letter.header(event_header::SUBJECT),
            letter.header(header::REASON),
        );
    }
    println!("{} dead letters", letters.len());
    Ok(())
}

async fn show(jetstream: &jetstream::Context, sequence: u64) -> anyhow::Result<()> {
    let stream = jetstream.get_stream(STREAM).await?;
    let found = stream.get_raw_message(sequence).await;
    let found = found.with_context(|| format!("there is no dead letter {sequence}"))?;
    println!("subject: {}", found.subject);
    for (name, values) in found.headers.iter() {
        for value in values {
            println!("{name}: {value}");
        }
    }
    let subject = found.headers.get(event_header::TYPE);
    let subject = subject.and_then(|subject| subject.as_str().parse::<Subject>().ok());
    match subject.map(|subject| Event::decode(subject, &found.payload)) {
        Some(Ok(event)) => println!("\n{event:#?}"),
        _ => println!(
            "\n{} bytes that are no event of this version",
            found.payload.len()
        ),
    }
    Ok(())
}

/// Redrives or discards what is selected.
async fn act(
    jetstream: &jetstream::Context,
    selection: &Selection,
    act: &'static str,
) -> anyhow::Result<bool> {
    ensure!(
        selection.all || !selection.filter.is_empty(),
        "no dead letter is selected: give --id, --service, --reason or --all"
    );
    let letters = select(jetstream, &selection.filter).await?;
    let stream = jetstream.get_stream(STREAM).await?;
    let mut failed = 0;
    for letter in &letters {
        if selection.dry_run {
            println!("would {act} {}", letter.describe());
            continue;
        }
        let done = async {
            if act == "redrive" {
                redrive(jetstream, letter).await?;
            }
            audit(jetstream, letter, act, &selection.by).await?;
            delete(&stream, letter.0.sequence).await
        };
        match done.await {
            Ok(()) => println!("{act} {}", letter.describe()),
            Err(error) => {
                failed += 1;
                eprintln!("cannot {act} dead letter {}: {error:#}", letter.0.sequence);
            }
        }
    }
    println!("{} dead letters selected, {failed} failed", letters.len());
    Ok(failed == 0)
}

/// Publishes the event to the service that gave up, with its own headers.
async fn redrive(jetstream: &jetstream::Context, letter: &Letter) -> anyhow::Result<()> {
    let subject = letter.event_subject();
    ensure!(
        !subject.is_empty(),
        "its subject names no service and no event"
    );
    let (headers, payload) = match letter.header(header::TRUNCATED) {
        "" => (letter.0.headers.clone(), letter.0.payload.clone()),
        _ => original(jetstream, letter).await?,
    };
    let mut redriven: HeaderMap = HeaderMap::new();
    for (name, values) in headers.iter().flat_map(HeaderMap::iter) {
        let text: &str = name.as_ref();
        let text = text.to_ascii_lowercase();
        if text.starts_with(header::PREFIX) || text.starts_with("nats-") {
            continue;
        }
        for value in values {
            redriven.append(name.clone(), value.clone());
        }
    }
    // The broker drops a repetition of the same redrive, the inbox any other. With the event's id:
    // a stream of dead letters that was created again repeats its sequences.
    let event = letter.header(event_header::ID);
    let id = format!("redrive-{}-{}-{event}", letter.service(), letter.0.sequence);
    redriven.insert(NATS_MESSAGE_ID, id);
    let target = format!("redrive.{}.{subject}", letter.service());
    publish(jetstream, target, redriven, payload)
        .await
        .with_context(|| format!("publish to the stream {REDRIVE}"))
}

/// The event of a dead letter that could not keep all of it.
async fn original(
    jetstream: &jetstream::Context,
    letter: &Letter,
) -> anyhow::Result<(Option<HeaderMap>, Vec<u8>)> {
    let (stream, sequence) = (
        letter.header(header::STREAM),
        letter.header(header::SEQUENCE),
    );
    let message = jetstream.get_stream(stream).await?;
    let message = message.get_raw_message(sequence.parse()?).await;
    let message = message.with_context(|| {
        format!("its payload was truncated, and the event is not in the stream {stream} any more")
    })?;
    let id = message.headers.get(event_header::ID);
    if id.map(|id| id.as_str()) != Some(letter.header(event_header::ID)) {
        bail!("its payload was truncated, and the stream {stream} has another event in its place");
    }
    Ok((Some(message.headers), message.payload.to_vec()))
}

async fn audit(
    jetstream: &jetstream::Context,
    letter: &Letter,
    act: &str,
    by: &str,
) -> anyhow::Result<()> {
    let line = json!({
        "at": OffsetDateTime::now_utc().format(&Rfc3339)?,
        "by": by,
        "act": act,
        "dead_letter": letter.describe(),
    });
    let line = line.to_string().into_bytes();
    publish(jetstream, AUDIT_SUBJECT.to_owned(), HeaderMap::new(), line)
        .await
        .with_context(|| format!("publish to the stream {AUDIT}"))
}

async fn delete(stream: &Stream, sequence: u64) -> anyhow::Result<()> {
    let deleted = stream.delete_message(sequence).await;
    deleted.map(drop).context("delete the dead letter")
}
