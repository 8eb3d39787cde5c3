//! All SQL of the inventory service. Set-based: one statement for any number of reservations.

use std::collections::{BTreeMap, HashMap};

use contracts::{Money, OrderId};
use sqlx::{PgConnection, PgPool, types::Json};
use uuid::Uuid;

use crate::{
    catalogue,
    domain::{Line, Reservation, Status, Stock},
};

/// Loads the seed catalogue, once: what is there stays as it is. Safe with several replicas.
pub(crate) async fn seed(pool: &PgPool, stock_each: i64) -> sqlx::Result<()> {
    let mut tx = pool.begin().await?;
    let (mut skus, mut names, mut categories, mut prices) = (vec![], vec![], vec![], vec![]);
    for product in catalogue::seed() {
        skus.push(product.sku);
        names.push(product.name);
        categories.push(product.category);
        prices.push(product.price);
    }
    sqlx::query!(
        r#"-- products_seed
        INSERT INTO products (sku, name, category, price_amount, price_currency)
        SELECT sku, name, category, price, $5
        FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[]) AS p (sku, name, category, price)
        WHERE NOT EXISTS (SELECT FROM products)
        ON CONFLICT DO NOTHING"#,
        &skus,
        &names,
        &categories as &[&str],
        &prices,
        catalogue::CURRENCY
    )
    .execute(&mut *tx)
    .await?;
    sqlx::query!(
        r#"-- stock_seed
        INSERT INTO stock (sku, initial, on_hand) SELECT sku, $1, $1 FROM products
        ON CONFLICT DO NOTHING"#,
        stock_each
    )
    .execute(&mut *tx)
    .await?;
    tx.commit().await
}

/// Locks the reservations of orders in key order, so that batches cannot deadlock. Those that do
/// not exist are left out.
pub(crate) async fn lock(
    tx: &mut PgConnection,
    orders: &[OrderId],
) -> sqlx::Result<HashMap<OrderId, Reservation>> {
    let orders: Vec<Uuid> = orders.iter().map(|order| order.0).collect();
    let rows = sqlx::query!(
        r#"-- reservations_lock
        SELECT order_id, status, lines AS "lines: Json<Vec<Line>>"
        FROM reservations WHERE order_id = ANY($1) ORDER BY order_id FOR UPDATE"#,
        &orders
    )
    .fetch_all(tx)
    .await?;
    rows.into_iter()
        .map(|row| {
            let reservation = Reservation {
                status: read_status(&row.status)?,
                lines: row.lines.0,
            };
            Ok((OrderId(row.order_id), reservation))
        })
        .collect()
}

/// Locks the stock of products in key order. Always after [`lock`].
pub(crate) async fn lock_stock(tx: &mut PgConnection, skus: &[&str]) -> sqlx::Result<Stock> {
    let rows = sqlx::query!(
        r#"-- stock_lock
        SELECT sku, on_hand FROM stock WHERE sku = ANY($1) ORDER BY sku FOR UPDATE"#,
        skus as &[&str]
    )
    .fetch_all(tx)
    .await?;
    Ok(rows.into_iter().map(|row| (row.sku, row.on_hand)).collect())
}

