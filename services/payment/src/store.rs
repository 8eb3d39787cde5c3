//! All SQL of the payment service. Set-based: one statement for any number of payments.

use std::time::Duration;

use contracts::{CorrelationId, CustomerId, EventId, Money, OrderId, OrderLine, PaymentId};
use messaging::outbox::Cause;
use sqlx::{PgConnection, PgPool, types::Json};
use uuid::Uuid;

use crate::domain::{Charge, Payment, Status};

struct Row {
    order_id: Uuid,
    payment_id: Uuid,
    customer_id: Uuid,
    status: String,
    amount: Option<i64>,
    currency: Option<String>,
    method: Option<String>,
    lines: Option<Json<Vec<OrderLine>>>,
    charge_correlation_id: Option<Uuid>,
    charge_causation_id: Option<Uuid>,
    charge_traceparent: Option<String>,
    cancel_correlation_id: Option<Uuid>,
    cancel_causation_id: Option<Uuid>,
    cancel_traceparent: Option<String>,
    attempts: i32,
    reference: Option<String>,
    failure_code: Option<String>,
}

/// Locks payments by order, in key order, so that batches cannot deadlock. Those that do not exist
/// are left out.
pub(crate) async fn lock(tx: &mut PgConnection, orders: &[OrderId]) -> sqlx::Result<Vec<Payment>> {
    let orders: Vec<Uuid> = orders.iter().map(|order| order.0).collect();
    let rows = sqlx::query_as!(
        Row,
        r#"-- payments_lock
        SELECT order_id, payment_id, customer_id, status, amount, currency, method,
               lines AS "lines: Json<Vec<OrderLine>>",
               charge_correlation_id, charge_causation_id, charge_traceparent,
               cancel_correlation_id, cancel_causation_id, cancel_traceparent, attempts, reference, failure_code
        FROM payments WHERE order_id = ANY($1) ORDER BY order_id FOR UPDATE"#,
        &orders
    )
    .fetch_all(tx)
    .await?;
    rows.into_iter().map(Row::read).collect()
}

/// The payment of one order.
pub(crate) async fn find(pool: &PgPool, order: OrderId) -> sqlx::Result<Option<Payment>> {
    let row = sqlx::query_as!(
        Row,
        r#"-- payment_find
        SELECT order_id, payment_id, customer_id, status, amount, currency, method,
               lines AS "lines: Json<Vec<OrderLine>>",
               charge_correlation_id, charge_causation_id, charge_traceparent,
               cancel_correlation_id, cancel_causation_id, cancel_traceparent, attempts, reference, failure_code
        FROM payments WHERE order_id = $1"#,
        order.0
    )
    .fetch_optional(pool)
    .await?;
    row.map(Row::read).transpose()
}

/// Takes up to `limit` payments that are due: counts the attempt and keeps other workers off for
/// `lease`. Committed before the provider is asked, so that a payment without attempts is one that
/// the provider cannot know of.
pub(crate) async fn lease(
    pool: &PgPool,
    limit: i64,
    lease: Duration,
) -> sqlx::Result<Vec<Payment>> {
    let rows = sqlx::query_as!(
        Row,
        r#"-- payments_lease
        UPDATE payments SET attempts = attempts + 1, due_at = now() + make_interval(secs => $2)
        WHERE order_id IN (
            SELECT order_id FROM payments WHERE status IN ('pending', 'refunding') AND due_at <= now()
            ORDER BY due_at LIMIT $1 FOR UPDATE SKIP LOCKED)
        RETURNING order_id, payment_id, customer_id, status, amount, currency, method,
                  lines AS "lines: Json<Vec<OrderLine>>",
                  charge_correlation_id, charge_causation_id, charge_traceparent,
                  cancel_correlation_id, cancel_causation_id, cancel_traceparent, attempts, reference, failure_code"#,
        limit,
        lease.as_secs_f64()
    )
    .fetch_all(pool)
    .await?;
    rows.into_iter().map(Row::read).collect()
}

