//! The ledger on disk: redb with group commit. Requests that arrive while a transaction is being
//! synced share the next one. No response is sent before its records are on disk.

use std::{path::Path, thread};

use anyhow::Context as _;
use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition};
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::{mpsc, oneshot};

use crate::ledger::{Ledger, Record};

type Table = TableDefinition<'static, &'static str, &'static [u8]>;

const INTENTS: Table = TableDefinition::new("intents");
const REFUNDS: Table = TableDefinition::new("refunds");
const KEYS: Table = TableDefinition::new("idempotency_keys");
/// How many requests share a transaction at most.
const BATCH: usize = 256;
/// Small, because reads are served from the ledger in memory and not from redb.
const CACHE_BYTES: usize = 8 * 1024 * 1024;

/// Records of one request, and where to report that they are durable.
type Entry = (Vec<Record>, oneshot::Sender<()>);

/// Handle of the thread that writes; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Journal(mpsc::Sender<Entry>);

impl Journal {
    /// Waits until `records` are durable. Returns false when they could not be written.
    pub(crate) async fn write(&self, records: Vec<Record>) -> bool {
        let (done, durable) = oneshot::channel();
        self.0.send((records, done)).await.is_ok() && durable.await.is_ok()
    }
}

/// Opens the database in `directory`, reads the ledger, and starts the thread that writes.
pub(crate) fn open(directory: &Path) -> anyhow::Result<(Journal, Ledger)> {
    std::fs::create_dir_all(directory)?;
    let database = Database::builder()
        .set_cache_size(CACHE_BYTES)
        .create(directory.join("ledger.redb"))?;
    let tables = database.begin_write()?;
    for table in [INTENTS, REFUNDS, KEYS] {
        tables.open_table(table)?;
    }
    tables.commit()?;
    let ledger = read(&database)?;
    let (sender, entries) = mpsc::channel(BATCH * 4);
    thread::Builder::new()
        .name("journal".to_owned())
        .spawn(move || serve(&database, entries))?;
    Ok((Journal(sender), ledger))
}

fn read(database: &Database) -> anyhow::Result<Ledger> {
    let transaction = database.begin_read()?;
    let mut ledger = Ledger::default();
    each(&transaction.open_table(INTENTS)?, |_, intent| {
        ledger.apply(Record::Intent(intent))
    })?;
    each(&transaction.open_table(REFUNDS)?, |_, refund| {
        ledger.apply(Record::Refund(refund))
    })?;
    each(&transaction.open_table(KEYS)?, |key, request| {
        ledger.apply(Record::Request(key.to_owned(), request))
    })?;
    Ok(ledger)
}

fn each<T: DeserializeOwned>(
    table: &redb::ReadOnlyTable<&'static str, &'static [u8]>,
    mut take: impl FnMut(&str, T),
) -> anyhow::Result<()> {
    for row in table.iter()? {
        let (key, value) = row?;
        take(
            key.value(),
            serde_json::from_slice(value.value()).with_context(|| key.value().to_owned())?,
        );
    }
    Ok(())
}

fn serve(database: &Database, mut entries: mpsc::Receiver<Entry>) {
    let mut batch: Vec<Entry> = Vec::with_capacity(BATCH);
    while entries.blocking_recv_many(&mut batch, BATCH) > 0 {
        let written = write(database, batch.iter().flat_map(|(records, _)| records));
        if let Err(error) = written {
            tracing::error!(
                error = format!("{error:#}"),
                "the ledger cannot be written; the requests fail"
            );
            // Dropping the senders makes `Journal::write` return false.
            batch.clear();
        }
        for (_, done) in batch.drain(..) {
            // Without a receiver the request was aborted; its records stay.
            let _aborted = done.send(());
        }
    }
}

fn write<'a>(database: &Database, records: impl Iterator<Item = &'a Record>) -> anyhow::Result<()> {
    let transaction = database.begin_write()?;
    {
        let mut intents = transaction.open_table(INTENTS)?;
        let mut refunds = transaction.open_table(REFUNDS)?;
        let mut keys = transaction.open_table(KEYS)?;
        for record in records {
            match record {
                Record::Intent(intent) => {
                    intents.insert(intent.id.as_str(), bytes(intent)?.as_slice())?
                }
                Record::Refund(refund) => {
                    refunds.insert(refund.id.as_str(), bytes(refund)?.as_slice())?
                }
                Record::Request(key, request) => {
                    keys.insert(key.as_str(), bytes(request)?.as_slice())?
                }
            };
        }
    }
    Ok(transaction.commit()?)
}

fn bytes(record: &impl Serialize) -> anyhow::Result<Vec<u8>> {
    Ok(serde_json::to_vec(record)?)
}