/// Moves units between on hand and reserved: positive numbers come back on hand.
pub(crate) async fn move_stock(
    tx: &mut PgConnection,
    movements: &BTreeMap<String, i64>,
) -> sqlx::Result<()> {
    if movements.is_empty() {
        return Ok(());
    }
    let (skus, by): (Vec<&str>, Vec<i64>) = movements
        .iter()
        .map(|(sku, by)| (sku.as_str(), *by))
        .unzip();
    sqlx::query!(
        r#"-- stock_move
        UPDATE stock SET on_hand = on_hand + m.by, reserved = reserved - m.by
        FROM unnest($1::text[], $2::bigint[]) AS m (sku, by) WHERE stock.sku = m.sku"#,
        &skus as &[&str],
        &by
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Inserts new reservations, in key order. One that exists by now is an error: the batch is then
/// tried again.
pub(crate) async fn insert(
    tx: &mut PgConnection,
    new: &BTreeMap<OrderId, &Reservation>,
) -> sqlx::Result<()> {
    if new.is_empty() {
        return Ok(());
    }
    let (orders, statuses, lines) = columns(new);
    sqlx::query!(
        r#"-- reservations_insert
        INSERT INTO reservations (order_id, status, lines)
        SELECT * FROM unnest($1::uuid[], $2::text[], $3::jsonb[])"#,
        &orders,
        &statuses as &[&str],
        &lines as &[Json<&Vec<Line>>]
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Writes the status of locked reservations.
pub(crate) async fn update(
    tx: &mut PgConnection,
    changed: &BTreeMap<OrderId, &Reservation>,
) -> sqlx::Result<()> {
    if changed.is_empty() {
        return Ok(());
    }
    let (orders, statuses, _) = columns(changed);
    sqlx::query!(
        r#"-- reservations_update
        UPDATE reservations SET status = r.status, updated_at = now()
        FROM unnest($1::uuid[], $2::text[]) AS r (order_id, status) WHERE reservations.order_id = r.order_id"#,
        &orders,
        &statuses as &[&str]
    )
    .execute(tx)
    .await?;
    Ok(())
}

type Columns<'a> = (Vec<Uuid>, Vec<&'static str>, Vec<Json<&'a Vec<Line>>>);

fn columns<'a>(reservations: &BTreeMap<OrderId, &'a Reservation>) -> Columns<'a> {
    let orders = reservations.keys().map(|order| order.0).collect();
    let statuses = reservations
        .values()
        .map(|reservation| status_text(reservation.status))
        .collect();
    (
        orders,
        statuses,
        reservations
            .values()
            .map(|reservation| Json(&reservation.lines))
            .collect(),
    )
}

/// The status of one order's reservation.
pub(crate) async fn find(pool: &PgPool, order: OrderId) -> sqlx::Result<Option<Status>> {
    let status = sqlx::query_scalar!(
        "-- reservation_find\nSELECT status FROM reservations WHERE order_id = $1",
        order.0
    )
    .fetch_optional(pool)
    .await?;
    status.map(|status| read_status(&status)).transpose()
}

/// A product with what is available of it.
pub(crate) struct Product {
    pub(crate) sku: String,
    pub(crate) name: String,
    pub(crate) category: String,
    pub(crate) price_amount: i64,
    pub(crate) price_currency: String,
    pub(crate) on_hand: i64,
}

/// Products by SKU, after `after`.
pub(crate) async fn products(pool: &PgPool, after: &str, limit: i64) -> sqlx::Result<Vec<Product>> {
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

/// One product.
pub(crate) async fn product(pool: &PgPool, sku: &str) -> sqlx::Result<Option<Product>> {
    sqlx::query_as!(
        Product,
        r#"-- product_find
        SELECT sku, name, category, price_amount, price_currency, on_hand
        FROM products JOIN stock USING (sku) WHERE sku = $1"#,
        sku
    )
    .fetch_optional(pool)
    .await
}

/// Prices of those SKUs that exist.
pub(crate) async fn prices(pool: &PgPool, skus: &[String]) -> sqlx::Result<Vec<(String, Money)>> {
    let rows = sqlx::query!(
        "-- prices_find\nSELECT sku, price_amount, price_currency FROM products WHERE sku = ANY($1)",
        skus
    )
    .fetch_all(pool)
    .await?;
    let price = |amount, currency| Money { amount, currency };
    Ok(rows
        .into_iter()
        .map(|row| (row.sku, price(row.price_amount, row.price_currency)))
        .collect())
}

const fn status_text(status: Status) -> &'static str {
    match status {
        Status::Reserved => "reserved",
        Status::Rejected => "rejected",
        Status::Released => "released",
    }
}

fn read_status(text: &str) -> sqlx::Result<Status> {
    [Status::Reserved, Status::Rejected, Status::Released]
        .into_iter()
        .find(|status| status_text(*status) == text)
        // The table's constraint excludes this.
        .ok_or_else(|| sqlx::Error::Decode(format!("a reservation cannot be {text:?}").into()))
}
