//! All SQL of the notification service.

use contracts::{CustomerId, NotificationId, OrderId};
use messaging::outbox;
use sqlx::{PgConnection, PgPool};
use time::OffsetDateTime;
use uuid::Uuid;

/// What a customer is told about an order, at most once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The order is confirmed.
    OrderConfirmed,
    /// The order was cancelled.
    OrderCancelled,
    /// What had been captured was given back.
    PaymentRefunded,
}

impl Kind {
    const fn as_str(self) -> &'static str {
        match self {
            Self::OrderConfirmed => "order_confirmed",
            Self::OrderCancelled => "order_cancelled",
            Self::PaymentRefunded => "payment_refunded",
        }
    }
}

/// Tells customers, all with one statement; what was told before is not told again. With `mail` a
/// mail is due for each.
pub(crate) async fn tell(
    tx: &mut PgConnection,
    all: &[(OrderId, CustomerId, Kind)],
    mail: bool,
) -> sqlx::Result<()> {
    let ids: Vec<_> = all.iter().map(|_| NotificationId::new().0).collect();
    let orders: Vec<_> = all.iter().map(|(order, ..)| order.0).collect();
    let customers: Vec<_> = all.iter().map(|(_, customer, _)| customer.0).collect();
    let kinds: Vec<_> = all.iter().map(|(.., kind)| kind.as_str()).collect();
    sqlx::query!(
        r#"-- notifications_tell
        INSERT INTO notifications (notification_id, order_id, customer_id, kind, created_at, mail_due_at)
        SELECT n.*, $5::timestamptz, CASE WHEN $6 THEN $5::timestamptz END FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::text[]) AS n
        ON CONFLICT ON CONSTRAINT notifications_once DO NOTHING"#,
        &ids,
        &orders,
        &customers,
        &kinds as &[&str],
        outbox::now(),
        mail
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// A notification as the table keeps it.
pub(crate) struct Notification {
    pub(crate) notification_id: Uuid,
    pub(crate) kind: Kind,
    pub(crate) created_at: OffsetDateTime,
}

/// What was told about one order, oldest first.
pub(crate) async fn about(pool: &PgPool, order: OrderId) -> sqlx::Result<Vec<Notification>> {
    let rows = sqlx::query!(
        r#"-- notifications_about
        SELECT notification_id, kind, created_at FROM notifications
        WHERE order_id = $1 ORDER BY created_at, notification_id"#,
        order.0
    )
    .fetch_all(pool)
    .await?;
    rows.into_iter()
        .map(|row| {
            let kind = read_kind(&row.kind)?;
            Ok(Notification {
                notification_id: row.notification_id,
                kind,
                created_at: row.created_at,
            })
        })
        .collect()
}

/// A mail that is due.
#[derive(Debug)]
pub(crate) struct Mail {
    pub(crate) notification_id: Uuid,
    pub(crate) order_id: OrderId,
    pub(crate) customer_id: CustomerId,
    pub(crate) kind: Kind,
    /// How often it was tried before.
    pub(crate) attempts: i32,
}

/// Takes mails that are due, oldest first; nobody else gets them before `until`.
pub(crate) async fn lease(
    pool: &PgPool,
    most: i64,
    until: OffsetDateTime,
) -> sqlx::Result<Vec<Mail>> {
    let rows = sqlx::query!(
        r#"-- mails_lease
        UPDATE notifications SET mail_due_at = $2, mail_attempts = mail_attempts + 1
        WHERE notification_id IN (
            SELECT notification_id FROM notifications WHERE mail_due_at <= now()
            ORDER BY mail_due_at LIMIT $1 FOR UPDATE SKIP LOCKED)
        RETURNING notification_id, order_id, customer_id, kind, mail_attempts - 1 AS "attempts!""#,
        most,
        until
    )
    .fetch_all(pool)
    .await?;
    rows.into_iter()
        .map(|row| {
            Ok(Mail {
                notification_id: row.notification_id,
                order_id: OrderId(row.order_id),
                customer_id: CustomerId(row.customer_id),
                kind: read_kind(&row.kind)?,
                attempts: row.attempts,
            })
        })
        .collect()
}

/// Remembers what became of mails: those without a time are sent, the others are due again then.
pub(crate) async fn settle(
    pool: &PgPool,
    mails: &[(Uuid, Option<OffsetDateTime>)],
) -> sqlx::Result<()> {
    let ids: Vec<_> = mails.iter().map(|(id, _)| *id).collect();
    let due: Vec<_> = mails.iter().map(|(_, due)| *due).collect();
    sqlx::query!(
        r#"-- mails_settle
        UPDATE notifications AS n SET mail_due_at = m.due
        FROM unnest($1::uuid[], $2::timestamptz[]) AS m (id, due) WHERE n.notification_id = m.id"#,
        &ids,
        &due as &[Option<OffsetDateTime>]
    )
    .execute(pool)
    .await?;
    Ok(())
}

fn read_kind(text: &str) -> sqlx::Result<Kind> {
    [
        Kind::OrderConfirmed,
        Kind::OrderCancelled,
        Kind::PaymentRefunded,
    ]
    .into_iter()
    .find(|kind| kind.as_str() == text)
    // The table's constraint excludes this.
    .ok_or_else(|| sqlx::Error::Decode(format!("a notification cannot be {text:?}").into()))
}
