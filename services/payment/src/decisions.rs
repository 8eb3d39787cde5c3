//! Decisions on locked payments: the one way in which payments change, whoever asks: the saga or
//! the provider.

use std::collections::{BTreeSet, HashMap};

use anyhow::Context as _;
use contracts::{CustomerId, Event as Contract, OrderId};
use messaging::outbox::{self, Cause, Outgoing};
use proto::payment::v1 as wire;
use sqlx::PgConnection;

use crate::{
    domain::{Charge, Command, Contradiction, Event, Payment, decide},
    store,
};

/// Payments that the caller's transaction has locked, and what was decided on them so far.
pub(crate) struct Decisions {
    payments: HashMap<OrderId, Payment>,
    new: BTreeSet<OrderId>,
    changed: BTreeSet<OrderId>,
    said: Vec<(OrderId, Contract, Cause)>,
}

impl Decisions {
    /// On payments that are locked; those of other orders do not exist.
    pub(crate) fn on(payments: Vec<Payment>) -> Self {
        let payments = payments
            .into_iter()
            .map(|payment| (payment.order_id, payment))
            .collect();
        Self {
            payments,
            new: BTreeSet::new(),
            changed: BTreeSet::new(),
            said: Vec::new(),
        }
    }

    /// Tells the payment of an order something; returns whether anything happened. A later call
    /// sees what an earlier one did.
    pub(crate) fn tell(
        &mut self,
        order: OrderId,
        customer: CustomerId,
        command: Command,
    ) -> Result<bool, Contradiction> {
        let before = self.payments.remove(&order);
        let decided = decide(before.as_ref(), command);
        let events = match decided {
            Ok(events) if !events.is_empty() => events,
            nothing => {
                self.payments.extend(before.map(|payment| (order, payment)));
                return nothing.map(|_| false);
            }
        };
        let set = if before.is_none() {
            &mut self.new
        } else {
            &mut self.changed
        };
        set.insert(order);
        let mut payment = before.unwrap_or_else(|| Payment::of(order, customer));
        for event in &events {
            payment = payment.evolve(event);
            self.said
                .extend(publish(&payment, event).map(|(contract, cause)| (order, contract, cause)));
        }
        self.payments.insert(order, payment);
        Ok(true)
    }

    /// The payment of an order as it stands after the decisions so far.
    pub(crate) fn payment(&self, order: OrderId) -> Option<&Payment> {
        self.payments.get(&order)
    }

    /// Writes everything: new payments with one statement, changed ones with another, events with a
    /// third.
    pub(crate) async fn save(&self, tx: &mut PgConnection) -> anyhow::Result<()> {
        let of = |set: &BTreeSet<OrderId>| {
            set.iter()
                .filter_map(|order| self.payments.get(order))
                .collect::<Vec<_>>()
        };
        store::insert(tx, &of(&self.new))
            .await
            .context("insert payments")?;
        let changed: BTreeSet<OrderId> = self.changed.difference(&self.new).copied().collect();
        store::update(tx, &of(&changed))
            .await
            .context("update payments")?;
        let events = self
            .said
            .iter()
            .map(|(order, contract, cause)| Outgoing::new(*order, contract.clone(), cause));
        outbox::append(tx, &events.collect::<Vec<_>>())
            .await
            .context("append events")
    }
}

/// What is said when `event` has made of a payment what it is now.
fn publish(payment: &Payment, event: &Event) -> Option<(Contract, Cause)> {
    let (order_id, payment_id) = (payment.order_id.to_string(), payment.id.to_string());
    let Charge {
        amount,
        lines,
        cause,
        ..
    } = payment.charge.as_ref()?;
    match event {
        Event::Completed { .. } => {
            let lines = lines.iter().cloned().map(Into::into).collect();
            let completed = wire::PaymentCompleted {
                order_id,
                payment_id,
                amount: Some(amount.clone().into()),
                lines,
            };
            Some((Contract::PaymentCompleted(completed), cause.clone()))
        }
        Event::Failed { code } => {
            let failed = wire::PaymentFailed {
                order_id,
                payment_id,
                code: code.clone(),
            };
            Some((Contract::PaymentFailed(failed), cause.clone()))
        }
        Event::Refunded => {
            let customer_id = payment.customer_id.to_string();
            let amount = Some(amount.clone().into());
            let refunded = wire::PaymentRefunded {
                order_id,
                payment_id,
                amount,
                customer_id,
            };
            Some((
                Contract::PaymentRefunded(refunded),
                payment.cancelled.clone()?,
            ))
        }
        Event::Requested(_) | Event::Voided(_) | Event::Cancelled(_) | Event::RefundRequested => {
            None
        }
    }
}
