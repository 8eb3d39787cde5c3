//! An independent auditor: checks the invariants over databases, streams and provider. It knows the
//! contracts and the tables, but uses no code of the services, so that it cannot share their
//! mistakes.

mod facts;
mod quiescence;
mod rules;

use std::{fmt::Write as _, time::Duration};

use devstack::Endpoints;
use serde::Serialize;

/// What the auditor is told before it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expectations {
    /// How long orders, events and refunds in flight may take to settle.
    pub settle: Duration,
    /// How many dead letters there should be.
    pub dead_letters: usize,
    /// How often each event should be in its stream; more than once only where a test has put it
    /// there again.
    pub copies: usize,
}

impl Default for Expectations {
    fn default() -> Self {
        Self {
            settle: Duration::from_secs(60),
            dead_letters: 0,
            copies: 1,
        }
    }
}

/// What was checked.
#[derive(Debug, Serialize)]
pub struct Report {
    /// One per invariant.
    pub invariants: Vec<Invariant>,
}

/// One invariant.
#[derive(Debug, Serialize)]
pub struct Invariant {
    /// Its name.
    pub name: &'static str,
    /// What must hold.
    pub rule: &'static str,
    /// How many things were looked at.
    pub checked: usize,
    /// Every thing for which it does not hold.
    pub breaches: Vec<String>,
}

impl Report {
    /// Whether every invariant holds.
    pub fn holds(&self) -> bool {
        self.invariants
            .iter()
            .all(|invariant| invariant.breaches.is_empty())
    }

    /// A table, with up to five breaches of each invariant.
    pub fn table(&self) -> String {
        let mut table = String::new();
        for Invariant {
            name,
            rule,
            checked,
            breaches,
        } in &self.invariants
        {
            let verdict = if breaches.is_empty() {
                "ok".to_owned()
            } else {
                format!("{} BROKEN", breaches.len())
            };
            // Writing to a string cannot fail.
            let _ = writeln!(
                table,
                "{name:<10} {checked:>9} checked  {verdict:<10} {rule}"
            );
            for breach in breaches.iter().take(5) {
                let _ = writeln!(table, "           - {breach}");
            }
        }
        table
    }
}

/// Waits until nothing is in flight, then checks every invariant.
pub async fn audit(endpoints: &Endpoints, expectations: Expectations) -> anyhow::Result<Report> {
    let sources = facts::Sources::open(endpoints).await?;
    let unsettled = quiescence::wait(&sources, expectations.settle).await?;
    let facts = sources.read().await?;
    let mut invariants = rules::check(&facts, &expectations);
    invariants.insert(
        0,
        Invariant {
            name: "settled",
            rule: "nothing is in flight any more",
            checked: 1,
            breaches: unsettled,
        },
    );
    Ok(Report { invariants })
}
