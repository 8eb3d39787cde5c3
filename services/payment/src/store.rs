//! The SQL of the payment service. One statement serves any number of payments.

use std::{collections::HashMap, time::Duration};

use contracts::{
    Cause, CorrelationId, Currency, CustomerId, EventId, InvalidValue, Money, OrderId, OrderLine,
    PaymentId, PaymentMethod,
};
use serde_json::value::RawValue;
use sqlx::{PgConnection, PgPool, types::Json};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::domain::{Charge, Identity, Payment, Status};

struct Row {
    order_id: Uuid,
    payment_id: Uuid,
    customer_id: Uuid,
    status: String,
    amount: Option<i64>,
    currency: Option<String>,
    method: Option<String>,
    /// Read with the row, so that one that cannot be read fails no other.
    lines: Option<Json<Box<RawValue>>>,
    deadline: Option<OffsetDateTime>,
    request: Option<String>,
    charge_correlation_id: Option<Uuid>,
    charge_causation_id: Option<Uuid>,
    charge_traceparent: Option<String>,
    cancel_correlation_id: Option<Uuid>,
    cancel_causation_id: Option<Uuid>,
    cancel_traceparent: Option<String>,
    attempts: i32,
    answered: i32,
    key_number: i32,
    refund_id: Option<String>,
    reference: Option<String>,
    failure_code: Option<String>,
    updated_at: OffsetDateTime,
    created_at: Option<OffsetDateTime>,
    now: OffsetDateTime,
}

/// A payment whose call is due, as its lease begins.
#[derive(Debug)]
pub struct Leased {
    pub payment: Payment,
    /// The time, by the database's clock.
    pub now: OffsetDateTime,
    /// When the payment was written, by the same clock. `None` in rows of the version that did not
    /// keep it.
    pub created_at: Option<OffsetDateTime>,
}

/// What was leased together.
#[derive(Debug)]
pub struct Leases {
    pub payments: Vec<Leased>,
    /// No row was left out because it cannot be read.
    pub are_complete: bool,
}

/// Locks payments by order, in key order, so that batches cannot deadlock. Payments that do not
/// exist are left out.
pub async fn lock(
    tx: &mut PgConnection,
    orders: &[OrderId],
) -> sqlx::Result<HashMap<OrderId, Payment>> {
    let orders: Vec<Uuid> = orders.iter().map(|order| order.0).collect();
    let rows = sqlx::query_as!(
        Row,
        r#"-- payments_lock
        SELECT order_id, payment_id, customer_id, status, amount, currency, method,
               lines AS "lines: Json<Box<RawValue>>", deadline, request,
               charge_correlation_id, charge_causation_id, charge_traceparent,
               cancel_correlation_id, cancel_causation_id, cancel_traceparent, attempts, answered, key_number,
               refund_id, reference, failure_code, updated_at, created_at, now() AS "now!"
        FROM payments WHERE order_id = ANY($1) ORDER BY order_id FOR UPDATE"#,
        &orders
    )
    .fetch_all(tx)
    .await?;
    let payments = rows.into_iter().map(Row::read);
    let by_order = |payment: Payment| (payment.identity.order_id, payment);
    payments.map(|payment| payment.map(by_order)).collect()
}

/// The payment of one order.
pub async fn find(pool: &PgPool, order: OrderId) -> sqlx::Result<Option<Payment>> {
    let row = sqlx::query_as!(
        Row,
        r#"-- payment_find
        SELECT order_id, payment_id, customer_id, status, amount, currency, method,
               lines AS "lines: Json<Box<RawValue>>", deadline, request,
               charge_correlation_id, charge_causation_id, charge_traceparent,
               cancel_correlation_id, cancel_causation_id, cancel_traceparent, attempts, answered, key_number,
               refund_id, reference, failure_code, updated_at, created_at, now() AS "now!"
        FROM payments WHERE order_id = $1"#,
        order.0
    )
    .fetch_optional(pool)
    .await?;
    row.map(Row::read).transpose()
}

/// How far back to read: see [`Lookback`](messaging::Lookback).
#[derive(Clone, Copy)]
pub struct Reach {
    pub refunds: Duration,
    pub charges: Duration,
}

