//! Queries over gRPC.

use chassis::status;
use contracts::Sku;
use proto::inventory::v1::{
    self as wire, GetPricesRequest, GetPricesResponse, GetProductRequest, GetProductResponse,
    GetReservationRequest, GetReservationResponse, ListProductsRequest, ListProductsResponse,
    Price, inventory_service_server::InventoryService,
};
use sqlx::PgPool;
use tonic::{Request, Response, Status};

use crate::{domain, store};

/// Most SKUs in one request for prices.
const MAX_SKUS: usize = 1000;

/// The gRPC API of the inventory service.
pub struct InventoryApi {
    pool: PgPool,
}

impl InventoryApi {
    pub fn new(pool: PgPool) -> Self {
        Self { pool }
    }
}

#[tonic::async_trait]
impl InventoryService for InventoryApi {
    async fn list_products(
        &self,
        request: Request<ListProductsRequest>,
    ) -> Result<Response<ListProductsResponse>, Status> {
        let ListProductsRequest { after, limit } = request.into_inner();
        if !after.is_empty() {
            parse_sku("after", &after)?;
        }
        let size = status::page_size(limit);
        let rows = store::products(&self.pool, &after, size as i64 + 1).await;
        let mut products = rows.map_err(status::from_error)?;
        let has_next = status::cut_to_page(&mut products, size);
        let last = products.last().filter(|_| has_next);
        Ok(Response::new(ListProductsResponse {
            next_after: last.map(|last| last.sku.clone()).unwrap_or_default(),
            products: products.into_iter().map(into_wire).collect(),
        }))
    }

    async fn get_product(
        &self,
        request: Request<GetProductRequest>,
    ) -> Result<Response<GetProductResponse>, Status> {
        let sku = parse_sku("sku", &request.get_ref().sku)?;
        let found = store::product(&self.pool, &sku).await;
        let found = found.map_err(status::from_error)?;
        let product = found.ok_or_else(|| Status::not_found("there is no such product"))?;
        Ok(Response::new(GetProductResponse {
            product: Some(into_wire(product)),
        }))
    }

    async fn get_prices(
        &self,
        request: Request<GetPricesRequest>,
    ) -> Result<Response<GetPricesResponse>, Status> {
        let skus = &request.get_ref().skus;
        if skus.len() > MAX_SKUS {
            return Err(status::invalid(
                "skus",
                format!("expected at most {MAX_SKUS}"),
            ));
        }
        for sku in skus {
            parse_sku("skus", sku)?;
        }
        let prices = store::prices(&self.pool, skus).await;
        let prices = prices.map_err(status::from_error)?.into_iter();
        let prices = prices.map(|(sku, price)| Price {
            sku,
            price: Some(price.into()),
        });
        Ok(Response::new(GetPricesResponse {
            prices: prices.collect(),
        }))
    }

    async fn get_reservation(
        &self,
        request: Request<GetReservationRequest>,
    ) -> Result<Response<GetReservationResponse>, Status> {
        let order_id = request.into_inner().order_id;
        let id = status::parse_id("order_id", &order_id)?;
        let found = store::find(&self.pool, id)
            .await
            .map_err(status::from_error)?;
        let missing = || Status::not_found("there is no reservation for this order");
        let status = match found.ok_or_else(missing)? {
            domain::Status::Reserved => wire::ReservationStatus::Reserved,
            domain::Status::Rejected => wire::ReservationStatus::Rejected,
            domain::Status::Released => wire::ReservationStatus::Released,
        };
        Ok(Response::new(GetReservationResponse {
            order_id,
            status: status.into(),
        }))
    }
}

fn parse_sku(field: &str, text: &str) -> Result<Sku, Status> {
    text.parse().map_err(|error| status::invalid(field, error))
}

fn into_wire(product: store::Product) -> wire::Product {
    wire::Product {
        sku: product.sku,
        name: product.name,
        category: product.category,
        price: Some(proto::common::v1::Money {
            amount: product.price_amount,
            currency: product.price_currency,
        }),
        available: u64::try_from(product.on_hand).unwrap_or_default(),
    }
}
