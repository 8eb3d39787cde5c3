//! The SQL of the notification service.

use std::{collections::HashMap, time::Duration};

use contracts::{CustomerId, NotificationId, OrderId};
use messaging::outbox;
use sqlx::{PgConnection, PgPool};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::kind::Kind;

/// A notification that is about to be inserted.
#[derive(Debug)]
pub struct NewNotification {
    pub order_id: OrderId,
    pub customer_id: CustomerId,
    pub kind: Kind,
    /// Its mail is not sent before.
    pub not_before: Option<OffsetDateTime>,
}

/// Locks orders for the caller's transaction, in key order, so that batches cannot deadlock:
/// each replica sees the notifications that others have committed. Orders have no row here that
/// could be locked.
pub async fn lock(tx: &mut PgConnection, orders: &[OrderId]) -> sqlx::Result<()> {
    let orders: Vec<Uuid> = orders.iter().map(|order| order.0).collect();
    sqlx::query!(
        r#"-- notifications_lock
        SELECT pg_advisory_xact_lock(hashtextextended(order_id::text, 0))
        FROM (
            SELECT DISTINCT order_id FROM unnest($1::uuid[]) AS o (order_id) ORDER BY order_id) AS o"#,
        &orders
    )
    .fetch_all(tx)
    .await?;
    Ok(())
}

