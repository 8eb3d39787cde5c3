//! What is old is dropped, and nothing else.
#![expect(clippy::unwrap_used, reason = "test support")]

use std::time::{Duration, SystemTime};

use contracts::OrderId;
use devstack::test::eventually;
use sqlx::{AssertSqlSafe, Executor as _, PgPool};
use uuid::Uuid;

use crate::fixture::Fixture;

const DAY: Duration = Duration::from_secs(24 * 3600);

async fn partitions(pool: &PgPool, table: &str) -> Vec<String> {
    let partitions =
        "SELECT relname::text FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
                      WHERE inhparent = to_regclass($1) ORDER BY 1";
    let partitions = sqlx::query_scalar(partitions).bind(table);
    partitions.fetch_all(pool).await.unwrap()
}

/// Makes the partition of a day, as if the service had run then.
async fn make_partition(pool: &PgPool, table: &str, days_ago: i32) -> String {
    let bounds = "
        WITH days AS (SELECT date_trunc('day', now(), 'utc') - make_interval(days => $2 - n) AS day, n
                      FROM generate_series(0, 1) AS n)
        SELECT $1 || to_char(min(day) AT TIME ZONE 'utc', '_YYYYMMDD'),
               array_agg(CASE WHEN $1 = 'outbox' THEN day::text
                         ELSE lpad(to_hex((extract(epoch FROM day) * 1000)::bigint), 12, '0')
                              || repeat('0', 20) END ORDER BY n)
        FROM days";
    let bounds = sqlx::query_as::<_, (String, Vec<String>)>(bounds);
    let (name, bounds) = bounds
        .bind(table)
        .bind(days_ago)
        .fetch_one(pool)
        .await
        .unwrap();
    let (from, to) = (&bounds[0], &bounds[1]);
    let create =
        format!("CREATE TABLE {name} PARTITION OF {table} FOR VALUES FROM ('{from}') TO ('{to}')");
    let create = sqlx::query(AssertSqlSafe(create));
    create.execute(pool).await.unwrap();
    name
}

/// Appends an event that was recorded some days ago.
async fn append_old(fixture: &Fixture, days_ago: i32) {
    let published = fixture.append_quietly(OrderId::new()).await;
    let age =
        "UPDATE outbox SET recorded_at = now() - make_interval(days => $2) WHERE event_id = $1";
    let age = sqlx::query(age).bind(published.event_id.0).bind(days_ago);
    age.execute(&fixture.publisher.pool).await.unwrap();
}

#[tokio::test]
async fn partitions_are_made_ahead_and_dropped_when_their_events_are_old_and_handled() {
    let fixture = Fixture::new().await;
    let pool = &fixture.publisher.pool;
    let with_set_aside = make_partition(pool, "outbox", 11).await;
    let old = make_partition(pool, "outbox", 10).await;
    let recent = make_partition(pool, "outbox", 5).await;
    let old_inbox = make_partition(pool, "inbox", 12).await;
    append_old(&fixture, 11).await;
    let spoil = sqlx::query("UPDATE outbox SET subject = 'order. confirmed'");
    spoil.execute(pool).await.unwrap();
    append_old(&fixture, 10).await;
    append_old(&fixture, 5).await;

    // No subscriber has been there: the events are kept for it, however old.
    let publisher = fixture.run_publisher();
    eventually("the old partition of the inbox is dropped", async || {
        !partitions(pool, "inbox").await.contains(&old_inbox)
    })
    .await;
    eventually("partitions are made ahead", async || {
        // The default ones, those of the test, and three days; the default inbox is empty, so that
        // today has one, too.
        partitions(pool, "outbox").await.len() == 8 && partitions(pool, "inbox").await.len() == 5
    })
    .await;
    assert!(partitions(pool, "outbox").await.contains(&old));
    fixture.declare_consumers().await;
    let consumer = fixture.run_consumer();
    eventually("all subscribers have handled all", async || {
        fixture.unhandled().await == 0
    })
    .await;
    publisher.stop().await;

    // A backup uses the table: nothing is dropped, and nobody waits for it.
    let mut backup = pool.begin().await.unwrap();
    sqlx::query("LOCK TABLE outbox IN ACCESS SHARE MODE")
        .execute(&mut *backup)
        .await
        .unwrap();
    let publisher = fixture.run_publisher();
    let during = OrderId::new();
    fixture.publish(during).await;
    eventually("an event is applied during the backup", async || {
        fixture.applied().await.contains(&during)
    })
    .await;
    assert!(partitions(pool, "outbox").await.contains(&old));
    publisher.stop().await;
    backup.rollback().await.unwrap();

    let publisher = fixture.run_publisher();
    eventually("the old partition is dropped", async || {
        !partitions(pool, "outbox").await.contains(&old)
    })
    .await;
    assert!(partitions(pool, "outbox").await.contains(&recent));
    // It has the only copy of an event that could not be published.
    assert!(partitions(pool, "outbox").await.contains(&with_set_aside));
    publisher.stop().await;
    consumer.stop().await;
}

