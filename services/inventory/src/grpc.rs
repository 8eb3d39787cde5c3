//! Queries over gRPC.

use contracts::OrderId;
use proto::inventory::v1::{
    self as wire, GetPricesRequest, GetPricesResponse, GetProductRequest, GetProductResponse,
    GetReservationRequest, GetReservationResponse, ListProductsRequest, ListProductsResponse,
    Price, inventory_service_server::InventoryService,
};
use sqlx::PgPool;
use tonic::{Request, Response, Status as Code};

use crate::{domain::Status, store};

/// Most SKUs in one question about prices.
const MAX_SKUS: usize = 1000;

/// The gRPC face of the inventory service.
pub(crate) struct Grpc {
    pub(crate) pool: PgPool,
}

#[tonic::async_trait]
impl InventoryService for Grpc {
    async fn list_products(
        &self,
        request: Request<ListProductsRequest>,
    ) -> Result<Response<ListProductsResponse>, Code> {
        let request = request.get_ref();
        check_text("after", &request.after)?;
        let limit = request.limit.clamp(1, 100) as usize;
        // One more than asked for tells whether there is a next page.
        let mut products = store::products(&self.pool, &request.after, limit as i64 + 1)
            .await
            .map_err(unavailable)?;
        let more = products.len() > limit;
        products.truncate(limit);
        let next_after = products
            .last()
            .filter(|_| more)
            .map(|last| last.sku.clone())
            .unwrap_or_default();
        Ok(Response::new(ListProductsResponse {
            products: products.into_iter().map(into_wire).collect(),
            next_after,
        }))
    }

    async fn get_product(
        &self,
        request: Request<GetProductRequest>,
    ) -> Result<Response<GetProductResponse>, Code> {
        let sku = &request.get_ref().sku;
        check_text("sku", sku)?;
        let found = store::product(&self.pool, sku).await.map_err(unavailable)?;
        let product = found.ok_or_else(|| Code::not_found("there is no such product"))?;
        Ok(Response::new(GetProductResponse {
            product: Some(into_wire(product)),
        }))
    }

    async fn get_prices(
        &self,
        request: Request<GetPricesRequest>,
    ) -> Result<Response<GetPricesResponse>, Code> {
        let skus = &request.get_ref().skus;
        if skus.len() > MAX_SKUS {
            return Err(Code::invalid_argument(format!(
                "skus: expected at most {MAX_SKUS}"
            )));
        }
        skus.iter().try_for_each(|sku| check_text("skus", sku))?;
        let prices = store::prices(&self.pool, skus).await.map_err(unavailable)?;
        let prices = prices
            .into_iter()
            .map(|(sku, price)| Price {
                sku,
                price: Some(price.into()),
            })
            .collect();
        Ok(Response::new(GetPricesResponse { prices }))
    }

    async fn get_reservation(
        &self,
        request: Request<GetReservationRequest>,
    ) -> Result<Response<GetReservationResponse>, Code> {
        let text = &request.get_ref().order_id;
        let order: OrderId = text
            .parse()
            .map_err(|_| Code::invalid_argument("order_id: expected a UUID"))?;
        let found = store::find(&self.pool, order).await.map_err(unavailable)?;
        let status =
            match found.ok_or_else(|| Code::not_found("there is no reservation for this order"))? {
                Status::Reserved => wire::ReservationStatus::Reserved,
                Status::Rejected => wire::ReservationStatus::Rejected,
                Status::Released => wire::ReservationStatus::Released,
            };
        Ok(Response::new(GetReservationResponse {
            order_id: order.to_string(),
            status: status.into(),
        }))
    }
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

/// PostgreSQL's text holds any character but NUL; no SKU has a control character.
fn check_text(field: &str, text: &str) -> Result<(), Code> {
    match text.contains(char::is_control) {
        true => Err(Code::invalid_argument(format!(
            "{field}: expected no control characters"
        ))),
        false => Ok(()),
    }
}

fn unavailable(error: sqlx::Error) -> Code {
    tracing::warn!(%error, "the database does not answer");
    Code::unavailable("the database is away; a retry is safe")
}
