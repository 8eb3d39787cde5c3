//! Faults of what the services stand on, under load: databases that do not work for a while,
//! brokers that forget, clocks that differ. Every accepted order is accounted for.

use std::{
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Command,
    str::FromStr as _,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use e2e::{Harness, Shop, wait_for};
use sqlx::{
    AssertSqlSafe, Connection as _, Executor as _, PgConnection, postgres::PgConnectOptions,
};
use uuid::Uuid;

use crate::{Outcome, close, load::Load};

/// Orders before, during and after a fault.
const SOME: usize = 20;
/// What a consumer logs while its database cannot apply events.
const PAUSES: &str = "consumption pauses";

/// A load that keeps a small backlog while nothing moves for some seconds.
fn start_load(shop: &Shop) -> Load {
    Load::start_many(&shop.customer, 4, Duration::from_millis(100))
}

/// Ends the load, which accounts for its orders, and the system, which audits it.
async fn finish(shop: Shop, mut load: Load) -> Outcome {
    load.advance(SOME).await?;
    load.stop().await?;
    close(shop).await
}

/// Waits until a service has logged `text` so many times.
async fn until_logged(shop: &Shop, service: &str, text: &str, times: usize) -> anyhow::Result<()> {
    wait_for(&format!("{service} logs {text:?}"), async || {
        let log = shop.deployment.log(service).await?;
        Ok((log.matches(text).count() >= times).then_some(()))
    })
    .await
}

/// The administrator, in the database of a service.
async fn administrator(shop: &mut Shop, service: &str) -> anyhow::Result<PgConnection> {
    let url = &shop.endpoints().databases[service];
    let options = PgConnectOptions::from_str(url)?;
    let name = options.get_database().context("a URL has a database")?;
    let name = name.to_owned();
    let postgres = shop.deployment.processes()?.postgres()?;
    Ok(PgConnection::connect(&postgres.url("postgres", &name)).await?)
}

/// Two attempts to apply events fail, after five seconds each: the events are no dead letters.
pub async fn a_locked_table_loses_no_order(harness: &Harness) -> Outcome {
    let shop = harness.open("locked", &[]).await?;
    lock_payments(shop, async |shop| {
        until_logged(shop, "payment", PAUSES, 2).await
    })
    .await
}

/// Eight attempts with their delays took from 41 to 81 seconds when errors of the database counted.
pub async fn a_table_that_is_locked_for_two_minutes_loses_no_order(harness: &Harness) -> Outcome {
    let shop = harness.open("long_lock", &[]).await?;
    lock_payments(shop, async |_| {
        // The time is what is tested.
        tokio::time::sleep(Duration::from_secs(130)).await;
        Ok(())
    })
    .await
}

async fn lock_payments(
    shop: Shop,
    meanwhile: impl AsyncFnOnce(&Shop) -> anyhow::Result<()>,
) -> Outcome {
    let mut load = start_load(&shop);
    load.advance(SOME).await?;
    let mut database = shop.database("payment").await?;
    let mut lock = database.begin().await?;
    lock.execute("LOCK TABLE payments").await?;
    meanwhile(&shop).await?;
    lock.rollback().await?;
    finish(shop, load).await
}

/// Each statement on payments takes longer than the ten seconds that it may.
pub async fn statements_that_take_too_long_lose_no_order(harness: &Harness) -> Outcome {
    let shop = harness.open("slow", &[]).await?;
    let mut load = start_load(&shop);
    load.advance(SOME).await?;
    let mut database = shop.owned_database("payment").await?;
    let function = async |database: &mut PgConnection, body: &str| {
        let create = format!(
            "CREATE OR REPLACE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS \
             'BEGIN {body} RETURN NULL; END'"
        );
        database.execute(AssertSqlSafe(create)).await
    };
    function(&mut database, "PERFORM pg_sleep(60);").await?;
    let trigger = "CREATE TRIGGER slow BEFORE INSERT OR UPDATE ON payments EXECUTE FUNCTION slow()";
    database.execute(trigger).await?;
    until_logged(&shop, "payment", PAUSES, 1).await?;
    // The trigger stays: to drop it would need a lock on the table.
    function(&mut database, "").await?;
    finish(shop, load).await
}

/// The disk with the payments is full, and space is made.
pub async fn a_full_disk_loses_no_order(harness: &Harness) -> Outcome {
    let mut shop = harness.open_with_own_database("full").await?;
    let mut administrator = administrator(&mut shop, "payment").await?;
    let data: String = sqlx::query_scalar("SHOW data_directory")
        .fetch_one(&mut administrator)
        .await?;
    let disk = SmallDisk::mount(Path::new(&data))?;
    let location = disk.0.display();
    let create = format!("CREATE TABLESPACE small LOCATION '{location}'");
    administrator.execute(AssertSqlSafe(create)).await?;
    let moved = "ALTER TABLE payments SET TABLESPACE small";
    administrator.execute(moved).await?;
    let mut load = start_load(&shop);
    load.advance(SOME).await?;
    let ballast = disk.fill()?;
    until_logged(&shop, "payment", "No space left on device", 2).await?;
    std::fs::remove_file(ballast)?;
    finish(shop, load).await
}

/// A file system in memory that is soon full.
struct SmallDisk(PathBuf);

impl SmallDisk {
    const BYTES: usize = 16 << 20;

    /// Mounts it for the owner of `like`. Only root may.
    fn mount(like: &Path) -> anyhow::Result<Self> {
        let owner = std::fs::metadata(like)?;
        let path = PathBuf::from(format!(
            "/var/tmp/sagacity-disk-{}",
            Uuid::now_v7().simple()
        ));
        std::fs::create_dir(&path)?;
        let options = format!(
            "size={},mode=700,uid={},gid={}",
            Self::BYTES,
            owner.uid(),
            owner.gid()
        );
        let mount = ["-t", "tmpfs", "-o", &options, "tmpfs"];
        let mounted = Command::new("mount").args(mount).arg(&path).output();
        let disk = Self(path);
        let mounted = mounted.context("run mount")?;
        let error = String::from_utf8_lossy(&mounted.stderr);
        ensure!(mounted.status.success(), "mount: {error}");
        Ok(disk)
    }

    /// Writes a file that takes all the space that is left.
    fn fill(&self) -> anyhow::Result<PathBuf> {
        let path = self.0.join("ballast");
        let filled = std::fs::write(&path, vec![0; Self::BYTES]);
        ensure!(filled.is_err(), "the disk is not full");
        Ok(path)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: after a failure the server may not have ended yet.
        let _not_mounted = Command::new("umount").arg("-l").arg(&self.0).output();
        let _still_mounted = std::fs::remove_dir(&self.0);
    }
}

pub fn can_mount() -> bool {
    SmallDisk::mount(Path::new("/")).is_ok()
}

/// The password is rotated and all sessions end. Then the old one is valid again, and then it is
/// rotated for good: the service is restarted with the new one.
pub async fn a_rotated_password_loses_no_order(harness: &Harness) -> Outcome {
    const REJECTED: &str = "password authentication failed";
    let mut shop = harness.open_with_own_database("password").await?;
    let mut administrator = administrator(&mut shop, "payment").await?;
    require_password(&shop, &mut administrator).await?;
    let mut load = start_load(&shop);
    load.advance(SOME).await?;
    rotate(&mut administrator, "rotated").await?;
    until_logged(&shop, "payment", REJECTED, 1).await?;
    load.advance(SOME).await?;
    rotate(&mut administrator, "sagacity").await?;
    load.advance(SOME).await?;
    rotate(&mut administrator, "rotated").await?;
    let url = &shop.endpoints().databases["payment"];
    let url = url.replace("payment:sagacity@", "payment:rotated@");
    let stack = shop.deployment.processes()?;
    stack.use_database("payment", &url);
    stack.stop_service("payment").await?;
    stack.start_service("payment")?;
    stack.wait_until_ready("payment").await?;
    finish(shop, load).await
}

async fn rotate(administrator: &mut PgConnection, password: &str) -> anyhow::Result<()> {
    let alter = format!("ALTER ROLE payment PASSWORD '{password}'");
    administrator.execute(AssertSqlSafe(alter)).await?;
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'payment'";
    administrator.execute(end).await?;
    Ok(())
}

/// Test servers trust everybody; this one asks payment for its password from now on.
async fn require_password(shop: &Shop, administrator: &mut PgConnection) -> anyhow::Result<()> {
    let file: String = sqlx::query_scalar("SHOW hba_file")
        .fetch_one(&mut *administrator)
        .await?;
    let write = format!(
        "COPY (VALUES ('hostssl all payment 127.0.0.1/32 scram-sha-256'), \
         ('hostssl all all 127.0.0.1/32 trust')) TO '{file}'"
    );
    administrator.execute(AssertSqlSafe(write)).await?;
    administrator.execute("SELECT pg_reload_conf()").await?;
    let wrong = &shop.endpoints().databases["payment"];
    let wrong = wrong.replace("payment:sagacity@", "payment:wrong@");
    wait_for("a wrong password is rejected", async || {
        let rejected = PgConnection::connect(&wrong).await.is_err();
        Ok(rejected.then_some(()))
    })
    .await
}

/// A failover looks like this: connections stay open, and nobody answers, for longer than a
/// transaction may take. Then the server goes on, also with what its clients have given up.
pub async fn a_database_that_does_not_respond_loses_no_order(harness: &Harness) -> Outcome {
    let mut shop = harness.open_with_own_database("paused").await?;
    let mut load = start_load(&shop);
    load.advance(SOME).await?;
    let paused = shop.deployment.processes()?.postgres()?.pause()?;
    // The time is what is tested: a transaction is given up after ten seconds.
    tokio::time::sleep(Duration::from_secs(15)).await;
    drop(paused);
    load.advance(SOME).await?;
    let account = load.stop().await?;
    ensure!(!account.failures.is_empty(), "no request met the pause");
    close(shop).await
}

/// A restored snapshot: the broker has lost what came after it, and delivers again what came
/// before.
pub async fn a_broker_that_went_back_in_time_loses_no_order(harness: &Harness) -> Outcome {
    let mut shop = harness.open("older", &[]).await?;
    let mut load = start_load(&shop);
    load.advance(SOME).await?;
    let stack = shop.deployment.processes()?;
    let copy = |store: &Path| copy(store, &older(store));
    stack.restart_broker_after(copy).await?;
    load.advance(2 * SOME).await?;
    let stack = shop.deployment.processes()?;
    let restore = |store: &Path| {
        std::fs::remove_dir_all(store)?;
        std::fs::rename(older(store), store)
    };
    stack.restart_broker_after(restore).await?;
    finish(shop, load).await
}

fn older(store: &Path) -> PathBuf {
    store.with_extension("older")
}

fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status()?;
    match copied.success() {
        true => Ok(()),
        false => Err(std::io::Error::other(format!("cp ended with {copied}"))),
    }
}

