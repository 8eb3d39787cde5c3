//! The payment service's part in the saga: charge an order that was accepted, undo that when it is
//! cancelled.

use std::sync::Arc;

use contracts::{
    CustomerId, DecodeError, Event, Inbound, Money, MoneyError, OrderLine, choreography::Service,
    parse_field,
};
use messaging::{Delivery, Handler, Outcome};
use proto::order::v1::OrderCreated;
use sqlx::PgConnection;
use tokio::sync::Notify;

use crate::{
    decisions::Decisions,
    domain::{Charge, Command},
    store,
};

/// What the payment service listens to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// An order was accepted: charge its total.
    OrderCreated {
        /// Who pays.
        customer_id: CustomerId,
        /// The total.
        amount: Money,
        /// The provider's payment method.
        method: String,
        /// What is paid for.
        lines: Vec<OrderLine>,
    },
    /// An order was cancelled: void or refund.
    OrderCancelled {
        /// Whose order it was.
        customer_id: CustomerId,
    },
}

impl Inbound for Heard {
    const SERVICE: Service = Service::Payment;

    fn from_event(event: Event) -> Result<Self, DecodeError> {
        match event {
            Event::OrderCreated(event) => created(event),
            Event::OrderCancelled(event) => Ok(Self::OrderCancelled {
                customer_id: parse_field("customer_id", &event.customer_id)?,
            }),
            other => Err(DecodeError::NotForUs(other.subject())),
        }
    }
}

fn created(event: OrderCreated) -> Result<Heard, DecodeError> {
    let wrong = |field| {
        move |error: MoneyError| DecodeError::Field {
            field,
            reason: error.to_string(),
        }
    };
    let lines: Result<Vec<OrderLine>, MoneyError> =
        event.lines.into_iter().map(OrderLine::try_from).collect();
    Ok(Heard::OrderCreated {
        customer_id: parse_field("customer_id", &event.customer_id)?,
        amount: Money::try_from(event.total).map_err(wrong("total"))?,
        method: event.payment_method,
        lines: lines.map_err(wrong("lines"))?,
    })
}

/// Notes what is to be charged, voided or refunded; the worker then talks to the provider.
#[derive(Debug)]
pub struct Saga {
    /// Wakes the worker.
    pub(crate) work: Arc<Notify>,
}

impl Handler for Saga {
    type Inbound = Heard;

    async fn handle(
        &self,
        tx: &mut PgConnection,
        batch: &[Delivery<Heard>],
    ) -> anyhow::Result<Vec<Outcome>> {
        let orders: Vec<_> = batch.iter().map(Delivery::order_id).collect();
        let mut decisions = Decisions::on(store::lock(tx, &orders).await?);
        let outcomes = batch.iter().map(|delivery| {
            let (customer_id, command) = command(delivery);
            match decisions.tell(delivery.order_id(), customer_id, command) {
                Ok(true) => Outcome::Done,
                Ok(false) => Outcome::Ignored("the payment has moved on"),
                Err(contradiction) => Outcome::Poison(contradiction.into()),
            }
        });
        let outcomes = outcomes.collect();
        decisions.save(tx).await?;
        Ok(outcomes)
    }

    fn committed(&self) {
        self.work.notify_one();
    }
}

fn command(delivery: &Delivery<Heard>) -> (CustomerId, Command) {
    let cause = delivery.cause().clone();
    match &delivery.event {
        Heard::OrderCreated {
            customer_id,
            amount,
            method,
            lines,
        } => {
            let charge = Charge {
                amount: amount.clone(),
                method: method.clone(),
                lines: lines.clone(),
                cause,
            };
            (*customer_id, Command::Charge(charge))
        }
        Heard::OrderCancelled { customer_id } => (*customer_id, Command::Cancel(cause)),
    }
}

#[cfg(test)]
mod tests {
    use contracts::{Subject, choreography::listens_to};

    use super::*;

    #[test]
    fn everything_the_choreography_sends_here_is_understood_and_nothing_else() {
        let declared: Vec<Subject> = Service::ALL
            .into_iter()
            .flat_map(|owner| listens_to(Service::Payment, owner))
            .collect();
        for subject in Subject::ALL {
            let event = Event::decode(subject, &[]).unwrap();
            let refused = matches!(Heard::from_event(event), Err(DecodeError::NotForUs(_)));
            assert_eq!(!refused, declared.contains(&subject), "{subject}");
        }
    }
}
