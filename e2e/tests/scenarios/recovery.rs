//! How long recovery takes: from the end of a fault to the end of the last order that it affected.
//! For people and for the night: the figures depend on the machine. What must hold on any is that
//! no order is lost.

use std::time::{Duration, SystemTime};

use contracts::CustomerId;
use e2e::{Deployment, Harness, Shop};

use crate::{
    Outcome, close,
    overload::{account, offer, percentiles},
};

/// Orders a second, or `SAGACITY_RECOVERY_RATE`.
const RATE: f64 = 200.0;
/// How long orders are offered, and when the fault begins.
const SECONDS: f64 = 20.0;
const BEFORE: Duration = Duration::from_secs(8);

#[derive(Clone, Copy, Debug)]
enum Fault {
    Killed(&'static str),
    BrokerKilled,
    BrokerWithoutDisk,
    DatabaseCrashed,
}

const FAULTS: [Fault; 7] = [
    Fault::Killed("order"),
    Fault::Killed("payment"),
    Fault::Killed("inventory"),
    Fault::Killed("notification"),
    Fault::BrokerKilled,
    Fault::BrokerWithoutDisk,
    Fault::DatabaseCrashed,
];

pub async fn recovery_from_each_fault(harness: &Harness) -> Outcome {
    let mut pairs = Outcome::Ok(Default::default());
    for fault in FAULTS {
        pairs = recover(harness, fault).await;
        if pairs.is_err() {
            break;
        }
    }
    pairs
}

async fn recover(harness: &Harness, fault: Fault) -> Outcome {
    let rate = std::env::var("SAGACITY_RECOVERY_RATE").ok();
    let rate: f64 = rate.map_or(Ok(RATE), |rate| rate.parse())?;
    let Shop {
        mut deployment,
        customer,
    } = harness.open_with_own_database("recovery").await?;
    let loaded = customer.another(CustomerId::new());
    let happen = async {
        tokio::time::sleep(BEFORE).await;
        let began = SystemTime::now();
        happen(&mut deployment, fault).await?;
        anyhow::Ok((began, SystemTime::now()))
    };
    let end = tokio::time::sleep(Duration::from_secs_f64(SECONDS));
    let offered = offer(&loaded, rate, end);
    let (offered, happened) = tokio::join!(offered, happen);
    let ((offered, requests), (began, over)) = (offered?, happened?);
    account(&loaded, &requests).await?;
    let shop = Shop {
        deployment,
        customer,
    };
    let recovered = recovered_after(&shop, loaded.id, began, over).await?;
    println!(
        "{fault:?}: {offered} orders offered, responses {:?}; away for {} ms; {} orders affected, \
         ended after its end (ms): {}",
        requests.responses,
        over.duration_since(began)?.as_millis(),
        recovered.len(),
        percentiles(recovered)
    );
    close(shop).await
}

async fn happen(deployment: &mut Deployment, fault: Fault) -> anyhow::Result<()> {
    match fault {
        Fault::Killed(service) => {
            deployment.kill(service).await?;
            deployment.start_service(service).await?;
            deployment.wait_until_ready(service).await
        }
        Fault::BrokerKilled => deployment.restart_broker().await,
        Fault::BrokerWithoutDisk => deployment.restart_broker_without_its_disk().await,
        Fault::DatabaseCrashed => deployment.restart_database().await,
    }
}

/// For each order that was placed before the fault was over and ended after it had begun: how long
/// after its end the order ended.
async fn recovered_after(
    shop: &Shop,
    customer: CustomerId,
    began: SystemTime,
    over: SystemTime,
) -> anyhow::Result<Vec<Duration>> {
    let query = "SELECT greatest(0, extract(epoch FROM updated_at) - $3)::float8 FROM orders
        WHERE customer_id = $1 AND extract(epoch FROM created_at) < $3
          AND extract(epoch FROM updated_at) > $2";
    let seconds = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH);
    let seconds: Vec<f64> = sqlx::query_scalar(query)
        .bind(customer.0)
        .bind(seconds(began)?.as_secs_f64())
        .bind(seconds(over)?.as_secs_f64())
        .fetch_all(&mut shop.database("order").await?)
        .await?;
    Ok(seconds.into_iter().map(Duration::from_secs_f64).collect())
}
