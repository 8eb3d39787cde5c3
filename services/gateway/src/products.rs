//! The catalogue over HTTP.

use axum::{Json, extract::State};
use proto::inventory::v1::{GetProductRequest, ListProductsRequest};

use crate::{
    extract::{Page, SkuPath, Travelling, cursor},
    problem::Problem,
    shop::{Shop, WHOLE, ask},
    views::{Product, ProductPage},
};

/// Products with prices and availability, by SKU.
#[utoipa::path(get, path = "/api/v1/products", tag = "products",
    params(("limit" = Option<u32>, Query, description = "1 to 100, default 20"),
           ("cursor" = Option<String>, Query, description = "next_cursor of the page before")),
    responses((status = 200, body = ProductPage), (status = 400, body = Problem)))]
pub(crate) async fn list(
    State(mut shop): State<Shop>,
    Travelling(context): Travelling,
    page: Page,
) -> Result<Json<ProductPage>, Problem> {
    let message = ListProductsRequest {
        limit: page.limit,
        after: page.after,
    };
    let answer = shop
        .inventory
        .list_products(ask(&context, WHOLE, message))
        .await?
        .into_inner();
    let products = answer.products.into_iter().map(Product::from).collect();
    Ok(Json(ProductPage {
        products,
        next_cursor: cursor(&answer.next_after),
    }))
}

/// One product.
#[utoipa::path(get, path = "/api/v1/products/{sku}", tag = "products",
    params(("sku" = String, Path, description = "Stock keeping unit", example = "SKU-0001")),
    responses((status = 200, body = Product), (status = 400, body = Problem), (status = 404, body = Problem)))]
pub(crate) async fn look(
    State(mut shop): State<Shop>,
    Travelling(context): Travelling,
    SkuPath(sku): SkuPath,
) -> Result<Json<Product>, Problem> {
    let answer = shop
        .inventory
        .get_product(ask(&context, WHOLE, GetProductRequest { sku }))
        .await?
        .into_inner();
    Ok(Json(answer.product.ok_or_else(Problem::internal)?.into()))
}
