//! The inventory service as processes, with a real database and broker.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeSet;

use devstack::test::{self, Program, eventually};
use futures::future::join_all;
use proto::inventory::v1::{
    GetPricesRequest, GetProductRequest, GetReservationRequest, ListProductsRequest,
    inventory_service_client::InventoryServiceClient,
};
use sqlx::PgPool;
use tonic::{Code, transport::Channel};

type Client = InventoryServiceClient<Channel>;

async fn start(database: &str, broker: &str, stock: &str) -> (Program, Client) {
    let settings = [
        ("DATABASE_URL", database),
        ("NATS_URL", broker),
        ("INITIAL_STOCK", stock),
    ];
    let program = Program::start(env!("CARGO_BIN_EXE_inventory"), &settings)
        .await
        .unwrap();
    let client = Client::connect(program.url.clone()).await.unwrap();
    (program, client)
}

/// Products and units.
async fn stock(database: &PgPool) -> (i64, i64) {
    let sums =
        sqlx::query_as("SELECT count(*), sum(on_hand)::bigint FROM stock").fetch_one(database);
    sums.await.unwrap()
}

#[tokio::test]
async fn replicas_that_start_at_once_load_the_catalogue_once() {
    let broker = test::broker().await.unwrap();
    let (database, url) = test::database(&[]).await.unwrap();
    let broker_url = broker.url();
    let mut replicas = join_all((0..3).map(|_| start(&url, &broker_url, "7"))).await;
    assert_eq!(stock(&database).await, (1000, 7000));
    for (_, client) in &mut replicas {
        let request = GetProductRequest {
            sku: "SKU-1000".to_owned(),
        };
        assert_eq!(
            client
                .get_product(request)
                .await
                .unwrap()
                .into_inner()
                .product
                .unwrap()
                .available,
            7
        );
    }
    // A product whose goods have not come yet.
    sqlx::query(
        "INSERT INTO products (sku, name, category, price_amount, price_currency)
         SELECT 'NEW', name, category, price_amount, price_currency FROM products LIMIT 1",
    )
    .execute(&database)
    .await
    .unwrap();
    // A later start with another setting changes nothing.
    sqlx::query("UPDATE stock SET initial = 1, on_hand = 1 WHERE sku = 'SKU-0001'")
        .execute(&database)
        .await
        .unwrap();
    let _later = start(&url, &broker_url, "9").await;
    assert_eq!(stock(&database).await, (1000, 6994));
}

#[tokio::test]
async fn a_replica_waits_while_another_loads_the_catalogue() {
    let broker = test::broker().await.unwrap();
    let (database, url) = test::database(&[]).await.unwrap();
    let settings = [("DATABASE_URL", &*url)];
    let migrated = Program::run(env!("CARGO_BIN_EXE_inventory"), "migrate", &settings);
    migrated.await.unwrap();
    let mut lock = database.begin().await.unwrap();
    sqlx::query("LOCK TABLE products")
        .execute(&mut *lock)
        .await
        .unwrap();
    let settings = [
        ("DATABASE_URL", &*url),
        ("NATS_URL", &broker.url()),
        ("INITIAL_STOCK", "7"),
    ];
    let mut program = Program::spawn(env!("CARGO_BIN_EXE_inventory"), &settings).unwrap();
    // PostgreSQL ends a statement that waits for a lock for too long.
    let mut attempts = BTreeSet::new();
    eventually("the second attempt waits for the table", async || {
        let attempt = "SELECT query_start::text FROM pg_stat_activity
            WHERE datname = current_database() AND wait_event_type = 'Lock'
                AND query LIKE '-- products_seed%'";
        let attempt = sqlx::query_scalar::<_, String>(attempt);
        attempts.extend(attempt.fetch_optional(&database).await.unwrap());
        attempts.len() == 2
    })
    .await;
    lock.rollback().await.unwrap();
    program.wait_until_ready().await.unwrap();
    assert_eq!(stock(&database).await, (1000, 7000));
}

#[tokio::test]
async fn products_are_listed_by_page_and_priced_in_one_request() {
    let broker = test::broker().await.unwrap();
    let (_, url) = test::database(&[]).await.unwrap();
    let (_program, mut client) = start(&url, &broker.url(), "3").await;
    let (mut skus, mut after) = (BTreeSet::new(), String::new());
    loop {
        let page = client
            .list_products(ListProductsRequest { limit: 100, after })
            .await
            .unwrap()
            .into_inner();
        assert!(
            page.products.len() <= 100
                && page.products.iter().all(|product| product.price.is_some())
        );
        skus.extend(page.products.into_iter().map(|product| product.sku));
        if page.next_after.is_empty() {
            break;
        }
        after = page.next_after;
    }
    assert_eq!(skus.len(), 1000);
    let requested = ["SKU-0002", "SKU-9999", "SKU-0001"]
        .map(str::to_owned)
        .to_vec();
    let prices = client
        .get_prices(GetPricesRequest { skus: requested })
        .await
        .unwrap()
        .into_inner()
        .prices;
    let priced: BTreeSet<&str> = prices.iter().map(|price| price.sku.as_str()).collect();
    assert_eq!(
        priced,
        BTreeSet::from(["SKU-0001", "SKU-0002"]),
        "a product that does not exist has no price"
    );
}

#[tokio::test]
async fn an_invalid_request_is_rejected_with_what_is_expected() {
    let broker = test::broker().await.unwrap();
    let (_, url) = test::database(&[]).await.unwrap();
    let (_program, mut client) = start(&url, &broker.url(), "3").await;
    let skus = vec![String::new(); 1001];
    let status = client
        .get_prices(GetPricesRequest { skus })
        .await
        .unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::InvalidArgument, "skus: expected at most 1000")
    );
    let status = client
        .get_reservation(GetReservationRequest {
            order_id: "x".to_owned(),
        })
        .await
        .unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::InvalidArgument, "order_id: expected a UUID")
    );
    let order_id = uuid::Uuid::now_v7().to_string();
    let status = client
        .get_reservation(GetReservationRequest { order_id })
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    let status = client
        .get_product(GetProductRequest {
            sku: "SKU-9999".to_owned(),
        })
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
}
