//! The harness of the end-to-end scenarios: a whole shop per scenario, in processes or in
//! containers, audited when it closes.

pub mod adversary;
mod compose;
mod edges;
mod shop;
mod site;

pub use compose::Compose;
pub use edges::{Pair, expected_pairs};
pub use shop::{Shop, wait_for};
pub use site::{Site, target};
