//! Counts what each customer has at a time.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::Arc,
};

use contracts::CustomerId;
use parking_lot::Mutex;

/// The counts; cheap to clone. Customers who have nothing are not kept.
#[derive(Clone, Debug, Default)]
pub struct PerCustomer(Arc<Mutex<HashMap<CustomerId, usize>>>);

/// One of those that a customer has, until it is dropped.
#[derive(Debug)]
pub struct Counted {
    counts: PerCustomer,
    customer: CustomerId,
}

impl PerCustomer {
    /// `None` when the customer has `limit` already.
    pub fn count(&self, customer: CustomerId, limit: usize) -> Option<Counted> {
        let mut counts = self.0.lock();
        let count = counts.entry(customer).or_default();
        if *count >= limit {
            return None;
        }
        *count += 1;
        drop(counts);
        Some(Counted {
            counts: self.clone(),
            customer,
        })
    }

    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.0.lock().is_empty()
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if let Entry::Occupied(mut count) = self.counts.0.lock().entry(self.customer) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_customer_has_at_most_the_limit_and_what_is_dropped_is_not_kept() {
        let counts = PerCustomer::default();
        let (one, other) = (CustomerId::new(), CustomerId::new());
        let first = counts.count(one, 1).unwrap();
        assert!(counts.count(one, 1).is_none());
        assert!(counts.count(other, 1).is_some());
        drop(first);
        assert!(counts.is_empty());
    }
}