/// For how many calls there is room; a charge waits for the refunds that are leased before it.
#[derive(Clone, Copy)]
pub struct Room {
    pub all: usize,
    pub refunds: usize,
    pub charges: usize,
}

/// Leases up to `limit` payments that are due, refunds first: customers do not wait for their money
/// behind a backlog of charges. Counts the attempt, and keeps other workers off for `lease`.
/// Committed before the call to the provider: a payment without attempts is unknown there.
///
/// A charge whose deadline has passed is leased only when the provider may know of it already: its
/// outcome must be found out. Otherwise it waits for the cancellation.
///
/// Reads payments that became due at most `reach` ago. One whose row cannot be read is left out,
/// and holds up no other.
pub async fn lease(
    connection: &mut PgConnection,
    room: Room,
    lease: Duration,
    reach: Reach,
) -> sqlx::Result<Leases> {
    let rows = sqlx::query_as!(
        Row,
        r#"-- payments_lease
        WITH refunds AS MATERIALIZED (
            SELECT order_id FROM payments
            WHERE status = 'refunding' AND due_at <= now() AND due_at > now() - make_interval(secs => $3)
            ORDER BY due_at LIMIT $4 FOR UPDATE SKIP LOCKED),
        charges AS MATERIALIZED (
            SELECT order_id FROM payments
            WHERE status = 'pending' AND due_at <= now() AND due_at > now() - make_interval(secs => $6)
              AND (attempts > 0 OR deadline IS NULL OR deadline > now())
            ORDER BY due_at LIMIT least($5, $1 - (SELECT count(*) FROM refunds)) FOR UPDATE SKIP LOCKED)
        UPDATE payments SET attempts = attempts + 1, due_at = now() + make_interval(secs => $2)
        WHERE order_id IN (SELECT order_id FROM refunds UNION ALL SELECT order_id FROM charges)
        RETURNING order_id, payment_id, customer_id, status, amount, currency, method,
                  lines AS "lines: Json<Box<RawValue>>", deadline, request,
                  charge_correlation_id, charge_causation_id, charge_traceparent,
                  cancel_correlation_id, cancel_causation_id, cancel_traceparent, attempts, answered, key_number,
                  refund_id, reference, failure_code, updated_at, created_at, now() AS "now!" "#,
        room.all as i64,
        lease.as_secs_f64(),
        reach.refunds.as_secs_f64(),
        room.refunds as i64,
        room.charges as i64,
        reach.charges.as_secs_f64()
    )
    .fetch_all(connection)
    .await?;
    let leased = rows.len();
    let payments = rows.into_iter().filter_map(|row| {
        let (now, created_at, order) = (row.now, row.created_at, row.order_id);
        match row.read() {
            Ok(payment) => Some(Leased {
                payment,
                now,
                created_at,
            }),
            Err(error) => {
                tracing::error!(order.id = %order, %error,
                    "the row of a payment that is due cannot be read; the provider is not called \
                     until somebody corrects it");
                None
            }
        }
    });
    let payments: Vec<Leased> = payments.collect();
    Ok(Leases {
        are_complete: payments.len() == leased,
        payments,
    })
}