/// An operator deletes one stream after the other; services and consumers are running.
pub async fn deleted_streams_lose_no_order(harness: &Harness) -> Outcome {
    let shop = harness.open_new("stream").await?;
    let mut load = start_load(&shop);
    let jetstream = shop.jetstream().await?;
    load.advance(SOME).await?;
    for stream in ["ORDER", "PAYMENT", "INVENTORY"] {
        jetstream.delete_stream(stream).await?;
    }
    for stream in ["ORDER", "PAYMENT", "INVENTORY"] {
        wait_for(&format!("the stream {stream} is there again"), async || {
            let found = jetstream.get_stream(stream).await?;
            Ok((found.cached_info().state.messages > 0).then_some(()))
        })
        .await?;
    }
    finish(shop, load).await
}

/// Payment is away until after the deadlines. It then finds their orders before their
/// cancellations, in batches, and asks for no charge: the audit has a rule for it.
pub async fn a_payment_service_that_was_away_charges_nothing_late(harness: &Harness) -> Outcome {
    let settings = [("order", "ORDER_DEADLINE_SECONDS", "2")];
    let mut shop = harness.open("away", &settings).await?;
    shop.deployment.kill("payment").await?;
    let customers = 16;
    let mut load = Load::start_many(&shop.customer, customers, Duration::ZERO);
    load.advance(10 * SOME).await?;
    let (customer, account) = (load.customer(), load.stop().await?);
    shop.deployment.start_service("payment").await?;
    shop.deployment.wait_until_ready("payment").await?;
    let mut database = shop.database("order").await?;
    let paid = "SELECT count(*) FROM orders WHERE customer_id = $1 AND paid";
    let paid: i64 = sqlx::query_scalar(paid)
        .bind(customer.0)
        .fetch_one(&mut database)
        .await?;
    ensure!(
        paid == 0,
        "{paid} of {} orders were charged",
        account.orders
    );
    close(shop).await
}

