//! The SQL of the orders table, a projection of the event log. One statement serves any number of
//! orders. Idempotency keys and the event log have their SQL in `idempotency` and `event_log`.

use std::collections::HashMap;

use contracts::{Currency, CustomerId, InvalidValue, Money, OrderId, OrderLine};
use sqlx::{PgConnection, PgPool, types::Json};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::domain::{CancelReason, Order, Status};

struct Row {
    order_id: Uuid,
    customer_id: Uuid,
    status: String,
    cancel_reason: Option<String>,
    paid: bool,
    refunded: bool,
    lines: Json<Vec<OrderLine>>,
    total_amount: i64,
    total_currency: String,
    deadline: OffsetDateTime,
    created_at: OffsetDateTime,
    updated_at: OffsetDateTime,
    version: i32,
}

/// Locks orders in key order, so that batches cannot deadlock. Orders that do not exist are left
/// out.
pub async fn lock(tx: &mut PgConnection, ids: &[OrderId]) -> sqlx::Result<HashMap<OrderId, Order>> {
    let ids: Vec<Uuid> = ids.iter().map(|id| id.0).collect();
    let rows = sqlx::query_as!(
        Row,
        r#"-- orders_lock
        SELECT order_id, customer_id, status, cancel_reason, paid, refunded, lines AS "lines: Json<Vec<OrderLine>>",
               total_amount, total_currency, deadline, created_at, updated_at, version
        FROM orders WHERE order_id = ANY($1) ORDER BY order_id FOR UPDATE"#,
        &ids
    )
    .fetch_all(tx)
    .await?;
    by_id(rows)
}

/// As [`lock`], without the orders whose rows cannot be read: they do not hold up the others,
/// unless they fill a batch of the sweep.
pub async fn lock_readable(
    tx: &mut PgConnection,
    ids: &[OrderId],
) -> sqlx::Result<HashMap<OrderId, Order>> {
    let locked = lock(tx, ids).await;
    if !locked.as_ref().is_err_and(is_unreadable) {
        return locked;
    }
    let mut orders = HashMap::with_capacity(ids.len());
    for id in ids {
        match lock(tx, &[*id]).await {
            Err(error) if is_unreadable(&error) => tracing::error!(order.id = %id, %error,
                "the row of an order cannot be read; the order stands still until \
                 `order rebuild --write` repairs it"),
            locked => orders.extend(locked?),
        }
    }
    Ok(orders)
}

const fn is_unreadable(error: &sqlx::Error) -> bool {
    matches!(
        error,
        sqlx::Error::Decode(_) | sqlx::Error::ColumnDecode { .. }
    )
}

/// The time of the database, by whose clock deadlines are set.
pub async fn now(tx: &mut PgConnection) -> sqlx::Result<OffsetDateTime> {
    sqlx::query_scalar!("-- database_now\nSELECT clock_timestamp() AS \"now!\"")
        .fetch_one(tx)
        .await
}

/// Locks up to `limit` orders that are in flight after their deadline and that no other transaction
/// has locked. Only those with a deadline after `from`: see [`Lookback`](messaging::Lookback).
pub async fn lock_overdue(
    tx: &mut PgConnection,
    from: OffsetDateTime,
    now: OffsetDateTime,
    limit: i64,
) -> sqlx::Result<Vec<OrderId>> {
    let ids = sqlx::query_scalar!(
        r#"-- orders_lock_overdue
        SELECT order_id FROM orders WHERE status IN ('pending', 'paid') AND deadline > $1 AND deadline <= $2
        ORDER BY deadline LIMIT $3 FOR UPDATE SKIP LOCKED"#,
        from,
        now,
        limit
    )
    .fetch_all(tx)
    .await?;
    Ok(ids.into_iter().map(OrderId).collect())
}