/// Inserts notifications with one statement; existing ones stay as they are. With `mail` a mail is
/// due for each; that about a refund not before the one about the cancellation. A confirmation that
/// arrives after the cancellation, or after the refund that follows from it, is left out: it is not
/// true any more.
pub async fn insert(
    tx: &mut PgConnection,
    new: &[NewNotification],
    mail: bool,
) -> sqlx::Result<()> {
    let ids: Vec<_> = new.iter().map(|_| NotificationId::new().0).collect();
    let orders: Vec<_> = new.iter().map(|new| new.order_id.0).collect();
    let customers: Vec<_> = new.iter().map(|new| new.customer_id.0).collect();
    let kinds: Vec<_> = new.iter().map(|new| new.kind.as_str()).collect();
    let not_before: Vec<_> = new.iter().map(|new| new.not_before).collect();
    sqlx::query!(
        r#"-- notifications_insert
        INSERT INTO notifications (notification_id, order_id, customer_id, kind, created_at, mail_due_at)
        SELECT n.id, n.order_id, n.customer_id, n.kind, $5::timestamptz,
               CASE WHEN $6 THEN greatest(now(), n.not_before, (
                   SELECT told.mail_due_at FROM notifications AS told
                   WHERE told.order_id = n.order_id AND told.kind = 'order_cancelled'
                       AND n.kind = 'payment_refunded')) END
        FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::text[], $7::timestamptz[])
            AS n (id, order_id, customer_id, kind, not_before)
        WHERE NOT (n.kind = 'order_confirmed' AND EXISTS (
            SELECT FROM notifications AS told
            WHERE told.order_id = n.order_id
                AND told.kind IN ('order_cancelled', 'payment_refunded')))
        ON CONFLICT ON CONSTRAINT notifications_once DO NOTHING"#,
        &ids,
        &orders,
        &customers,
        &kinds as &[&str],
        outbox::now(),
        mail,
        &not_before as &[Option<OffsetDateTime>]
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Withdraws the mails about confirmations of orders that were cancelled meanwhile. Returns those
/// that may be on their way (or wait for another attempt, which looks the same), and until when: a
/// lease ends after at most `lease`.
pub async fn withdraw_confirmations(
    tx: &mut PgConnection,
    cancelled: &[OrderId],
    lease: Duration,
) -> sqlx::Result<HashMap<OrderId, OffsetDateTime>> {
    if cancelled.is_empty() {
        return Ok(HashMap::new());
    }
    let cancelled: Vec<Uuid> = cancelled.iter().map(|order| order.0).collect();
    let leased = sqlx::query!(
        r#"-- mails_withdraw
        WITH waiting AS MATERIALIZED (
            SELECT notification_id, mail_due_at, mail_attempts FROM notifications
            WHERE order_id = ANY($1) AND kind = 'order_confirmed' AND mail_due_at IS NOT NULL
            ORDER BY notification_id FOR UPDATE),
        withdrawn AS (
            UPDATE notifications SET mail_due_at = NULL FROM waiting
            WHERE notifications.notification_id = waiting.notification_id
            RETURNING order_id, waiting.mail_due_at AS due_at, waiting.mail_attempts AS attempts)
        SELECT order_id, least(due_at, now() + make_interval(secs => $2)) AS "until!"
        FROM withdrawn WHERE attempts > 0"#,
        &cancelled,
        lease.as_secs_f64()
    )
    .fetch_all(tx)
    .await?;
    let leased = leased.into_iter();
    Ok(leased
        .map(|row| (OrderId(row.order_id), row.until))
        .collect())
}

/// A notification as the table keeps it.
pub struct Notification {
    pub notification_id: NotificationId,
    pub kind: Kind,
    pub created_at: OffsetDateTime,
}

/// The notifications about one order, oldest first, but those of a kind that only a newer replica
/// knows.
pub async fn list(pool: &PgPool, order: OrderId) -> sqlx::Result<Vec<Notification>> {
    let rows = sqlx::query!(
        r#"-- notifications_list
        SELECT notification_id, kind, created_at FROM notifications
        WHERE order_id = $1 ORDER BY created_at, notification_id"#,
        order.0
    )
    .fetch_all(pool)
    .await?;
    let notifications = rows.into_iter().filter_map(|row| {
        Some(Notification {
            notification_id: NotificationId(row.notification_id),
            kind: read_kind(&row.kind)?,
            created_at: row.created_at,
        })
    });
    Ok(notifications.collect())
}

/// A mail that is due.
#[derive(Debug)]
pub struct Mail {
    pub notification_id: NotificationId,
    pub order_id: OrderId,
    pub customer_id: CustomerId,
    pub kind: Kind,
    /// Attempts so far, this one included.
    pub attempts: i32,
}

/// What came of a mail.
#[derive(Debug)]
pub enum Outcome {
    Sent,
    /// It is due again after this time.
    Retry(Duration),
    /// It is never due again; the text says why.
    GivenUp(String),
}

/// Leases mails that are due, oldest first: other replicas do not get them for as long as `lease`.
/// Those that were due longer ago than `reach` are left out: see [`Lookback`](messaging::Lookback).
/// So are those of a kind that only a newer replica knows.
pub async fn lease(
    pool: &PgPool,
    limit: usize,
    lease: Duration,
    reach: Duration,
) -> sqlx::Result<Vec<Mail>> {
    let rows = sqlx::query!(
        r#"-- mails_lease
        WITH due AS MATERIALIZED (
            SELECT notification_id FROM notifications
            WHERE mail_due_at <= now()
                AND mail_due_at > now() - make_interval(secs => $3)
                AND kind = ANY($4)
            ORDER BY mail_due_at LIMIT $1 FOR UPDATE SKIP LOCKED)
        UPDATE notifications
        SET mail_due_at = now() + make_interval(secs => $2), mail_attempts = mail_attempts + 1
        WHERE notification_id IN (SELECT notification_id FROM due)
        RETURNING notification_id, order_id, customer_id, kind, mail_attempts"#,
        i64::try_from(limit).unwrap_or(i64::MAX),
        lease.as_secs_f64(),
        reach.as_secs_f64(),
        &Kind::ALL.map(Kind::as_str) as &[&str]
    )
    .fetch_all(pool)
    .await?;
    let mails = rows.into_iter().filter_map(|row| {
        Some(Mail {
            notification_id: NotificationId(row.notification_id),
            order_id: OrderId(row.order_id),
            customer_id: CustomerId(row.customer_id),
            kind: read_kind(&row.kind)?,
            attempts: row.mail_attempts,
        })
    });
    Ok(mails.collect())
}

/// Records what came of a mail, unless it was withdrawn meanwhile. That it was sent is
/// recorded also when another replica has leased it by now; anything else only in the own lease.
pub async fn record_outcome(pool: &PgPool, mail: &Mail, outcome: &Outcome) -> sqlx::Result<()> {
    let (delay, reason) = match outcome {
        Outcome::Sent => (None, None),
        Outcome::Retry(delay) => (Some(delay.as_secs_f64()), None),
        Outcome::GivenUp(reason) => (None, Some(reason.as_str())),
    };
    sqlx::query!(
        r#"-- mails_record_outcome
        UPDATE notifications
        SET mail_due_at = now() + make_interval(secs => $2),
            mail_given_up_at = CASE WHEN $3::text IS NOT NULL THEN now() END,
            mail_given_up_reason = $3
        WHERE notification_id = $1 AND mail_due_at IS NOT NULL
            AND (mail_attempts = $4 OR ($2::double precision IS NULL AND $3::text IS NULL))"#,
        mail.notification_id.0,
        delay as Option<f64>,
        reason as Option<&str>,
        mail.attempts
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// `None` for a kind that only a newer replica knows.
fn read_kind(text: &str) -> Option<Kind> {
    Kind::ALL.into_iter().find(|kind| kind.as_str() == text)
}
