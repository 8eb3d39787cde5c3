//! An independent auditor: checks the system's invariants over databases, streams and provider. It
//! knows the contracts and the tables, but uses no code of the services, so that it cannot share
//! their mistakes.

mod facts;
mod quiescence;
mod rules;
mod sources;

use std::{fmt::Write as _, time::Duration};

use devstack::Endpoints;
use facts::Facts;
use futures::future::{BoxFuture, FutureExt as _};
use serde::Serialize;
use sources::Sources;

/// What an audit waits for and accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expectations {
    /// How long orders, events and refunds may still be in flight.
    pub timeout: Duration,
    /// How many dead letters there must be.
    pub dead_letters: usize,
    /// How often each event must be in its stream at least: more than once only where a test has
    /// published copies.
    pub copies: usize,
}

impl Default for Expectations {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(300),
            dead_letters: 0,
            copies: 1,
        }
    }
}

#[derive(Debug, Serialize)]
pub struct Report {
    pub invariants: Vec<Invariant>,
}

/// One invariant and what was found.
#[derive(Debug, Serialize)]
pub struct Invariant {
    pub name: &'static str,
    /// What must hold.
    pub rule: &'static str,
    /// How many rows, events or orders were checked.
    pub checked: usize,
    /// One text for each of them that breaks the rule.
    pub breaches: Vec<String>,
    /// What is unusual and breaks no rule.
    pub notes: Vec<String>,
}

impl Report {
    /// Whether every invariant holds.
    pub fn holds(&self) -> bool {
        self.invariants
            .iter()
            .all(|invariant| invariant.breaches.is_empty())
    }

    /// The report as text, with up to five breaches and notes of each invariant.
    pub fn table(&self) -> String {
        let mut table = String::new();
        for invariant in &self.invariants {
            let Invariant {
                name,
                rule,
                checked,
                breaches,
                notes,
            } = invariant;
            let verdict = match breaches.len() {
                0 => "ok".to_owned(),
                count => format!("{count} BROKEN"),
            };
            // Writing to a string cannot fail.
            let _ = writeln!(
                table,
                "{name:<10} {checked:>9} checked  {verdict:<10} {rule}"
            );
            for breach in breaches.iter().take(5) {
                let _ = writeln!(table, "           - {breach}");
            }
            for note in notes.iter().take(5) {
                let _ = writeln!(table, "           note: {note}");
            }
        }
        table
    }
}

/// Waits until nothing is in flight, then checks every invariant.
///
/// The future is boxed, so that its machine code is generated here and not in every crate that
/// awaits it.
pub fn audit(
    endpoints: &Endpoints,
    expectations: Expectations,
) -> BoxFuture<'_, anyhow::Result<Report>> {
    async move {
        let mut sources = Sources::connect(endpoints).await?;
        let in_flight = quiescence::wait_until_quiescent(&mut sources, expectations.timeout).await;
        let facts = Facts::read(&mut sources).await?;
        let mut invariants = vec![Invariant {
            name: "settled",
            rule: "nothing is in flight any more",
            checked: 1,
            breaches: in_flight,
            notes: Vec::new(),
        }];
        invariants.extend(rules::check(&facts, &expectations));
        Ok(Report { invariants })
    }
    .boxed()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use contracts::Service;

    #[test]
    fn the_table_of_processes_and_the_choreography_know_the_same_services() {
        let from_table: BTreeSet<_> = devstack::with_database()
            .map(|member| (member.name, member.publishes))
            .collect();
        let from_choreography: BTreeSet<_> = Service::ALL
            .into_iter()
            .map(|service| (service.name(), service.stream().is_some()))
            .collect();
        assert_eq!(from_table, from_choreography);
    }
}