/// One order of a customer; `None` also when it belongs to another.
pub async fn find(
    pool: &PgPool,
    customer_id: CustomerId,
    id: OrderId,
) -> sqlx::Result<Option<Order>> {
    let row = sqlx::query_as!(
        Row,
        r#"-- order_find
        SELECT order_id, customer_id, status, cancel_reason, paid, refunded, lines AS "lines: Json<Vec<OrderLine>>",
               total_amount, total_currency, deadline, created_at, updated_at, version
        FROM orders WHERE order_id = $1 AND customer_id = $2"#,
        id.0,
        customer_id.0
    )
    .fetch_optional(pool)
    .await?;
    row.map(Row::read).transpose()
}

/// A customer's orders, newest first, older than `before`.
pub async fn list(
    pool: &PgPool,
    customer_id: CustomerId,
    before: Option<OrderId>,
    limit: i64,
) -> sqlx::Result<Vec<Order>> {
    let rows = sqlx::query_as!(
        Row,
        r#"-- orders_list
        SELECT order_id, customer_id, status, cancel_reason, paid, refunded, lines AS "lines: Json<Vec<OrderLine>>",
               total_amount, total_currency, deadline, created_at, updated_at, version
        FROM orders WHERE customer_id = $1 AND order_id < $2 ORDER BY order_id DESC LIMIT $3"#,
        customer_id.0,
        before.map_or(Uuid::max(), |before| before.0),
        limit
    )
    .fetch_all(pool)
    .await?;
    rows.into_iter().map(Row::read).collect()
}

