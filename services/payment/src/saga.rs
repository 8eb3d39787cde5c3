//! The payment service's part in the saga: charge an accepted order, undo that when it is
//! cancelled. Handlers only record what is to be done; the worker then calls the provider.

use std::sync::Arc;

use anyhow::Context as _;
use contracts::{
    CustomerId, DecodeError, Event, Inbound, Money, OrderId, OrderLine, PaymentId, PaymentMethod,
    Service, parse_field, parse_lines, parse_money, parse_time,
};
use messaging::{Delivery, Handler, Outcome, UnitOfWork};
use sqlx::PgConnection;
use time::OffsetDateTime;
use tokio::sync::Notify;

use crate::{
    domain::{Charge, Command, Identity},
    request, store,
};

/// The events that the payment service subscribes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InboundEvent {
    OrderCreated {
        customer_id: CustomerId,
        total: Money,
        method: PaymentMethod,
        lines: Vec<OrderLine>,
        deadline: OffsetDateTime,
    },
    OrderCancelled {
        customer_id: CustomerId,
    },
}

impl Inbound for InboundEvent {
    const SERVICE: Service = Service::Payment;

    fn from_event(event: Event) -> Result<Self, DecodeError> {
        match event {
            Event::OrderCreated(event) => Ok(Self::OrderCreated {
                customer_id: parse_field("customer_id", &event.customer_id)?,
                total: parse_money("total", event.total)?,
                method: parse_field("payment_method", &event.payment_method)?,
                lines: parse_lines(event.lines)?,
                deadline: parse_time("deadline", event.deadline)?,
            }),
            Event::OrderCancelled(event) => Ok(Self::OrderCancelled {
                customer_id: parse_field("customer_id", &event.customer_id)?,
            }),
            other => Err(DecodeError::NotSubscribed(other.subject())),
        }
    }
}

fn command(delivery: &Delivery<InboundEvent>) -> anyhow::Result<Command> {
    let cause = delivery.cause().clone();
    // Unless the payment exists: then its own identity stays.
    let identity = |customer_id| Identity {
        payment_id: PaymentId::new(),
        order_id: delivery.order_id(),
        customer_id,
    };
    match &delivery.event {
        InboundEvent::OrderCreated {
            customer_id,
            total,
            method,
            lines,
            deadline,
        } => {
            let charge = Charge {
                amount: *total,
                method: Some(method.clone()),
                lines: lines.clone(),
                deadline: Some(*deadline),
                request: Some(request::charge(delivery.order_id(), *total, method)?),
                cause,
            };
            Ok(Command::Charge(identity(*customer_id), charge))
        }
        InboundEvent::OrderCancelled { customer_id } => {
            Ok(Command::Cancel(identity(*customer_id), cause))
        }
    }
}

/// Records what is to be charged, voided or refunded.
#[derive(Debug)]
pub struct Saga {
    /// Wakes the worker after a commit.
    work: Arc<Notify>,
}

impl Saga {
    pub fn new(work: Arc<Notify>) -> Self {
        Self { work }
    }
}

impl Handler for Saga {
    type Inbound = InboundEvent;

    async fn handle(
        &self,
        tx: &mut PgConnection,
        batch: &[Delivery<InboundEvent>],
    ) -> anyhow::Result<Vec<Outcome>> {
        let ids: Vec<OrderId> = batch.iter().map(Delivery::order_id).collect();
        let mut work = UnitOfWork::new(store::lock(tx, &ids).await.context("lock payments")?);
        let mut outcomes = Vec::with_capacity(batch.len());
        for delivery in batch {
            let command = command(delivery).context("encode the request of a charge")?;
            let executed = work.execute(delivery.order_id(), command, delivery.cause());
            outcomes.push(Outcome::from_execution(executed));
        }
        work.flush(tx).await.context("save payments")?;
        Ok(outcomes)
    }

    fn committed(&self) {
        self.work.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use contracts::choreography::mismatches;

    use super::*;

    #[test]
    fn inbound_events_agree_with_the_choreography() {
        assert_eq!(mismatches::<InboundEvent>(), []);
    }
}
