//! The SQL of the inventory service. One statement serves any number of reservations.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use contracts::{InvalidValue, Money, OrderId, Quantity, Sku};
use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, PgPool, types::Json};
use uuid::Uuid;

use crate::{
    catalogue,
    domain::{Line, Reservation, Status, Stock},
};

/// A line as the column `lines` keeps it.
#[derive(Debug, Serialize, Deserialize)]
struct LineColumn {
    sku: Sku,
    quantity: Quantity,
}

/// Loads the seed catalogue once; existing rows stay as they are. Safe with several replicas.
pub async fn seed(pool: &PgPool, stock_each: i64) -> sqlx::Result<()> {
    let (mut skus, mut names, mut categories, mut prices) = (vec![], vec![], vec![], vec![]);
    for product in catalogue::seed() {
        skus.push(product.sku);
        names.push(product.name);
        categories.push(product.category);
        prices.push(product.price);
    }
    sqlx::query!(
        r#"-- products_seed
        WITH seeded AS (
            INSERT INTO products (sku, name, category, price_amount, price_currency)
            SELECT sku, name, category, price, $5
            FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[]) AS p (sku, name, category, price)
            WHERE NOT EXISTS (SELECT FROM products)
            ON CONFLICT DO NOTHING
            RETURNING sku)
        INSERT INTO stock (sku, initial, on_hand) SELECT sku, $6, $6 FROM seeded"#,
        &skus,
        &names,
        &categories as &[&str],
        &prices,
        catalogue::CURRENCY,
        stock_each
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// Locks reservations by order, in key order, so that batches cannot deadlock. Reservations that do
/// not exist are left out.
pub async fn lock(
    tx: &mut PgConnection,
    orders: &[OrderId],
) -> sqlx::Result<HashMap<OrderId, Reservation>> {
    let orders: Vec<Uuid> = orders.iter().map(|order| order.0).collect();
    let rows = sqlx::query!(
        r#"-- reservations_lock
        SELECT order_id, status, lines AS "lines: Json<Vec<LineColumn>>", updated_at
        FROM reservations WHERE order_id = ANY($1) ORDER BY order_id FOR UPDATE"#,
        &orders
    )
    .fetch_all(tx)
    .await?;
    let mut reservations = HashMap::with_capacity(rows.len());
    for row in rows {
        let order_id = OrderId(row.order_id);
        let lines = row.lines.0.into_iter();
        let lines = lines.map(|LineColumn { sku, quantity }| Line { sku, quantity });
        let reservation = Reservation {
            order_id,
            status: read_status(&row.status)?,
            lines: lines.collect(),
            updated_at: row.updated_at,
        };
        reservations.insert(order_id, reservation);
    }
    Ok(reservations)
}

/// Locks the stock of products in key order. Always after [`lock`].
pub async fn lock_stock(tx: &mut PgConnection, skus: &BTreeSet<Sku>) -> sqlx::Result<Stock> {
    let skus: Vec<&str> = skus.iter().map(Sku::as_str).collect();
    let rows = sqlx::query!(
        r#"-- stock_lock
        SELECT sku, on_hand FROM stock WHERE sku = ANY($1) ORDER BY sku FOR UPDATE"#,
        &skus as &[&str]
    )
    .fetch_all(tx)
    .await?;
    let mut on_hand = HashMap::with_capacity(rows.len());
    for row in rows {
        on_hand.insert(Sku::try_from(row.sku).map_err(decode)?, row.on_hand);
    }
    Ok(Stock::new(on_hand))
}

/// Moves units between on hand and reserved: positive units come back on hand.
pub async fn move_stock(tx: &mut PgConnection, changes: &BTreeMap<Sku, i64>) -> sqlx::Result<()> {
    if changes.is_empty() {
        return Ok(());
    }
    let skus: Vec<&str> = changes.keys().map(Sku::as_str).collect();
    let units: Vec<i64> = changes.values().copied().collect();
    sqlx::query!(
        r#"-- stock_move
        UPDATE stock SET on_hand = on_hand + m.by, reserved = reserved - m.by
        FROM unnest($1::text[], $2::bigint[]) AS m (sku, by) WHERE stock.sku = m.sku"#,
        &skus as &[&str],
        &units
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Inserts new reservations. One that another replica has inserted meanwhile is an error: the batch
/// is then tried again and finds it.
pub async fn insert(tx: &mut PgConnection, new: &[&Reservation]) -> sqlx::Result<()> {
    let orders: Vec<_> = new
        .iter()
        .map(|reservation| reservation.order_id.0)
        .collect();
    let statuses: Vec<_> = new
        .iter()
        .map(|reservation| reservation.status.as_str())
        .collect();
    let lines: Vec<_> = new
        .iter()
        .map(|reservation| Json(columns(&reservation.lines)))
        .collect();
    let times: Vec<_> = new
        .iter()
        .map(|reservation| reservation.updated_at)
        .collect();
    sqlx::query!(
        r#"-- reservations_insert
        INSERT INTO reservations (order_id, status, lines, updated_at)
        SELECT * FROM unnest($1::uuid[], $2::text[], $3::jsonb[], $4::timestamptz[])"#,
        &orders,
        &statuses as &[&str],
        &lines as &[Json<Vec<LineColumn>>],
        &times
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Writes the columns of locked reservations that can change.
pub async fn update(tx: &mut PgConnection, changed: &[&Reservation]) -> sqlx::Result<()> {
    let orders: Vec<_> = changed
        .iter()
        .map(|reservation| reservation.order_id.0)
        .collect();
    let statuses: Vec<_> = changed
        .iter()
        .map(|reservation| reservation.status.as_str())
        .collect();
    let times: Vec<_> = changed
        .iter()
        .map(|reservation| reservation.updated_at)
        .collect();
    sqlx::query!(
        r#"-- reservations_update
        UPDATE reservations SET status = r.status, updated_at = r.at
        FROM unnest($1::uuid[], $2::text[], $3::timestamptz[]) AS r (order_id, status, at)
        WHERE reservations.order_id = r.order_id"#,
        &orders,
        &statuses as &[&str],
        &times
    )
    .execute(tx)
    .await?;
    Ok(())
}

fn columns(lines: &[Line]) -> Vec<LineColumn> {
    let column = |line: &Line| LineColumn {
        sku: line.sku.clone(),
        quantity: line.quantity,
    };
    lines.iter().map(column).collect()
}

/// The status of one order's reservation.
pub async fn find(pool: &PgPool, order: OrderId) -> sqlx::Result<Option<Status>> {
    let status = sqlx::query_scalar!(
        "-- reservation_find\nSELECT status FROM reservations WHERE order_id = $1",
        order.0
    )
    .fetch_optional(pool)
    .await?;
    status.map(|status| read_status(&status)).transpose()
}

/// A product with its available units.
pub struct Product {
    pub sku: String,
    pub name: String,
    pub category: String,
    pub price_amount: i64,
    pub price_currency: String,
    pub on_hand: i64,
}

/// Products by SKU, after `after`.
pub async fn products(pool: &PgPool, after: &str, limit: i64) -> sqlx::Result<Vec<Product>> {
    sqlx::query_as!(
        Product,
        r#"-- products_list
        SELECT sku, name, category, price_amount, price_currency, on_hand
        FROM products JOIN stock USING (sku) WHERE sku > $1 ORDER BY sku LIMIT $2"#,
        after,
        limit
    )
    .fetch_all(pool)
    .await
}

pub async fn product(pool: &PgPool, sku: &Sku) -> sqlx::Result<Option<Product>> {
    sqlx::query_as!(
        Product,
        r#"-- product_find
        SELECT sku, name, category, price_amount, price_currency, on_hand
        FROM products JOIN stock USING (sku) WHERE sku = $1"#,
        sku.as_str()
    )
    .fetch_optional(pool)
    .await
}

/// Prices of those SKUs that exist.
pub async fn prices(pool: &PgPool, skus: &[String]) -> sqlx::Result<Vec<(String, Money)>> {
    let rows = sqlx::query!(
        "-- prices_find\nSELECT sku, price_amount, price_currency FROM products WHERE sku = ANY($1)",
        skus
    )
    .fetch_all(pool)
    .await?;
    rows.into_iter()
        .map(|row| {
            let currency = row.price_currency.parse().map_err(decode)?;
            Ok((row.sku, Money::new(row.price_amount, currency)))
        })
        .collect()
}

fn read_status(text: &str) -> sqlx::Result<Status> {
    let mut all = Status::ALL.into_iter();
    let known = all.find(|status| status.as_str() == text);
    // The table's constraint excludes any other.
    known.ok_or_else(|| sqlx::Error::Decode(format!("a reservation cannot be {text:?}").into()))
}

fn decode(error: InvalidValue) -> sqlx::Error {
    sqlx::Error::Decode(error.into())
}
