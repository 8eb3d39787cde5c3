//! Prices come from inventory, never from the client; a short cache spares most calls.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use contracts::Money;
use proto::inventory::v1::{GetPricesRequest, inventory_service_client::InventoryServiceClient};
use tonic::{Request, Status, transport::Channel};

/// How long a price is believed.
const FRESH: Duration = Duration::from_secs(10);
/// Most SKUs remembered, far above the catalogue's size; only known SKUs are.
const CAPACITY: usize = 50_000;
/// How long inventory may take.
const DEADLINE: Duration = Duration::from_secs(2);

/// The price list.
#[derive(Debug)]
pub(crate) struct Prices {
    inventory: InventoryServiceClient<Channel>,
    known: Mutex<HashMap<String, (Money, Instant)>>,
}

impl Prices {
    /// Asks inventory through `channel`.
    pub(crate) fn new(channel: Channel) -> Self {
        Self {
            inventory: InventoryServiceClient::new(channel),
            known: Mutex::default(),
        }
    }

    /// The prices of `skus`, in the same order; `None` for a SKU that does not exist.
    pub(crate) async fn of(
        &self,
        skus: &[&str],
        apply: impl FnOnce(&mut Request<GetPricesRequest>),
    ) -> Result<Vec<Option<Money>>, Status> {
        let mut prices = self.remembered(skus);
        let missing: Vec<String> = skus
            .iter()
            .zip(&prices)
            .filter(|(_, price)| price.is_none())
            .map(|(sku, _)| (*sku).to_owned())
            .collect();
        if !missing.is_empty() {
            let mut request = Request::new(GetPricesRequest { skus: missing });
            request.set_timeout(DEADLINE);
            apply(&mut request);
            let answer = self
                .inventory
                .clone()
                .get_prices(request)
                .await?
                .into_inner();
            let fetched: HashMap<String, Money> = answer
                .prices
                .into_iter()
                .filter_map(|price| Some((price.sku, price.price?.try_into().ok()?)))
                .collect();
            for (price, sku) in prices.iter_mut().zip(skus) {
                *price = price.take().or_else(|| fetched.get(*sku).cloned());
            }
            self.remember(fetched);
        }
        Ok(prices)
    }

    fn remembered(&self, skus: &[&str]) -> Vec<Option<Money>> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = |sku: &&str| {
            known
                .get(*sku)
                .filter(|(_, since)| since.elapsed() < FRESH)
                .map(|(price, _)| price.clone())
        };
        skus.iter().map(fresh).collect()
    }

    fn remember(&self, prices: HashMap<String, Money>) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() > CAPACITY {
            known.clear();
        }
        let now = Instant::now();
        known.extend(prices.into_iter().map(|(sku, price)| (sku, (price, now))));
    }
}