/// Asks again later about payments whose outcome is not known.
pub(crate) async fn postpone(
    tx: &mut PgConnection,
    later: &[(OrderId, Duration)],
) -> sqlx::Result<()> {
    if later.is_empty() {
        return Ok(());
    }
    let (orders, delays): (Vec<Uuid>, Vec<f64>) = later
        .iter()
        .map(|(order, delay)| (order.0, delay.as_secs_f64()))
        .unzip();
    sqlx::query!(
        r#"-- payments_postpone
        UPDATE payments SET due_at = now() + make_interval(secs => later.delay)
        FROM unnest($1::uuid[], $2::double precision[]) AS later (order_id, delay)
        WHERE payments.order_id = later.order_id"#,
        &orders,
        &delays
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Inserts new payments. One that exists by now is an error: the batch is then tried again and
/// finds it.
pub(crate) async fn insert(tx: &mut PgConnection, payments: &[&Payment]) -> sqlx::Result<()> {
    if payments.is_empty() {
        return Ok(());
    }
    let charge = |payment: &&Payment| payment.charge.clone();
    let charges: Vec<Option<Charge>> = payments.iter().map(charge).collect();
    let orders: Vec<_> = payments.iter().map(|payment| payment.order_id.0).collect();
    let ids: Vec<_> = payments.iter().map(|payment| payment.id.0).collect();
    let customers: Vec<_> = payments
        .iter()
        .map(|payment| payment.customer_id.0)
        .collect();
    let statuses: Vec<_> = payments
        .iter()
        .map(|payment| status_text(payment.status))
        .collect();
    let of = |charge: &'_ Option<Charge>| charge.as_ref().map(|charge| charge.amount.amount);
    let amounts: Vec<_> = charges.iter().map(of).collect();
    let currencies: Vec<_> = charges
        .iter()
        .map(|c| c.as_ref().map(|c| c.amount.currency.as_str()))
        .collect();
    let methods: Vec<_> = charges
        .iter()
        .map(|c| c.as_ref().map(|c| c.method.as_str()))
        .collect();
    let lines: Vec<_> = charges
        .iter()
        .map(|c| c.as_ref().map(|c| Json(&c.lines)))
        .collect();
    let charge_causes = Causes::of(
        charges
            .iter()
            .map(|charge| charge.as_ref().map(|charge| &charge.cause)),
    );
    let cancel_causes = Causes::of(payments.iter().map(|payment| payment.cancelled.as_ref()));
    sqlx::query!(
        r#"-- payments_insert
        INSERT INTO payments (order_id, payment_id, customer_id, status, amount, currency, method, lines,
                              charge_correlation_id, charge_causation_id, charge_traceparent,
                              cancel_correlation_id, cancel_causation_id, cancel_traceparent)
        SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::text[], $5::bigint[], $6::text[], $7::text[],
                             $8::jsonb[], $9::uuid[], $10::uuid[], $11::text[], $12::uuid[], $13::uuid[], $14::text[])"#,
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
        &cancel_causes.traceparents as &[Option<&str>]
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Writes what may change of locked payments; what is to be done next is due at once.
pub(crate) async fn update(tx: &mut PgConnection, payments: &[&Payment]) -> sqlx::Result<()> {
    if payments.is_empty() {
        return Ok(());
    }
    let orders: Vec<_> = payments.iter().map(|payment| payment.order_id.0).collect();
    let statuses: Vec<_> = payments
        .iter()
        .map(|payment| status_text(payment.status))
        .collect();
    let attempts: Vec<_> = payments.iter().map(|payment| payment.attempts).collect();
    let references: Vec<_> = payments
        .iter()
        .map(|payment| payment.reference.as_deref())
        .collect();
    let failures: Vec<_> = payments
        .iter()
        .map(|payment| payment.failure_code.as_deref())
        .collect();
    let causes = Causes::of(payments.iter().map(|payment| payment.cancelled.as_ref()));
    sqlx::query!(
        r#"-- payments_update
        UPDATE payments
        SET status = p.status, attempts = p.attempts, reference = p.reference, failure_code = p.failure_code,
            cancel_correlation_id = p.correlation, cancel_causation_id = p.causation,
            cancel_traceparent = p.traceparent, updated_at = now(),
            due_at = CASE WHEN payments.status = p.status THEN payments.due_at ELSE now() END
        FROM unnest($1::uuid[], $2::text[], $3::integer[], $4::text[], $5::text[], $6::uuid[], $7::uuid[], $8::text[])
            AS p (order_id, status, attempts, reference, failure_code, correlation, causation, traceparent)
        WHERE payments.order_id = p.order_id"#,
        &orders,
        &statuses as &[&str],
        &attempts,
        &references as &[Option<&str>],
        &failures as &[Option<&str>],
        &causes.correlations as &[Option<Uuid>],
        &causes.causations as &[Option<Uuid>],
        &causes.traceparents as &[Option<&str>]
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Causes as columns.
struct Causes<'a> {
    correlations: Vec<Option<Uuid>>,
    causations: Vec<Option<Uuid>>,
    traceparents: Vec<Option<&'a str>>,
}

impl<'a> Causes<'a> {
    fn of(causes: impl Iterator<Item = Option<&'a Cause>> + Clone) -> Self {
        Self {
            correlations: causes
                .clone()
                .map(|cause| cause.map(|cause| cause.correlation_id.0))
                .collect(),
            causations: causes
                .clone()
                .map(|cause| cause.map(|cause| cause.causation_id.0))
                .collect(),
            traceparents: causes
                .map(|cause| cause.and_then(|cause| cause.traceparent.as_deref()))
                .collect(),
        }
    }
}

impl Row {
    fn read(self) -> sqlx::Result<Payment> {
        let charge_cause = cause(
            self.charge_correlation_id,
            self.charge_causation_id,
            self.charge_traceparent,
        );
        let charge = match (
            self.amount,
            self.currency,
            self.method,
            self.lines,
            charge_cause,
        ) {
            (Some(amount), Some(currency), Some(method), Some(Json(lines)), Some(cause)) => {
                Some(Charge {
                    amount: Money { amount, currency },
                    method,
                    lines,
                    cause,
                })
            }
            _ => None,
        };
        Ok(Payment {
            id: PaymentId(self.payment_id),
            order_id: OrderId(self.order_id),
            customer_id: CustomerId(self.customer_id),
            charge,
            status: read_status(&self.status)?,
            cancelled: cause(
                self.cancel_correlation_id,
                self.cancel_causation_id,
                self.cancel_traceparent,
            ),
            attempts: self.attempts,
            reference: self.reference,
            failure_code: self.failure_code,
        })
    }
}

fn cause(
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

const fn status_text(status: Status) -> &'static str {
    match status {
        Status::Pending => "pending",
        Status::Completed => "completed",
        Status::Failed => "failed",
        Status::Voided => "voided",
        Status::Refunding => "refunding",
        Status::Refunded => "refunded",
    }
}

fn read_status(text: &str) -> sqlx::Result<Status> {
    use Status::{Completed, Failed, Pending, Refunded, Refunding, Voided};
    [Pending, Completed, Failed, Voided, Refunding, Refunded]
        .into_iter()
        .find(|status| status_text(*status) == text)
        // The table's constraint excludes this.
        .ok_or_else(|| sqlx::Error::Decode(format!("a payment cannot be {text:?}").into()))
}
