//! The tables of the ledger, in redb. Values are JSON.

use std::borrow::Borrow;

use redb::{
    Key, ReadOnlyTable, ReadTransaction, ReadableTable, Table, TableDefinition, WriteTransaction,
};
use serde::de::DeserializeOwned;
use uuid::Uuid;

use crate::ledger::{Balance, Intent, KeyedRequest, Refund};

type Json = &'static [u8];

/// By id, which is ordered by time.
const INTENTS: TableDefinition<'static, &str, Json> = TableDefinition::new("intents");
/// The intent of a refund.
const REFUNDS: TableDefinition<'static, &str, &str> = TableDefinition::new("refunds");
const KEYS: TableDefinition<'static, &str, Json> = TableDefinition::new("idempotency_keys");
/// Idempotency keys by the time of their first use, in Unix seconds.
const AGES: TableDefinition<'static, (i64, &str), ()> = TableDefinition::new("key_ages");
/// By order and currency.
const BALANCES: TableDefinition<'static, (&str, &str), Json> = TableDefinition::new("balances");

/// The tables in the transaction of the writer.
pub(crate) struct Tables<'txn> {
    intents: Table<'txn, &'static str, Json>,
    refunds: Table<'txn, &'static str, &'static str>,
    keys: Table<'txn, &'static str, Json>,
    ages: Table<'txn, (i64, &'static str), ()>,
    balances: Table<'txn, (&'static str, &'static str), Json>,
}

impl<'txn> Tables<'txn> {
    pub(crate) fn open(transaction: &'txn WriteTransaction) -> anyhow::Result<Self> {
        Ok(Self {
            intents: transaction.open_table(INTENTS)?,
            refunds: transaction.open_table(REFUNDS)?,
            keys: transaction.open_table(KEYS)?,
            ages: transaction.open_table(AGES)?,
            balances: transaction.open_table(BALANCES)?,
        })
    }

    pub(crate) fn intent(&self, id: &str) -> anyhow::Result<Option<Intent>> {
        get(&self.intents, id)
    }

    /// Writes an intent and all of its refunds.
    pub(crate) fn put_intent(&mut self, intent: &Intent) -> anyhow::Result<()> {
        for refund in &intent.refunds {
            self.refunds.insert(&*refund.id, &*intent.id)?;
        }
        let value = serde_json::to_vec(intent)?;
        self.intents.insert(&*intent.id, &*value)?;
        Ok(())
    }

    /// Adds to the money of the order of an intent.
    pub(crate) fn add(&mut self, intent: &Intent, part: Balance) -> anyhow::Result<()> {
        let currency = intent.currency.to_uppercase();
        let key = (intent.order_id(), &*currency);
        let before: Balance = get(&self.balances, key)?.unwrap_or_default();
        let after = Balance {
            order_id: intent.order_id().to_owned(),
            captured: before.captured + part.captured,
            refunded: before.refunded + part.refunded,
            captures: before.captures + part.captures,
            currency: currency.clone(),
        };
        let value = serde_json::to_vec(&after)?;
        self.balances.insert(key, &*value)?;
        Ok(())
    }

    pub(crate) fn key(&self, key: &str) -> anyhow::Result<Option<KeyedRequest>> {
        get(&self.keys, key)
    }

    pub(crate) fn put_key(&mut self, key: &str, request: &KeyedRequest) -> anyhow::Result<()> {
        let value = serde_json::to_vec(request)?;
        self.keys.insert(key, &*value)?;
        self.ages.insert((request.created, key), ())?;
        Ok(())
    }

    /// Forgets up to `most` keys that were first used before `horizon`, the oldest first.
    pub(crate) fn forget_keys_before(&mut self, horizon: i64, most: usize) -> anyhow::Result<()> {
        let mut old = Vec::new();
        for row in self.ages.range((i64::MIN, "")..(horizon, ""))?.take(most) {
            let (row, _) = row?;
            let (created, key) = row.value();
            old.push((created, key.to_owned()));
        }
        for (created, key) in old {
            self.ages.remove((created, &*key))?;
            self.keys.remove(&*key)?;
        }
        Ok(())
    }
}

