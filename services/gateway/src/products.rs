//! The catalogue over HTTP.

use axum::{Json, extract::State};
use contracts::Sku;
use proto::inventory::v1::{GetProductRequest, ListProductsRequest};

use crate::{
    backends::{Backends, REQUEST_BUDGET, request},
    extract::{Context, SkuPath},
    page::{Page, next_cursor},
    problem::Problem,
    views::{Product, ProductPage},
};

/// Products with prices and available units, by SKU.
#[utoipa::path(get, path = "/api/v1/products", tag = "products", params(Page<Sku>),
    responses((status = 200, description = "A page of products", body = ProductPage)))]
pub async fn list_products(
    State(mut backends): State<Backends>,
    Context(context): Context,
    page: Page<Sku>,
) -> Result<Json<ProductPage>, Problem> {
    let message = ListProductsRequest {
        limit: page.limit,
        after: page.after.map(String::from).unwrap_or_default(),
    };
    let page = backends
        .inventory
        .list_products(request(&context, REQUEST_BUDGET, message))
        .await?
        .into_inner();
    Ok(Json(ProductPage {
        next_cursor: next_cursor::<Sku>(&page.next_after)?,
        products: page
            .products
            .into_iter()
            .map(Product::try_from)
            .collect::<Result<_, _>>()?,
    }))
}

/// One product.
#[utoipa::path(get, path = "/api/v1/products/{sku}", tag = "products",
    params(("sku" = String, Path, description = "The product", min_length = 1, max_length = 255,
            pattern = "^[ -~]*$", example = "SKU-0001")),
    responses((status = 200, description = "The product", body = Product),
              (status = 404, description = "There is no such product")))]
pub async fn get_product(
    State(mut backends): State<Backends>,
    Context(context): Context,
    SkuPath(sku): SkuPath,
) -> Result<Json<Product>, Problem> {
    let message = GetProductRequest { sku: sku.into() };
    let found = backends
        .inventory
        .get_product(request(&context, REQUEST_BUDGET, message))
        .await?
        .into_inner();
    Ok(Json(found.product.try_into()?))
}