/// Extends the leases of these payments.
pub async fn renew(
    connection: &mut PgConnection,
    orders: &[OrderId],
    lease: Duration,
) -> sqlx::Result<()> {
    let orders: Vec<Uuid> = orders.iter().map(|order| order.0).collect();
    sqlx::query!(
        r#"-- payments_renew
        UPDATE payments SET due_at = now() + make_interval(secs => $2)
        WHERE order_id = ANY($1) AND status IN ('pending', 'refunding')"#,
        &orders,
        lease.as_secs_f64()
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Stores the bodies of charges that have none, unless another replica has done so.
pub async fn store_bodies(
    connection: &mut PgConnection,
    bodies: &[(OrderId, String)],
) -> sqlx::Result<()> {
    let (orders, bodies): (Vec<Uuid>, Vec<&str>) = bodies
        .iter()
        .map(|(order, body)| (order.0, body.as_str()))
        .unzip();
    sqlx::query!(
        r#"-- payments_store_bodies
        UPDATE payments SET request = coalesce(payments.request, new.request)
        FROM unnest($1::uuid[], $2::text[]) AS new (order_id, request)
        WHERE payments.order_id = new.order_id AND payments.status = 'pending'"#,
        &orders,
        &bodies as &[&str]
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// When the next call of a payment is due.
#[derive(Debug)]
pub struct NextCall {
    pub order: OrderId,
    pub delay: Duration,
    /// The key of the last call, if that cannot be executed any more. It counts as answered only
    /// while the payment has that key.
    pub answered_key: Option<i32>,
}

/// Schedules the next call of payments that need one.
pub async fn postpone(tx: &mut PgConnection, calls: &[NextCall]) -> sqlx::Result<()> {
    if calls.is_empty() {
        return Ok(());
    }
    let orders: Vec<_> = calls.iter().map(|call| call.order.0).collect();
    let delays: Vec<_> = calls.iter().map(|call| call.delay.as_secs_f64()).collect();
    let keys: Vec<_> = calls.iter().map(|call| call.answered_key).collect();
    sqlx::query!(
        r#"-- payments_postpone
        UPDATE payments SET due_at = now() + make_interval(secs => later.delay),
            answered = payments.answered + (later.key IS NOT DISTINCT FROM payments.key_number)::integer
        FROM unnest($1::uuid[], $2::double precision[], $3::integer[]) AS later (order_id, delay, key)
        WHERE payments.order_id = later.order_id"#,
        &orders,
        &delays,
        &keys as &[Option<i32>]
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Inserts new payments. One that another replica has inserted meanwhile is an error: the batch is
/// then tried again and finds it.
pub async fn insert(tx: &mut PgConnection, payments: &[&Payment]) -> sqlx::Result<()> {
    let charges: Vec<_> = payments
        .iter()
        .map(|payment| payment.charge.as_ref())
        .collect();
    let identities = payments.iter().map(|payment| &payment.identity);
    let orders: Vec<_> = identities
        .clone()
        .map(|identity| identity.order_id.0)
        .collect();
    let ids: Vec<_> = identities
        .clone()
        .map(|identity| identity.payment_id.0)
        .collect();
    let customers: Vec<_> = identities.map(|identity| identity.customer_id.0).collect();
    let statuses: Vec<_> = payments
        .iter()
        .map(|payment| payment.status.as_str())
        .collect();
    let totals: Vec<_> = charges
        .iter()
        .map(|charge| charge.map(|charge| charge.amount))
        .collect();
    let amounts: Vec<_> = totals
        .iter()
        .map(|total| total.map(Money::amount))
        .collect();
    let currencies: Vec<_> = totals
        .iter()
        .map(|total| total.map(Money::currency))
        .collect();
    let currencies: Vec<_> = currencies
        .iter()
        .map(|c| c.as_ref().map(Currency::as_str))
        .collect();
    let methods: Vec<_> = charges.iter().map(|c| c.map(method_text)).collect();
    let lines: Vec<_> = charges.iter().map(|c| c.map(|c| Json(&c.lines))).collect();
    let deadlines: Vec<_> = charges.iter().map(|c| c.and_then(|c| c.deadline)).collect();
    let requests: Vec<_> = charges
        .iter()
        .map(|c| c.and_then(|c| c.request.as_deref()))
        .collect();
    let charge_causes = CauseColumns::new(charges.iter().map(|c| c.map(|c| &c.cause)));
    let cancelled = payments.iter().map(|payment| payment.cancelled.as_ref());
    let cancel_causes = CauseColumns::new(cancelled);
    let times: Vec<_> = payments.iter().map(|payment| payment.updated_at).collect();
    sqlx::query!(
        r#"-- payments_insert
        INSERT INTO payments (order_id, payment_id, customer_id, status, amount, currency, method, lines,
                              charge_correlation_id, charge_causation_id, charge_traceparent,
                              cancel_correlation_id, cancel_causation_id, cancel_traceparent, updated_at,
                              deadline, request)
        SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::text[], $5::bigint[], $6::text[], $7::text[],
                             $8::jsonb[], $9::uuid[], $10::uuid[], $11::text[], $12::uuid[], $13::uuid[], $14::text[],
                             $15::timestamptz[], $16::timestamptz[], $17::text[])"#,
        &orders,
        &ids,
        &customers,
        &statuses as &[&str],
        &amounts as &[Option<i64>],
        &currencies as &[Option<&str>],
        &methods as &[Option<&str>],
        &lines as &[Option<Json<&Vec<OrderLine>>>],
        &charge_causes.correlations as &[Option<Uuid>],
        &charge_causes.causations as &[Option<Uuid>],
        &charge_causes.traceparents as &[Option<&str>],
        &cancel_causes.correlations as &[Option<Uuid>],
        &cancel_causes.causations as &[Option<Uuid>],
        &cancel_causes.traceparents as &[Option<&str>],
        &times,
        &deadlines as &[Option<OffsetDateTime>],
        &requests as &[Option<&str>]
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Writes the columns of locked payments that can change. A new status is due at once.
pub async fn update(tx: &mut PgConnection, payments: &[&Payment]) -> sqlx::Result<()> {
    let orders: Vec<_> = payments
        .iter()
        .map(|payment| payment.identity.order_id.0)
        .collect();
    let statuses: Vec<_> = payments
        .iter()
        .map(|payment| payment.status.as_str())
        .collect();
    let attempts: Vec<_> = payments.iter().map(|payment| payment.attempts).collect();
    let answered: Vec<_> = payments.iter().map(|payment| payment.answered).collect();
    let keys: Vec<_> = payments.iter().map(|payment| payment.key_number).collect();
    let refunds: Vec<_> = payments
        .iter()
        .map(|payment| payment.refund_id.as_deref())
        .collect();
    let references: Vec<_> = payments
        .iter()
        .map(|payment| payment.reference.as_deref())
        .collect();
    let failures: Vec<_> = payments
        .iter()
        .map(|payment| payment.failure_code.as_deref())
        .collect();
    let cancelled = payments.iter().map(|payment| payment.cancelled.as_ref());
    let causes = CauseColumns::new(cancelled);
    let times: Vec<_> = payments.iter().map(|payment| payment.updated_at).collect();
    let charges = payments.iter().map(|payment| payment.charge.as_ref());
    let methods: Vec<_> = charges.clone().map(|c| c.map(method_text)).collect();
    let requests: Vec<_> = charges
        .map(|c| c.and_then(|c| c.request.as_deref()))
        .collect();
    sqlx::query!(
        r#"-- payments_update
        UPDATE payments
        SET status = p.status, attempts = p.attempts, reference = p.reference, failure_code = p.failure_code,
            cancel_correlation_id = p.correlation, cancel_causation_id = p.causation,
            cancel_traceparent = p.traceparent, updated_at = p.at,
            answered = p.answered, key_number = p.key_number, refund_id = p.refund_id,
            method = p.method, request = p.request,
            due_at = CASE WHEN payments.status = p.status THEN payments.due_at ELSE now() END
        FROM unnest($1::uuid[], $2::text[], $3::integer[], $4::text[], $5::text[], $6::uuid[], $7::uuid[], $8::text[],
                    $9::timestamptz[], $10::integer[], $11::integer[], $12::text[], $13::text[], $14::text[])
            AS p (order_id, status, attempts, reference, failure_code, correlation, causation, traceparent, at,
                  answered, key_number, refund_id, method, request)
        WHERE payments.order_id = p.order_id"#,
        &orders,
        &statuses as &[&str],
        &attempts,
        &references as &[Option<&str>],
        &failures as &[Option<&str>],
        &causes.correlations as &[Option<Uuid>],
        &causes.causations as &[Option<Uuid>],
        &causes.traceparents as &[Option<&str>],
        &times,
        &answered,
        &keys,
        &refunds as &[Option<&str>],
        &methods as &[Option<&str>],
        &requests as &[Option<&str>]
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// The column of a method. The table's constraint wants a text also where it is forgotten.
fn method_text(charge: &Charge) -> &str {
    let method = charge.method.as_ref();
    method.map_or(PaymentMethod::FORGOTTEN, PaymentMethod::as_str)
}

/// Forgets the methods of up to a thousand settled charges behind `after`, and returns their
/// orders.
pub async fn forget_methods(pool: &PgPool, after: Uuid) -> sqlx::Result<Vec<Uuid>> {
    sqlx::query_scalar!(
        r#"-- payments_forget_methods
        UPDATE payments SET method = 'forgotten', request = NULL
        WHERE order_id IN (
            SELECT order_id FROM payments
            WHERE status <> 'pending' AND (method <> 'forgotten' OR request IS NOT NULL) AND order_id > $1
            ORDER BY order_id LIMIT 1000 FOR UPDATE)
        RETURNING order_id"#,
        after
    )
    .fetch_all(pool)
    .await
}

/// Causes as columns.
struct CauseColumns<'a> {
    correlations: Vec<Option<Uuid>>,
    causations: Vec<Option<Uuid>>,
    traceparents: Vec<Option<&'a str>>,
}

impl<'a> CauseColumns<'a> {
    fn new(causes: impl Iterator<Item = Option<&'a Cause>> + Clone) -> Self {
        let correlations = causes
            .clone()
            .map(|cause| cause.map(|c| c.correlation_id.0));
        let causations = causes.clone().map(|cause| cause.map(|c| c.causation_id.0));
        let traceparents = causes.map(|cause| cause.and_then(|c| c.traceparent.as_deref()));
        Self {
            correlations: correlations.collect(),
            causations: causations.collect(),
            traceparents: traceparents.collect(),
        }
    }
}

impl Row {
    fn read(self) -> sqlx::Result<Payment> {
        let status = read_status(&self.status)?;
        // The version before this one does not forget it.
        let is_open = status == Status::Pending;
        let cause = read_cause(
            self.charge_correlation_id,
            self.charge_causation_id,
            self.charge_traceparent,
        );
        // The table's constraint: all of these are null, or none.
        let charge = match (self.amount, self.currency, self.method, self.lines, cause) {
            (Some(amount), Some(currency), Some(method), Some(Json(lines)), Some(cause)) => {
                Some(Charge {
                    amount: Money::new(amount, currency.parse().map_err(decode)?),
                    method: match is_open {
                        true => Some(PaymentMethod::try_from(method).map_err(decode)?),
                        false => None,
                    },
                    lines: serde_json::from_str(lines.get())
                        .map_err(|error| sqlx::Error::Decode(error.into()))?,
                    deadline: self.deadline,
                    request: self.request.filter(|_| is_open),
                    cause,
                })
            }
            _ => None,
        };
        let cancelled = read_cause(
            self.cancel_correlation_id,
            self.cancel_causation_id,
            self.cancel_traceparent,
        );
        Ok(Payment {
            identity: Identity {
                payment_id: PaymentId(self.payment_id),
                order_id: OrderId(self.order_id),
                customer_id: CustomerId(self.customer_id),
            },
            charge,
            status,
            cancelled,
            attempts: self.attempts,
            answered: self.answered,
            key_number: self.key_number,
            refund_id: self.refund_id,
            reference: self.reference,
            failure_code: self.failure_code,
            updated_at: self.updated_at,
        })
    }
}

fn read_cause(
    correlation: Option<Uuid>,
    causation: Option<Uuid>,
    traceparent: Option<String>,
) -> Option<Cause> {
    Some(Cause {
        correlation_id: CorrelationId(correlation?),
        causation_id: EventId(causation?),
        traceparent,
    })
}

fn read_status(text: &str) -> sqlx::Result<Status> {
    let mut all = Status::ALL.into_iter();
    let known = all.find(|status| status.as_str() == text);
    // The table's constraint excludes any other.
    known.ok_or_else(|| sqlx::Error::Decode(format!("a payment cannot be {text:?}").into()))
}

fn decode(error: InvalidValue) -> sqlx::Error {
    sqlx::Error::Decode(error.into())
}
