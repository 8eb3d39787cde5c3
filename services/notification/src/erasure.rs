//! Erases a customer: the notification keeps what was said about which order, and the id of the
//! order replaces the customer's. Mails that wait are given up. Its SQL is here.
//!
//! A notification is erased when the streams do not have its event any more. Order and payment are
//! erased first: they know what this service has yet to hear of.

use anyhow::Context as _;
use chassis::{Erase, Step};
use contracts::CustomerId;
use sqlx::PgConnection;
use uuid::Uuid;

#[derive(Debug)]
pub struct Notifications;

impl Erase for Notifications {
    async fn step(
        tx: &mut PgConnection,
        customer: CustomerId,
        after: Uuid,
    ) -> anyhow::Result<Step> {
        let found = lock(tx, customer, after).await;
        let found = found.context("lock notifications")?;
        let old = found.iter().filter(|notification| notification.is_old);
        let old: Vec<Uuid> = old
            .map(|notification| notification.notification_id)
            .collect();
        let notifications = erase_notifications(tx, &old).await;
        let notifications = notifications.context("erase notifications")?;
        Ok(Step {
            last: found
                .last()
                .map(|notification| notification.notification_id),
            waiting: found.len() - old.len(),
            erased: vec![("notifications", notifications)],
        })
    }
}

struct Found {
    notification_id: Uuid,
    is_old: bool,
}

/// Locks the next notifications of a customer.
async fn lock(
    tx: &mut PgConnection,
    customer: CustomerId,
    after: Uuid,
) -> sqlx::Result<Vec<Found>> {
    sqlx::query_as!(
        Found,
        r#"-- notifications_erase_lock
        SELECT notification_id, created_at < now() - make_interval(secs => $3) AS "is_old!"
        FROM notifications WHERE customer_id = $1 AND notification_id > $2
        ORDER BY notification_id LIMIT $4 FOR UPDATE"#,
        customer.0,
        after,
        Step::AGE,
        Step::ROWS
    )
    .fetch_all(tx)
    .await
}

/// Why a mail was given up may quote the customer's address.
async fn erase_notifications(tx: &mut PgConnection, ids: &[Uuid]) -> sqlx::Result<u64> {
    let erased = sqlx::query!(
        r#"-- notifications_erase
        UPDATE notifications SET customer_id = order_id, mail_due_at = NULL,
            mail_given_up_at = coalesce(mail_given_up_at, CASE WHEN mail_due_at IS NOT NULL THEN now() END),
            mail_given_up_reason = CASE WHEN coalesce(mail_given_up_at, mail_due_at) IS NOT NULL
                THEN 'the customer was erased' END
        WHERE notification_id = ANY($1)"#,
        ids
    );
    Ok(erased.execute(tx).await?.rows_affected())
}
