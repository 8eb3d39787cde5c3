//! What operators do with dead letters.
//!
//! A redriven event goes to a stream that only its service consumes, and passes its inbox: it is
//! applied once, even if it is redriven twice. The dead letter is deleted after the broker has the
//! event; a crash in between leaves both.

use anyhow::{Context as _, bail, ensure};
use async_nats::{HeaderMap, header::NATS_MESSAGE_ID};
use contracts::{
    dead_letter::{REDRIVE, header},
    header as event_header,
};
use serde::Serialize;
use serde_json::json;

use crate::{
    DeadLetters, Filter, FullLetter, KEPT_BYTES, Letter, NOT_FOUND,
    audit::{self, publish},
    is_about_delivery,
};

/// What to do with dead letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Act {
    /// Send the event back to the service that gave up.
    Redrive,
    /// Delete the dead letter for good.
    Discard,
}

impl std::fmt::Display for Act {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Redrive => "redrive",
            Self::Discard => "discard",
        })
    }
}

/// An act, on what, and by whom.
#[derive(Clone, Debug)]
pub struct Task {
    /// What to do.
    pub act: Act,
    /// With which dead letters.
    pub filter: Filter,
    /// Check whether it could be done, and change nothing.
    pub dry_run: bool,
    /// Who does it, for the audit.
    pub by: String,
    /// The id of the API key with which it was asked for, if there was one.
    pub key: Option<String>,
}

/// What became of a task.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// Dead letters that were selected.
    pub selected: usize,
    /// Those of them that could not be handled; the others were.
    pub failed: usize,
    /// Ids of the filter that no selected dead letter has.
    pub not_found: Vec<String>,
}

impl Summary {
    /// Whether all that was asked for was done.
    pub fn is_complete(&self) -> bool {
        self.failed == 0 && self.not_found.is_empty()
    }
}

/// A redriven event, ready to be published.
struct Redriven {
    subject: String,
    headers: HeaderMap,
    payload: Vec<u8>,
}

impl DeadLetters {
    /// Performs a task on at most `limit` dead letters, oldest first, and tells the result of each.
    ///
    /// # Errors
    /// When the dead letters cannot be read; then nothing is done.
    pub async fn perform(
        &self,
        task: &Task,
        limit: usize,
        tell: &mut (dyn FnMut(&Letter, anyhow::Result<()>) + Send),
    ) -> anyhow::Result<Summary> {
        let letters = self.select(&task.filter, 0, limit).await?;
        let missing = |id: &&String| !letters.iter().any(|letter| letter.is_named(id));
        // At the limit a further dead letter may have the id.
        let not_found = match letters.len() < limit {
            true => task.filter.ids.iter().filter(missing).cloned().collect(),
            false => Vec::new(),
        };
        let mut summary = Summary {
            selected: letters.len(),
            failed: 0,
            not_found,
        };
        for letter in &letters {
            let done = self.handle(task, letter).await;
            summary.failed += usize::from(done.is_err());
            tell(letter, done);
        }
        Ok(summary)
    }

    /// The audit has a line before the act and one after it: an act that fails, or that a crash
    /// cuts short, does not read as done.
    async fn handle(&self, task: &Task, letter: &Letter) -> anyhow::Result<()> {
        let Some(full) = self.get(letter.sequence).await? else {
            bail!("somebody else has redriven or discarded it meanwhile");
        };
        ensure!(
            full.letter == *letter,
            "the stream has another dead letter in its place"
        );
        let redriven = match task.act {
            Act::Redrive => Some(self.prepare(full).await?),
            Act::Discard => None,
        };
        if task.dry_run {
            return Ok(());
        }
        self.record(task, letter, "started", None).await?;
        match self.change(letter, redriven).await {
            Ok(()) => audit::done(self.record(task, letter, "done", None).await),
            Err(error) => {
                let text = format!("{error:#}");
                let recorded = self.record(task, letter, "failed", Some(&text)).await;
                Err(audit::failed(error, recorded))
            }
        }
    }

    async fn change(&self, letter: &Letter, redriven: Option<Redriven>) -> anyhow::Result<()> {
        let is_redriven = redriven.is_some();
        if let Some(redriven) = redriven {
            publish(
                &self.jetstream,
                redriven.subject,
                redriven.headers,
                redriven.payload,
            )
            .await
            .with_context(|| format!("publish to the stream {REDRIVE}"))?;
        }
        let deleted = self.stream().await?.delete_message(letter.sequence).await;
        deleted.map(drop).with_context(|| match is_redriven {
            true => "the event was sent back, but its dead letter could not be deleted",
            false => "delete the dead letter",
        })
    }

    /// The event as the service that gave up gets it: with its own headers, and its first place.
    async fn prepare(&self, dead: FullLetter) -> anyhow::Result<Redriven> {
        let letter = &dead.letter;
        ensure!(
            !letter.subject.is_empty(),
            "its subject names no service and no event"
        );
        let (headers, payload) = match letter.truncated_from {
            0 => (dead.headers, dead.payload),
            _ => self.original(letter).await?,
        };
        let mut redriven = HeaderMap::new();
        for (name, values) in headers.iter() {
            if is_about_delivery(name.as_ref()) {
                continue;
            }
            for value in values {
                redriven.append(name.clone(), value.clone());
            }
        }
        redriven.insert(header::STREAM, letter.stream.as_str());
        redriven.insert(header::SEQUENCE, letter.stream_sequence.to_string());
        redriven.insert(header::REDRIVES, (letter.redrives + 1).to_string());
        // The broker drops a repetition of the same redrive, the inbox any other. A second dead
        // letter of the event has another sequence, so that it can be redriven at once.
        let Letter {
            service,
            sequence,
            event_id,
            ..
        } = letter;
        let id = format!("redrive-{service}-{sequence}-{event_id}");
        redriven.insert(NATS_MESSAGE_ID, id);
        Ok(Redriven {
            subject: format!("redrive.{service}.{}", letter.subject),
            headers: redriven,
            payload,
        })
    }

    /// The event of a dead letter that could not keep all of it.
    async fn original(&self, letter: &Letter) -> anyhow::Result<(HeaderMap, Vec<u8>)> {
        let Letter {
            stream,
            stream_sequence: sequence,
            truncated_from: length,
            ..
        } = letter;
        let truncated = format!(
            "the dead letter has only the first {KEPT_BYTES} of {length} bytes, and the event is \
             not in the stream {stream} any more: it cannot be redriven, only discarded"
        );
        let found = self.jetstream.get_stream(stream).await;
        let found = found.with_context(|| format!("open the stream {stream}"))?;
        let message = found.get_raw_message(*sequence).await;
        let message = match message {
            Ok(message) => message,
            Err(error) if error.kind() == NOT_FOUND => bail!(truncated),
            Err(error) => return Err(error).with_context(|| format!("read the stream {stream}")),
        };
        let id = message.headers.get(event_header::ID);
        ensure!(
            id.map_or("", |id| id.as_str()) == letter.event_id,
            truncated
        );
        Ok((message.headers, message.payload.to_vec()))
    }

    async fn record(
        &self,
        task: &Task,
        letter: &Letter,
        outcome: &str,
        error: Option<&str>,
    ) -> anyhow::Result<()> {
        let mut line = json!({
            "by": task.by,
            "act": task.act,
            "outcome": outcome,
            "dead_letter": letter,
        });
        if let Some(key) = &task.key {
            line["key"] = key.as_str().into();
        }
        if let Some(error) = error {
            line["error"] = error.into();
        }
        self.audit(line).await
    }
}
