//! The event log of the orders: the outbox, read back as domain events. Its SQL is here, the SQL of
//! the projection in `store`.

use std::collections::{HashMap, hash_map::Entry};

use anyhow::Context as _;
use contracts::{
    DecodeError, Event as Contract, OrderId, Subject, parse_field, parse_lines, parse_money,
    parse_time,
};
use proto::order::v1 as wire;
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::domain::{CancelReason, Event, NewOrder, Order, evolve};

/// Orders in the log with an id greater than `after`, by id.
pub async fn orders_after(
    tx: &mut PgConnection,
    after: Uuid,
    limit: i64,
) -> sqlx::Result<Vec<OrderId>> {
    let ids = sqlx::query_scalar!(
        r#"-- log_orders
        SELECT DISTINCT order_id FROM outbox WHERE order_id > $1 ORDER BY order_id LIMIT $2"#,
        after,
        limit
    )
    .fetch_all(tx)
    .await?;
    Ok(ids.into_iter().map(OrderId).collect())
}

struct Row {
    order_id: Uuid,
    subject: String,
    payload: Vec<u8>,
    recorded_at: OffsetDateTime,
}

/// Folds the logs of orders: each order as its events add up to.
pub async fn fold(tx: &mut PgConnection, ids: &[OrderId]) -> anyhow::Result<Vec<Order>> {
    let mut orders = HashMap::with_capacity(ids.len());
    for row in read(tx, ids).await.context("read the log")? {
        let id = row.order_id;
        let order = row.apply(orders.remove(&id))?;
        orders.insert(id, order);
    }
    Ok(orders.into_values().collect())
}

/// Orders as they were accepted: as the first response described them.
pub async fn as_accepted(
    tx: &mut PgConnection,
    ids: &[OrderId],
) -> anyhow::Result<HashMap<OrderId, Order>> {
    let mut orders = HashMap::with_capacity(ids.len());
    for row in read(tx, ids).await.context("read the log")? {
        if let Entry::Vacant(first) = orders.entry(OrderId(row.order_id)) {
            first.insert(row.apply(None)?);
        }
    }
    Ok(orders)
}

async fn read(tx: &mut PgConnection, ids: &[OrderId]) -> sqlx::Result<Vec<Row>> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let ids: Vec<Uuid> = ids.iter().map(|id| id.0).collect();
    sqlx::query_as!(
        Row,
        r#"-- log_read
        SELECT order_id, subject, payload, recorded_at FROM outbox
        WHERE order_id = ANY($1) ORDER BY order_id, position"#,
        &ids
    )
    .fetch_all(tx)
    .await
}

impl Row {
    fn apply(self, order: Option<Order>) -> anyhow::Result<Order> {
        let id = self.order_id;
        let event = from_contract(&self.subject, &self.payload);
        let event = event.with_context(|| format!("log of order {id}"))?;
        evolve(order, &event, self.recorded_at)
            .with_context(|| format!("the log of order {id} does not begin with its creation"))
    }
}

/// The domain event of an entry of the log.
fn from_contract(subject: &str, payload: &[u8]) -> Result<Event, DecodeError> {
    let subject: Subject = subject.parse()?;
    match Contract::decode(subject, payload)? {
        Contract::OrderCreated(event) => Ok(Event::Created(created(event)?)),
        Contract::OrderPaid(_) => Ok(Event::Paid),
        Contract::OrderConfirmed(_) => Ok(Event::Confirmed),
        Contract::OrderCancelled(event) => Ok(Event::Cancelled(cancel_reason(event.reason())?)),
        Contract::OrderRefunded(_) => Ok(Event::Refunded),
        other => Err(DecodeError::NotSubscribed(other.subject())),
    }
}

fn created(event: wire::OrderCreated) -> Result<NewOrder, DecodeError> {
    Ok(NewOrder {
        id: parse_field("order_id", &event.order_id)?,
        customer_id: parse_field("customer_id", &event.customer_id)?,
        lines: parse_lines(event.lines)?,
        total: parse_money("total", event.total)?,
        payment_method: parse_field("payment_method", &event.payment_method)?,
        deadline: parse_time("deadline", event.deadline)?,
    })
}

fn cancel_reason(reason: wire::CancelReason) -> Result<CancelReason, DecodeError> {
    match reason {
        wire::CancelReason::Unspecified => Err(DecodeError::missing("reason")),
        wire::CancelReason::PaymentFailed => Ok(CancelReason::PaymentFailed),
        wire::CancelReason::OutOfStock => Ok(CancelReason::OutOfStock),
        wire::CancelReason::TimedOut => Ok(CancelReason::TimedOut),
        wire::CancelReason::CustomerRequest => Ok(CancelReason::CustomerRequest),
    }
}