/// Inserts new orders, as they are right after their creation.
pub async fn insert(tx: &mut PgConnection, orders: &[&Order]) -> sqlx::Result<()> {
    let ids: Vec<_> = orders.iter().map(|order| order.id.0).collect();
    let customers: Vec<_> = orders.iter().map(|order| order.customer_id.0).collect();
    let lines: Vec<_> = orders.iter().map(|order| Json(&order.lines)).collect();
    let amounts: Vec<_> = orders.iter().map(|order| order.total.amount()).collect();
    let currencies: Vec<Currency> = orders.iter().map(|order| order.total.currency()).collect();
    let currencies: Vec<_> = currencies.iter().map(Currency::as_str).collect();
    let deadlines: Vec<_> = orders.iter().map(|order| order.deadline).collect();
    let times: Vec<_> = orders.iter().map(|order| order.created_at).collect();
    sqlx::query!(
        r#"-- orders_insert
        INSERT INTO orders (order_id, customer_id, status, paid, refunded, lines, total_amount, total_currency,
                            deadline, created_at, updated_at, version)
        SELECT order_id, customer_id, 'pending', false, false, lines, amount, currency, deadline, at, at, 1
        FROM unnest($1::uuid[], $2::uuid[], $3::jsonb[], $4::bigint[], $5::text[], $6::timestamptz[],
                    $7::timestamptz[])
            AS o (order_id, customer_id, lines, amount, currency, deadline, at)"#,
        &ids,
        &customers,
        &lines as &[Json<&Vec<OrderLine>>],
        &amounts,
        &currencies as &[&str],
        &deadlines,
        &times
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Writes the columns of locked orders that can change.
pub async fn update(tx: &mut PgConnection, orders: &[&Order]) -> sqlx::Result<()> {
    let ids: Vec<_> = orders.iter().map(|order| order.id.0).collect();
    let statuses: Vec<_> = orders.iter().map(|order| order.status.as_str()).collect();
    let reasons: Vec<_> = orders
        .iter()
        .map(|order| reason_text(order.status))
        .collect();
    let paid: Vec<_> = orders.iter().map(|order| order.paid).collect();
    let refunded: Vec<_> = orders.iter().map(|order| order.refunded).collect();
    let times: Vec<_> = orders.iter().map(|order| order.updated_at).collect();
    let versions: Vec<_> = orders.iter().map(|order| order.version).collect();
    sqlx::query!(
        r#"-- orders_update
        UPDATE orders SET status = o.status, cancel_reason = o.reason, paid = o.paid, refunded = o.refunded,
                          updated_at = o.at, version = o.version
        FROM unnest($1::uuid[], $2::text[], $3::text[], $4::boolean[], $5::boolean[], $6::timestamptz[], $7::integer[])
            AS o (order_id, status, reason, paid, refunded, at, version)
        WHERE orders.order_id = o.order_id"#,
        &ids,
        &statuses as &[&str],
        &reasons as &[Option<&str>],
        &paid,
        &refunded,
        &times,
        &versions
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Writes a whole row, whether it is there or not. Never deletes it: a transaction that waits for
/// its lock would find no order.
pub async fn restore(tx: &mut PgConnection, order: &Order) -> sqlx::Result<()> {
    let currency = order.total.currency();
    sqlx::query!(
        r#"-- orders_restore
        INSERT INTO orders (order_id, customer_id, status, cancel_reason, paid, refunded, lines, total_amount,
                            total_currency, deadline, created_at, updated_at, version)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
        ON CONFLICT (order_id) DO UPDATE SET
            customer_id = excluded.customer_id, status = excluded.status,
            cancel_reason = excluded.cancel_reason, paid = excluded.paid, refunded = excluded.refunded,
            lines = excluded.lines, total_amount = excluded.total_amount,
            total_currency = excluded.total_currency, deadline = excluded.deadline,
            created_at = excluded.created_at, updated_at = excluded.updated_at, version = excluded.version"#,
        order.id.0,
        order.customer_id.0,
        order.status.as_str(),
        reason_text(order.status),
        order.paid,
        order.refunded,
        Json(&order.lines) as Json<&Vec<OrderLine>>,
        order.total.amount(),
        currency.as_str(),
        order.deadline,
        order.created_at,
        order.updated_at,
        order.version
    )
    .execute(tx)
    .await?;
    Ok(())
}

fn by_id(rows: Vec<Row>) -> sqlx::Result<HashMap<OrderId, Order>> {
    let orders = rows.into_iter().map(Row::read);
    orders
        .map(|order| order.map(|order| (order.id, order)))
        .collect()
}

impl Row {
    fn read(self) -> sqlx::Result<Order> {
        Ok(Order {
            id: OrderId(self.order_id),
            customer_id: CustomerId(self.customer_id),
            status: read_status(&self.status, self.cancel_reason.as_deref())?,
            paid: self.paid,
            refunded: self.refunded,
            lines: self.lines.0,
            total: Money::new(
                self.total_amount,
                self.total_currency.parse().map_err(decode)?,
            ),
            deadline: self.deadline,
            created_at: self.created_at,
            updated_at: self.updated_at,
            version: self.version,
        })
    }
}

const fn reason_text(status: Status) -> Option<&'static str> {
    match status {
        Status::Cancelled(reason) => Some(reason.as_str()),
        Status::Pending | Status::Paid | Status::Confirmed => None,
    }
}

fn read_status(status: &str, reason: Option<&str>) -> sqlx::Result<Status> {
    match (status, reason) {
        ("pending", None) => Ok(Status::Pending),
        ("paid", None) => Ok(Status::Paid),
        ("confirmed", None) => Ok(Status::Confirmed),
        ("cancelled", Some(text)) => CancelReason::ALL
            .into_iter()
            .find(|reason| reason.as_str() == text)
            .map(Status::Cancelled)
            .ok_or_else(|| unreadable(status, reason)),
        _ => Err(unreadable(status, reason)),
    }
}

fn decode(error: InvalidValue) -> sqlx::Error {
    sqlx::Error::Decode(error.into())
}

/// The table's constraints exclude this.
fn unreadable(status: &str, reason: Option<&str>) -> sqlx::Error {
    sqlx::Error::Decode(format!("an order cannot be {status:?} with reason {reason:?}").into())
}
