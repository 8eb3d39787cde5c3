//! Several servers and replicas: one of them fails under load, its part is taken over, and no order
//! is lost.

use std::time::{Duration, SystemTime};

use anyhow::{Context as _, ensure};
use client::Failure;
use contracts::CustomerId;
use devstack::{
    NatsCluster, Stack,
    test::{System, wait_for},
};
use e2e::{Harness, Shop};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use crate::{
    Outcome, close,
    load::Load,
    overload::{account, offer, percentiles},
};

/// Orders a second, how long they are offered, and when the fault happens.
const RATE: f64 = 100.0;
const SECONDS: f64 = 15.0;
const BEFORE: Duration = Duration::from_secs(5);

/// Two of these systems, with seventeen processes each, slow each other down.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

#[derive(Clone, Copy, Debug)]
enum Fault {
    /// The server that leads the stream of the order service.
    LeaderOfStream,
    Nats(usize),
    PostgresPrimary,
    Process(&'static str),
}

const FAULTS: &[Fault] = &[
    Fault::LeaderOfStream,
    Fault::Nats(0),
    Fault::PostgresPrimary,
    Fault::PostgresPrimary,
    Fault::Process("order"),
    Fault::Process("order-replica"),
    Fault::Process("payment"),
    Fault::Process("payment-replica"),
    Fault::Process("inventory"),
    Fault::Process("inventory-replica"),
    Fault::Process("notification"),
    Fault::Process("notification-replica"),
    Fault::Process("gateway"),
    Fault::Process("gateway-replica"),
];

/// For people and for the night: prints how long the orders took that were placed around each
/// fault.
pub async fn each_server_and_each_replica_may_fail(_harness: &Harness) -> Outcome {
    let _alone = ONE_AT_A_TIME.lock().await;
    let mut shop = open("ha", &[]).await?;
    for fault in FAULTS {
        survive(&mut shop, *fault).await?;
    }
    close(shop).await
}

/// The same with the faults that take most with them. After the second crash of PostgreSQL one of
/// the two servers that are left has failed before.
pub async fn a_leader_a_primary_and_a_replica_may_fail(_harness: &Harness) -> Outcome {
    let _alone = ONE_AT_A_TIME.lock().await;
    let mut shop = open("ha_short", &[]).await?;
    for fault in [
        Fault::LeaderOfStream,
        Fault::PostgresPrimary,
        Fault::PostgresPrimary,
        Fault::Process("order"),
    ] {
        survive(&mut shop, fault).await?;
    }
    close(shop).await
}

/// The order of a rollout: callers last.
const ROLLOUT: [&str; 5] = ["notification", "inventory", "payment", "order", "gateway"];

/// As in Kubernetes: a gateway that stops still serves while load balancers notice, and a service
/// stops at once, although its callers still know its address.
async fn open_for_rollout(name: &str) -> anyhow::Result<Shop> {
    open(name, &[("gateway", "SHUTDOWN_LAG_SECONDS", "5")]).await
}

/// The names of all processes, in the order of a rollout.
fn processes() -> impl Iterator<Item = String> {
    let both = |service: &str| [service.to_owned(), format!("{service}-replica")];
    ROLLOUT.into_iter().flat_map(both)
}

/// A process that has ended, or that does not serve yet, is noticed sooner than this. All time
/// limits are longer.
const LATE: Duration = Duration::from_millis(900);

/// Every process is replaced, one after the other, while customers place orders. A machine that is
/// too busy may fail late; [`a_rollout_at_100_orders_a_second`] allows no failure.
pub async fn a_rollout_of_all_services_fails_no_request(_harness: &Harness) -> Outcome {
    let _alone = ONE_AT_A_TIME.lock().await;
    let mut shop = open_for_rollout("rollout").await?;
    let mut load = Load::start(&shop.customer);
    let stack = shop.deployment.processes()?;
    for process in processes() {
        load.advance(4).await?;
        stack.roll(&process).await?;
    }
    load.advance(4).await?;
    let mut account = load.stop().await?;
    let is_late = |failure: &Failure| failure.after >= LATE;
    account.failures.retain(|failure| !is_late(failure));
    ensure!(account.failures.is_empty(), "requests failed: {account:?}");
    close(shop).await
}

/// For people and for the night: the same under as many orders a second as a release build has time
/// for. Prints how long the customers waited.
pub async fn a_rollout_at_100_orders_a_second(_harness: &Harness) -> Outcome {
    let _alone = ONE_AT_A_TIME.lock().await;
    let mut shop = open_for_rollout("rollout_rate").await?;
    let customer = shop.customer.another(CustomerId::new());
    let stack = shop.deployment.processes()?;
    let ended = CancellationToken::new();
    let roll = async {
        for process in processes() {
            stack.roll(&process).await?;
        }
        ended.cancel();
        anyhow::Ok(())
    };
    let (offered, rolled) = tokio::join!(offer(&customer, RATE, ended.cancelled()), roll);
    rolled?;
    let (offered, requests) = offered?;
    let responses = &requests.responses;
    println!("{offered} orders offered, responses {responses:?}");
    let only_accepted = responses.keys().all(|response| response == "201");
    ensure!(only_accepted, "requests failed: {responses:?}");
    account(&customer, &requests).await?;
    println!("accepted after (ms): {}", percentiles(requests.latencies));
    close(shop).await
}

async fn open(name: &str, settings: &[(&str, &str, &str)]) -> anyhow::Result<Shop> {
    let system = System {
        highly_available: true,
        settings,
        ..System::default()
    };
    Harness::open_processes(name, system).await
}

async fn survive(shop: &mut Shop, fault: Fault) -> anyhow::Result<()> {
    let nats = shop.deployment.endpoints().nats.clone();
    let leader = until_streams_are_complete(&nats).await?;
    let stack = shop.deployment.processes()?;
    stack.wait_until_all_are_ready().await?;
    let customer = shop.customer.another(CustomerId::new());
    let happen = async {
        tokio::time::sleep(BEFORE).await;
        let began = SystemTime::now();
        happen(stack, fault, &leader).await?;
        wait_for("what has failed is replaced", async || {
            Ok((!stack.heal().await?.is_empty()).then_some(()))
        })
        .await?;
        anyhow::Ok(began)
    };
    let end = tokio::time::sleep(Duration::from_secs_f64(SECONDS));
    let (offered, began) = tokio::join!(offer(&customer, RATE, end), happen);
    let ((offered, requests), began) = (offered?, began?);
    account(&customer, &requests).await?;
    let took = took(shop, customer.id, began).await?;
    println!(
        "{fault:?}: {offered} orders offered, responses {:?}; {} placed around it ended after (ms): {}",
        requests.responses,
        took.len(),
        percentiles(took)
    );
    Ok(())
}

async fn happen(stack: &mut Stack, fault: Fault, leader: &str) -> anyhow::Result<()> {
    let kill_nats = async |stack: &mut Stack, index: usize| stack.cluster()?.nats.kill(index).await;
    match fault {
        Fault::LeaderOfStream => {
            let index = (0..3).find(|index| NatsCluster::name(*index) == leader);
            kill_nats(stack, index.context("one of the servers leads")?).await
        }
        Fault::Nats(index) => kill_nats(stack, index).await,
        Fault::PostgresPrimary => stack.cluster()?.postgres.crash_primary().await,
        Fault::Process(name) => stack.crash(name),
    }
}

/// Waits until three servers have every event of every stream, and returns the leader of ORDER.
async fn until_streams_are_complete(nats: &str) -> anyhow::Result<String> {
    let jetstream = devstack::jetstream::open(nats).await?;
    wait_for("all servers have all streams", async || {
        let mut leader = String::new();
        for name in ["ORDER", "PAYMENT", "INVENTORY"] {
            let stream = jetstream.get_stream(name).await?;
            let info = stream.cached_info();
            let cluster = info.cluster.as_ref().context("the servers are a cluster")?;
            ensure!(info.config.num_replicas == 3, "{name} has one copy");
            let followers = cluster.replicas.iter();
            if followers
                .filter(|peer| peer.current && !peer.offline)
                .count()
                < 2
            {
                return Ok(None);
            }
            if name == "ORDER" {
                leader = cluster.leader.clone().unwrap_or_default();
            }
        }
        Ok(Some(leader))
    })
    .await
}

/// How long the orders took, from their creation to their end, that were placed in the second
/// before the fault or after it.
async fn took(
    shop: &Shop,
    customer: CustomerId,
    began: SystemTime,
) -> anyhow::Result<Vec<Duration>> {
    let query = "SELECT extract(epoch FROM updated_at - created_at)::float8 FROM orders
        WHERE customer_id = $1 AND extract(epoch FROM created_at) > $2 - 1";
    let began = began.duration_since(SystemTime::UNIX_EPOCH)?;
    let seconds: Vec<f64> = sqlx::query_scalar(query)
        .bind(customer.0)
        .bind(began.as_secs_f64())
        .fetch_all(&mut shop.database("order").await?)
        .await?;
    let seconds = seconds.into_iter().map(|seconds| seconds.max(0.0));
    Ok(seconds.map(Duration::from_secs_f64).collect())
}