/// The library that shows a process another time.
const FAKETIME: &[&str] = &[
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketime.so.1",
];

pub fn faketime() -> Option<&'static str> {
    let mut all = FAKETIME.iter();
    all.find(|path| Path::new(path).exists()).copied()
}

/// Two replicas of each service, whose clocks are as far apart as the deadline of an order is away:
/// one that compared its own clock with a deadline of the other would cancel every order.
pub async fn replicas_whose_clocks_differ_cancel_nothing_early(harness: &Harness) -> Outcome {
    let library = faketime().context("libfaketime is not installed")?;
    let clock = |offset| {
        [
            ("LD_PRELOAD", library),
            ("FAKETIME", offset),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ]
    };
    let settings = [("order", "ORDER_DEADLINE_SECONDS", "150")];
    let mut shop = harness.open("clocks", &settings).await?;
    let mut load = start_load(&shop);
    for service in ["order", "payment", "notification"] {
        let stack = shop.deployment.processes()?;
        stack.add_replica(service, &clock("+150s")).await?;
    }
    load.advance(2 * SOME).await?;
    // And the one that accepts orders and sets their deadlines is behind.
    let stack = shop.deployment.processes()?;
    for (name, value) in clock("-150s") {
        stack.set("order", name, value);
    }
    stack.stop_service("order").await?;
    stack.start_service("order")?;
    stack.wait_until_ready("order").await?;
    load.advance(2 * SOME).await?;
    let customer = load.customer();
    load.stop().await?;
    let mut database = shop.database("order").await?;
    let early =
        "SELECT count(*) FROM orders WHERE customer_id = $1 AND cancel_reason = 'timed_out'";
    let early: i64 = sqlx::query_scalar(early)
        .bind(customer.0)
        .fetch_one(&mut database)
        .await?;
    ensure!(early == 0, "{early} orders were cancelled early");
    close(shop).await
}
