//! Waiting until nothing is in flight: what is still on its way breaks no invariant yet.

use std::time::Duration;

use async_nats::jetstream::consumer::PullConsumer;
use contracts::choreography::{Service, listens_to};
use tokio::time::Instant;

use crate::facts::Sources;

/// Waits for at most `most`; returns what is in flight then.
pub(super) async fn wait(sources: &Sources, most: Duration) -> anyhow::Result<Vec<String>> {
    let until = Instant::now() + most;
    loop {
        let moving = in_flight(sources).await?;
        if moving.is_empty() || Instant::now() > until {
            return Ok(moving);
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn in_flight(sources: &Sources) -> anyhow::Result<Vec<String>> {
    let mut moving = Vec::new();
    let mut count = async |service: Service, what: &str, sql: &'static str| {
        let number: i64 = sqlx::query_scalar(sql)
            .fetch_one(sources.database(service)?)
            .await?;
        if number > 0 {
            moving.push(format!("{number} {what}"));
        }
        anyhow::Ok(())
    };
    count(
        Service::Order,
        "orders",
        "SELECT count(*) FROM orders WHERE status IN ('pending', 'paid')",
    )
    .await?;
    let sql = "SELECT count(*) FROM payments WHERE status IN ('pending', 'refunding')";
    count(Service::Payment, "payments", sql).await?;
    for service in Service::ALL {
        let what = format!("events in the outbox of {service}");
        count(
            service,
            &what,
            "SELECT count(*) FROM outbox WHERE sent_at IS NULL",
        )
        .await?;
    }
    for service in Service::ALL {
        for owner in Service::ALL {
            let Some(stream) = owner
                .stream()
                .filter(|_| !listens_to(service, owner).is_empty())
            else {
                continue;
            };
            let stream = sources.jetstream.get_stream(stream).await?;
            let mut consumer: PullConsumer = stream
                .get_consumer(service.name())
                .await
                .map_err(anyhow::Error::from_boxed)?;
            let info = consumer.info().await?;
            let (waiting, unacknowledged) = (info.num_pending, info.num_ack_pending);
            if waiting > 0 || unacknowledged > 0 {
                moving.push(format!(
                    "{waiting} events of {owner} for {service} and {unacknowledged} in its hands"
                ));
            }
        }
    }
    Ok(moving)
}
