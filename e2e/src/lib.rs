//! The harness of the end-to-end scenarios: a whole shop per scenario, audited when it closes.

pub mod adversary;
mod edges;
mod shop;

pub use edges::{Pair, expected_pairs};
pub use shop::{Shop, wait_for};
