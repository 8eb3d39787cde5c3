//! The ledger on disk, and nowhere else: memory does not grow with the number of charges.
//!
//! One thread executes all requests that change something. Those that arrive while a transaction is
//! being synced share the next one (group commit). No response is sent before it is on disk.

use std::{path::Path, sync::Arc, thread, time::Duration};

use anyhow::Context as _;
use redb::{Database, ReadableDatabase as _};
use time::OffsetDateTime;
use tokio::sync::{mpsc, oneshot};

use crate::{
    ledger::StoredResponse,
    tables::{ReadTables, Tables},
};

/// How many requests share a transaction at most.
const BATCH: usize = 256;
/// Of redb, for pages read and pages to be written. Keys and ids are ordered by time, so that the
/// pages in use are the latest ones.
const CACHE_BYTES: usize = 8 * 1024 * 1024;

/// What a request does in the transaction.
type Action = Box<dyn FnOnce(&mut Tables<'_>) -> anyhow::Result<Answer> + Send>;

/// The response to a request, and whether it is that of an earlier one.
#[derive(Debug)]
pub(crate) enum Answer {
    New(StoredResponse),
    Replayed(StoredResponse),
    /// The key was first used with other parameters.
    OtherParameters,
}

struct Job {
    action: Action,
    done: oneshot::Sender<Answer>,
}

/// Handle of the ledger; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Journal {
    jobs: mpsc::Sender<Job>,
    database: Arc<Database>,
}

impl Journal {
    /// Opens the ledger in `directory` and starts the thread that writes. Idempotency keys are
    /// forgotten after `retention`.
    pub(crate) fn open(directory: &Path, retention: Duration) -> anyhow::Result<Self> {
        std::fs::create_dir_all(directory)?;
        let database = Database::builder()
            .set_cache_size(CACHE_BYTES)
            .create(directory.join("sandbox.redb"))?;
        let create = database.begin_write()?;
        drop(Tables::open(&create)?);
        create.commit()?;
        let database = Arc::new(database);
        let (jobs, queue) = mpsc::channel(BATCH * 4);
        let writer = Arc::clone(&database);
        thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || serve(&writer, queue, retention))?;
        Ok(Self { jobs, database })
    }

    /// Executes `action`, and waits until what it has written is durable. `None` when it could not
    /// be written: nothing has happened then.
    pub(crate) async fn execute(
        &self,
        action: impl FnOnce(&mut Tables<'_>) -> anyhow::Result<Answer> + Send + 'static,
    ) -> Option<Answer> {
        let (done, durable) = oneshot::channel();
        let action = Box::new(action);
        self.jobs.send(Job { action, done }).await.ok()?;
        durable.await.ok()
    }

    /// Reads what is on disk now, on a thread that may block.
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&ReadTables) -> anyhow::Result<T> + Send + 'static,
    ) -> anyhow::Result<T> {
        let database = Arc::clone(&self.database);
        let task =
            tokio::task::spawn_blocking(move || read(&ReadTables::open(&database.begin_read()?)?));
        task.await.context("the reader panicked")?
    }
}

fn serve(database: &Database, mut queue: mpsc::Receiver<Job>, retention: Duration) {
    let mut batch: Vec<Job> = Vec::with_capacity(BATCH);
    while queue.blocking_recv_many(&mut batch, BATCH) > 0 {
        match write(database, batch.drain(..), retention) {
            Ok(answers) => {
                for (done, answer) in answers {
                    // Without a receiver the process is stopping; what was written stays.
                    let _stopping = done.send(answer);
                }
            }
            // The senders are dropped, which `Journal::execute` reports.
            Err(error) => tracing::error!(
                error = format!("{error:#}"),
                "the ledger cannot be written; the requests fail"
            ),
        }
    }
}

type Answers = Vec<(oneshot::Sender<Answer>, Answer)>;

fn write(
    database: &Database,
    batch: impl ExactSizeIterator<Item = Job>,
    retention: Duration,
) -> anyhow::Result<Answers> {
    let mut answers = Vec::with_capacity(batch.len());
    let transaction = database.begin_write()?;
    {
        let mut tables = Tables::open(&transaction)?;
        let horizon = OffsetDateTime::now_utc() - retention;
        // More than a batch adds: what is too old goes in steps, and does go.
        tables.forget_keys_before(horizon.unix_timestamp(), 2 * batch.len())?;
        for Job { action, done } in batch {
            answers.push((done, action(&mut tables)?));
        }
    }
    transaction.commit()?;
    Ok(answers)
}
