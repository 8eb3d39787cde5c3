//! The notification service's part in the saga: notify the customer.

use anyhow::Context as _;
use contracts::{CustomerId, DecodeError, Event, Inbound, OrderId, Service, parse_field};
use messaging::{Delivery, Handler, Outcome};
use sqlx::PgConnection;

use crate::{
    kind::Kind,
    mailer::LEASE,
    store::{self, NewNotification},
};

/// The events that the notification service subscribes to: each is a notification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InboundEvent {
    customer_id: CustomerId,
    kind: Kind,
}

impl Inbound for InboundEvent {
    const SERVICE: Service = Service::Notification;

    fn from_event(event: Event) -> Result<Self, DecodeError> {
        let (customer_id, kind) = match event {
            Event::OrderConfirmed(event) => (event.customer_id, Kind::OrderConfirmed),
            Event::OrderCancelled(event) => (event.customer_id, Kind::OrderCancelled),
            Event::PaymentRefunded(event) => (event.customer_id, Kind::PaymentRefunded),
            other => return Err(DecodeError::NotSubscribed(other.subject())),
        };
        let customer_id = parse_field("customer_id", &customer_id)?;
        Ok(Self { customer_id, kind })
    }
}

fn notification(delivery: &Delivery<InboundEvent>) -> NewNotification {
    NewNotification {
        order_id: delivery.order_id(),
        customer_id: delivery.event.customer_id,
        kind: delivery.event.kind,
        not_before: None,
    }
}

/// Records notifications; the mailer then sends them.
#[derive(Debug)]
pub struct Saga {
    /// Whether a mail is due for each notification.
    mail: bool,
}

impl Saga {
    pub fn new(mail: bool) -> Self {
        Self { mail }
    }
}

impl Handler for Saga {
    type Inbound = InboundEvent;

    async fn handle(
        &self,
        tx: &mut PgConnection,
        batch: &[Delivery<InboundEvent>],
    ) -> anyhow::Result<Vec<Outcome>> {
        let orders: Vec<_> = batch.iter().map(Delivery::order_id).collect();
        store::lock(tx, &orders).await.context("lock orders")?;
        // A refund follows from a cancellation, which may come later: from another stream.
        let is_cancelled = |delivery: &&Delivery<InboundEvent>| {
            matches!(
                delivery.event.kind,
                Kind::OrderCancelled | Kind::PaymentRefunded
            )
        };
        let cancelled = batch.iter().filter(is_cancelled);
        let cancelled: Vec<OrderId> = cancelled.map(Delivery::order_id).collect();
        // A batch may hold both events of one order, and the insertion does not see its own rows.
        let mut notifications: Vec<_> = batch.iter().map(notification).collect();
        notifications
            .retain(|new| new.kind != Kind::OrderConfirmed || !cancelled.contains(&new.order_id));
        let leased = store::withdraw_confirmations(tx, &cancelled, LEASE).await;
        let leased = leased.context("withdraw mails about confirmations")?;
        // What is mailed next does not overtake the mail about the confirmation.
        for new in &mut notifications {
            new.not_before = leased.get(&new.order_id).copied();
        }
        let inserted = store::insert(tx, &notifications, self.mail).await;
        inserted.context("insert notifications")?;
        Ok(batch.iter().map(|_| Outcome::Done).collect())
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