/// PostgreSQL refuses a row that has waited for the default partition and does not belong there any
/// more, with the code of a violated constraint. The event is not to blame.
#[tokio::test]
async fn an_event_that_waits_while_its_partition_is_made_is_applied_and_no_attempt_is_counted() {
    let mut fixture = Fixture::new().await;
    fixture.consumer.max_attempts = 1;
    fixture.declare().await;
    let pool = fixture.consumer.pool.clone();
    let mut making = pool.begin().await.unwrap();
    sqlx::query("SELECT make_partition('inbox', (now() AT TIME ZONE 'UTC')::date)")
        .execute(&mut *making)
        .await
        .unwrap();
    let order = OrderId::new();
    fixture.publish_copy_of(order).await;
    let consumer = fixture.run_consumer();
    eventually("the event waits for the partition", async || {
        let waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
            AND wait_event_type = 'Lock' AND query LIKE '-- inbox_claim%'";
        let waiting = sqlx::query_scalar::<_, i64>(waiting);
        waiting.fetch_one(&pool).await.unwrap() == 1
    })
    .await;
    making.commit().await.unwrap();
    eventually("the event is applied or a dead letter", async || {
        !fixture.applied().await.is_empty() || !fixture.dead_letters().await.is_empty()
    })
    .await;
    assert_eq!(fixture.applied().await, [order]);
    consumer.stop().await;
    assert_eq!(fixture.dead_letters().await.len(), 0);
}

#[tokio::test]
async fn what_is_older_than_its_retention_is_pruned_and_nothing_else() {
    let fixture = Fixture::new().await;
    let pool = &fixture.consumer.pool;
    // The inbox keeps events for 8 days. The third is old, but it arrived only now.
    for (age, received) in [(7, "7 days"), (9, "9 days"), (10, "1 hour")] {
        let insert = "INSERT INTO inbox SELECT $1, now() - $2::text::interval";
        let insert = sqlx::query(insert).bind(messaging::oldest_id(DAY * age));
        insert.bind(received).execute(pool).await.unwrap();
    }
    let consumer = fixture.run_consumer();
    let left = async || {
        let left = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM inbox");
        left.fetch_one(pool).await.unwrap()
    };
    eventually("the old row is pruned", async || left().await == 2).await;
    consumer.stop().await;
    assert_eq!(left().await, 2);
}

#[tokio::test]
async fn an_event_is_applied_once_whatever_partition_its_id_belongs_to() {
    let fixture = Fixture::new().await;
    fixture.declare().await;
    make_partition(&fixture.consumer.pool, "inbox", 0).await;
    let consumer = fixture.run_consumer();
    // Of today, of a day without a partition, and of no time at all.
    let ids = [
        Uuid::now_v7(),
        messaging::oldest_id(DAY * 3),
        Uuid::from_u128(7),
    ];
    let orders = ids.map(OrderId);
    for expected in [3, 3] {
        for order in orders {
            fixture.publish_copy_of(order).await;
        }
        eventually("everything is acknowledged", async || {
            fixture.applied().await.len() >= expected && fixture.is_idle("ORDER").await
        })
        .await;
    }
    assert_eq!(fixture.applied().await.len(), 3);
    consumer.stop().await;
}

/// The version before makes the partitions by itself, and both run beside each other during an
/// upgrade.
#[tokio::test]
async fn a_partition_begins_where_that_of_the_version_before_ends() {
    let (pool, _) = devstack::test::database(&[messaging::migrator()])
        .await
        .unwrap();
    let bounds = async |partition: String| {
        let bounds = "SELECT pg_get_expr(relpartbound, oid) FROM pg_class WHERE relname = $1";
        let bounds = sqlx::query_scalar::<_, String>(bounds).bind(partition);
        bounds.fetch_one(&pool).await.unwrap()
    };
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap();
    let day = |ahead: u32| {
        let days = now.as_secs() / DAY.as_secs() + u64::from(ahead);
        let begin = days * DAY.as_secs();
        let id = uuid::Builder::from_unix_timestamp_millis(begin * 1000, &[0; 10]).into_uuid();
        let day = "SELECT to_char(to_timestamp($1) AT TIME ZONE 'UTC', 'YYYY-MM-DD')";
        let day = sqlx::query_scalar::<_, String>(day).bind(begin as f64);
        let pool = pool.clone();
        async move { (day.fetch_one(&pool).await.unwrap(), id.to_string()) }
    };
    let (day_one, id_one) = day(2).await;
    let (day_two, id_two) = day(3).await;
    let (day_three, id_three) = day(4).await;
    for (table, from, between, to) in [
        ("inbox", id_one, id_two, id_three),
        (
            "outbox",
            format!("{day_one} 00:00:00+00"),
            format!("{day_two} 00:00:00+00"),
            format!("{day_three} 00:00:00+00"),
        ),
    ] {
        let before = format!(
            "CREATE TABLE {table}_before (LIKE {table}_default INCLUDING ALL);
             ALTER TABLE {table} ATTACH PARTITION {table}_before
                 FOR VALUES FROM ('{from}') TO ('{between}')"
        );
        pool.execute(AssertSqlSafe(before)).await.unwrap();
        // Whatever the session's settings are.
        let make = format!(
            "SET timezone = 'Asia/Tokyo'; SET datestyle = 'SQL, DMY';
             SELECT make_partition('{table}', '{day_two}'); RESET ALL"
        );
        pool.execute(AssertSqlSafe(make)).await.unwrap();
        let made = format!("{table}_{}", day_two.replace('-', ""));
        let expected = format!("FOR VALUES FROM ('{between}') TO ('{to}')");
        assert_eq!(bounds(made).await, expected);
        assert_eq!(
            bounds(format!("{table}_before")).await,
            format!("FOR VALUES FROM ('{from}') TO ('{between}')")
        );
    }
}
