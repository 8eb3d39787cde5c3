//! The stock of some products while a batch is decided: what is on hand, and by how much it
//! changes.

use std::collections::{BTreeMap, HashMap};

use contracts::Sku;

use super::{Event, Line};

/// Units of locked products.
#[derive(Debug, Default)]
pub struct Stock {
    /// Units on hand, the changes so far included. A product that is not in it does not exist.
    on_hand: HashMap<Sku, i64>,
    /// Changes so far, in key order; positive units come back on hand.
    changes: BTreeMap<Sku, i64>,
}

impl Stock {
    pub fn new(on_hand: HashMap<Sku, i64>) -> Self {
        Self {
            on_hand,
            changes: BTreeMap::new(),
        }
    }

    /// The products of `lines` of which too little is on hand.
    pub fn shortages(&self, lines: &[Line]) -> Vec<Sku> {
        let is_short = |line: &&Line| {
            let on_hand = self.on_hand.get(&line.sku);
            on_hand.is_none_or(|units| *units < i64::from(line.quantity.get()))
        };
        let short = lines.iter().filter(is_short);
        short.map(|line| line.sku.clone()).collect()
    }

    /// Moves units between on hand and reserved, as `event` requires.
    pub fn apply(&mut self, event: &Event) {
        let (sign, lines) = match event {
            Event::Reserved { lines, .. } => (-1, lines),
            Event::Released { lines } => (1, lines),
            Event::Rejected { .. } | Event::CancelledFirst { .. } => return,
        };
        for Line { sku, quantity } in lines {
            let units = sign * i64::from(quantity.get());
            *self.on_hand.entry(sku.clone()).or_default() += units;
            *self.changes.entry(sku.clone()).or_default() += units;
        }
    }

    /// By how much the units on hand change, by product.
    pub fn changes(&self) -> &BTreeMap<Sku, i64> {
        &self.changes
    }

    #[cfg(test)]
    pub fn on_hand(&self, sku: &Sku) -> i64 {
        self.on_hand.get(sku).copied().unwrap_or_default()
    }
}