/// The tables as they are on disk, for requests that only read.
pub(crate) struct ReadTables {
    intents: ReadOnlyTable<&'static str, Json>,
    refunds: ReadOnlyTable<&'static str, &'static str>,
    keys: ReadOnlyTable<&'static str, Json>,
    balances: ReadOnlyTable<(&'static str, &'static str), Json>,
}

/// Which intents to list, in Stripe's terms. Times are Unix seconds, inclusive.
#[derive(Debug)]
pub(crate) struct Selection {
    pub(crate) created_gte: Option<u64>,
    pub(crate) created_lte: Option<u64>,
    /// The id after which the page begins.
    pub(crate) starting_after: Option<String>,
    pub(crate) limit: usize,
}

impl ReadTables {
    pub(crate) fn open(transaction: &ReadTransaction) -> anyhow::Result<Self> {
        Ok(Self {
            intents: transaction.open_table(INTENTS)?,
            refunds: transaction.open_table(REFUNDS)?,
            keys: transaction.open_table(KEYS)?,
            balances: transaction.open_table(BALANCES)?,
        })
    }

    pub(crate) fn intent(&self, id: &str) -> anyhow::Result<Option<Intent>> {
        get(&self.intents, id)
    }

    /// A refund and its intent.
    pub(crate) fn refund(&self, id: &str) -> anyhow::Result<Option<(Refund, Intent)>> {
        let Some(intent) = self.refunds.get(id)? else {
            return Ok(None);
        };
        let intent = self.intent(intent.value())?;
        Ok(intent.and_then(|intent| {
            let refund = intent.refunds.iter().find(|refund| refund.id == id);
            Some((refund?.clone(), intent))
        }))
    }

    pub(crate) fn has_key(&self, key: &str) -> anyhow::Result<bool> {
        Ok(self.keys.get(key)?.is_some())
    }

    /// A page of intents, the newest first, and whether there are more.
    pub(crate) fn intents(&self, selection: &Selection) -> anyhow::Result<(Vec<Intent>, bool)> {
        let first = first_id(selection.created_gte.unwrap_or_default());
        let end = first_id(selection.created_lte.unwrap_or(u64::MAX).saturating_add(1));
        let end = match &selection.starting_after {
            Some(cursor) if *cursor < end => cursor.clone(),
            _ => end,
        };
        let mut page = Vec::new();
        if first < end {
            let newest_first = self.intents.range(&*first..&*end)?.rev();
            for row in newest_first.take(selection.limit + 1) {
                page.push(serde_json::from_slice(row?.1.value())?);
            }
        }
        let has_more = page.len() > selection.limit;
        page.truncate(selection.limit);
        Ok((page, has_more))
    }

    /// The money of all orders, one JSON object each, until `take` returns false.
    pub(crate) fn balances(&self, mut take: impl FnMut(&[u8]) -> bool) -> anyhow::Result<()> {
        for row in self.balances.iter()? {
            if !take(row?.1.value()) {
                break;
            }
        }
        Ok(())
    }
}

/// What no id of an earlier second reaches and every id of this one does: an id begins with its
/// time in milliseconds, 48 bits of it.
fn first_id(second: u64) -> String {
    const LAST: u128 = (1 << 48) - 1;
    let milliseconds = (u128::from(second) * 1000).min(LAST);
    format!("pi_{}", Uuid::from_u128(milliseconds << 80).simple())
}

fn get<'k, K: Key + 'static, T: DeserializeOwned>(
    table: &impl ReadableTable<K, Json>,
    key: impl Borrow<K::SelfType<'k>>,
) -> anyhow::Result<Option<T>> {
    let row = table.get(key)?;
    Ok(row
        .map(|row| serde_json::from_slice(row.value()))
        .transpose()?)
}
