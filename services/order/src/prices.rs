//! Prices come from inventory, never from the client; a short cache spares most calls.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use bootstrap::Replicas;
use contracts::{Money, Sku};
use parking_lot::Mutex;
use proto::inventory::v1::{GetPricesRequest, inventory_service_client::InventoryServiceClient};
use tonic::{Request, Status};

/// How long a cached price is used.
const FRESH: Duration = Duration::from_secs(10);
/// Most SKUs cached, far above the size of the catalogue. Only SKUs that exist are cached, so that
/// clients cannot fill the cache with others.
const CAPACITY: usize = 50_000;

#[derive(Debug)]
pub struct Prices {
    inventory: InventoryServiceClient<Replicas>,
    cache: Mutex<HashMap<Sku, (Money, Instant)>>,
}

impl Prices {
    pub fn new(inventory: Replicas) -> Self {
        Self {
            inventory: InventoryServiceClient::new(inventory),
            cache: Mutex::default(),
        }
    }

    /// The prices of `skus`, in the same order; `None` for a SKU that does not exist. `prepare`
    /// adds context and deadline to the call, if one is needed.
    pub async fn get(
        &self,
        skus: &[&Sku],
        prepare: impl FnOnce(&mut Request<GetPricesRequest>),
    ) -> Result<Vec<Option<Money>>, Status> {
        let mut prices = self.cached(skus);
        let missing = std::iter::zip(skus, &prices).filter(|(_, price)| price.is_none());
        let missing: Vec<String> = missing.map(|(sku, _)| sku.to_string()).collect();
        if missing.is_empty() {
            return Ok(prices);
        }
        let mut request = Request::new(GetPricesRequest { skus: missing });
        prepare(&mut request);
        let response = self.inventory.clone().get_prices(request).await?;
        let listed = response.into_inner().prices.into_iter();
        let fetched: HashMap<Sku, Money> = listed
            .filter_map(|price| Some((price.sku.try_into().ok()?, price.price?.try_into().ok()?)))
            .collect();
        for (price, sku) in prices.iter_mut().zip(skus) {
            *price = price.or_else(|| fetched.get(sku).copied());
        }
        self.cache(fetched);
        Ok(prices)
    }

    fn cached(&self, skus: &[&Sku]) -> Vec<Option<Money>> {
        let cache = self.cache.lock();
        let fresh = |sku: &&Sku| {
            let (price, since) = cache.get(*sku)?;
            (since.elapsed() < FRESH).then_some(*price)
        };
        skus.iter().map(fresh).collect()
    }

    fn cache(&self, prices: HashMap<Sku, Money>) {
        let mut cache = self.cache.lock();
        if cache.len() > CAPACITY {
            cache.clear();
        }
        let now = Instant::now();
        cache.extend(prices.into_iter().map(|(sku, price)| (sku, (price, now))));
    }
}
