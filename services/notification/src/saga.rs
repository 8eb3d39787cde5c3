//! The notification service's part in the saga: tell the customer. It has no rules, therefore no
//! domain.

use anyhow::Context as _;
use contracts::{CustomerId, DecodeError, Event, Inbound, choreography::Service, parse_field};
use messaging::{Delivery, Handler, Outcome};
use sqlx::PgConnection;

use crate::store::{self, Kind};

/// What the notification service listens to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// Tell the customer that his order is confirmed.
    OrderConfirmed(CustomerId),
    /// Tell him that it was cancelled.
    OrderCancelled(CustomerId),
    /// Tell him that he got his money back.
    PaymentRefunded(CustomerId),
}

impl Inbound for Heard {
    const SERVICE: Service = Service::Notification;

    fn from_event(event: Event) -> Result<Self, DecodeError> {
        let customer = |text: &str| parse_field("customer_id", text);
        match event {
            Event::OrderConfirmed(event) => Ok(Self::OrderConfirmed(customer(&event.customer_id)?)),
            Event::OrderCancelled(event) => Ok(Self::OrderCancelled(customer(&event.customer_id)?)),
            Event::PaymentRefunded(event) => {
                Ok(Self::PaymentRefunded(customer(&event.customer_id)?))
            }
            other => Err(DecodeError::NotForUs(other.subject())),
        }
    }
}

/// Tells customers.
#[derive(Debug)]
pub struct Saga {
    /// Whether mails are sent.
    pub mail: bool,
}

impl Handler for Saga {
    type Inbound = Heard;

    async fn handle(
        &self,
        tx: &mut PgConnection,
        batch: &[Delivery<Heard>],
    ) -> anyhow::Result<Vec<Outcome>> {
        let all: Vec<_> = batch
            .iter()
            .map(|delivery| {
                let (customer, kind) = match delivery.event {
                    Heard::OrderConfirmed(customer) => (customer, Kind::OrderConfirmed),
                    Heard::OrderCancelled(customer) => (customer, Kind::OrderCancelled),
                    Heard::PaymentRefunded(customer) => (customer, Kind::PaymentRefunded),
                };
                (delivery.order_id(), customer, kind)
            })
            .collect();
        store::tell(tx, &all, self.mail)
            .await
            .context("tell customers")?;
        for (delivery, (_, customer, kind)) in batch.iter().zip(&all) {
            tracing::debug!(parent: &delivery.span, customer.id = %customer, ?kind, "told the customer");
        }
        Ok(all.iter().map(|_| Outcome::Done).collect())
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
            .flat_map(|owner| listens_to(Service::Notification, owner))
            .collect();
        for subject in Subject::ALL {
            let event = Event::decode(subject, &[]).unwrap();
            let refused = matches!(Heard::from_event(event), Err(DecodeError::NotForUs(_)));
            assert_eq!(!refused, declared.contains(&subject), "{subject}");
        }
    }
}
