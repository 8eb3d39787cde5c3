//! Two replicas of the order service as processes, with a real database and broker and a stub of
//! the inventory service.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use devstack::{
    NatsServer,
    test::{self, Program, eventually},
};
use futures::future::join_all;
use proto::{
    common::v1::Money,
    inventory::v1::{
        GetPricesRequest, GetPricesResponse, GetProductRequest, GetProductResponse,
        GetReservationRequest, GetReservationResponse, ListProductsRequest, ListProductsResponse,
        Price,
        inventory_service_server::{InventoryService, InventoryServiceServer},
    },
    order::v1::{
        CancelOrderRequest, CreateOrderRequest, CreateOrderResponse, GetOrderRequest, OrderStatus,
        RequestedLine, order_service_client::OrderServiceClient,
    },
};
use sqlx::PgPool;
use tokio::{
    net::{TcpListener, TcpStream},
    process::Command,
    sync::RwLock,
};
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::{
    Code, Request, Response, Status,
    transport::{Channel, Server},
};
use uuid::Uuid;

type Client = OrderServiceClient<Channel>;

/// An inventory service with one product. It counts the requests for prices.
#[derive(Clone, Default)]
struct Inventory {
    requests: Arc<AtomicUsize>,
    /// While a test holds it, no request is answered.
    held: Arc<RwLock<()>>,
}

#[tonic::async_trait]
impl InventoryService for Inventory {
    async fn get_prices(
        &self,
        request: Request<GetPricesRequest>,
    ) -> Result<Response<GetPricesResponse>, Status> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let _held = self.held.read().await;
        let price = |sku| Price {
            sku,
            price: Some(Money {
                amount: 250,
                currency: "EUR".to_owned(),
            }),
        };
        let known = request
            .into_inner()
            .skus
            .into_iter()
            .filter(|sku| sku == "TEAPOT");
        Ok(Response::new(GetPricesResponse {
            prices: known.map(price).collect(),
        }))
    }

    async fn list_products(
        &self,
        _: Request<ListProductsRequest>,
    ) -> Result<Response<ListProductsResponse>, Status> {
        Err(Status::unimplemented("not needed by the order service"))
    }

    async fn get_product(
        &self,
        _: Request<GetProductRequest>,
    ) -> Result<Response<GetProductResponse>, Status> {
        Err(Status::unimplemented("not needed by the order service"))
    }

    async fn get_reservation(
        &self,
        _: Request<GetReservationRequest>,
    ) -> Result<Response<GetReservationResponse>, Status> {
        Err(Status::unimplemented("not needed by the order service"))
    }
}

type Settings = [(&'static str, String); 5];

async fn start(settings: &Settings) -> Program {
    let settings = settings
        .each_ref()
        .map(|(name, value)| (*name, value.as_str()));
    let program = Program::start(env!("CARGO_BIN_EXE_order"), &settings);
    program.await.unwrap()
}

struct Fixture {
    _broker: NatsServer,
    replicas: Vec<Program>,
    clients: [Client; 2],
    settings: Settings,
    database: PgPool,
    inventory: Inventory,
    inventory_stops: CancellationToken,
}

impl Fixture {
    async fn new(deadline_seconds: &str) -> Self {
        let broker = test::broker().await.unwrap();
        let program = env!("CARGO_BIN_EXE_order");
        let database = test::service_database(program, &[]).await.unwrap();
        let (inventory, inventory_stops) = (Inventory::default(), CancellationToken::new());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let inventory_url = format!("http://{}", listener.local_addr().unwrap());
        let server = Server::builder().add_service(InventoryServiceServer::new(inventory.clone()));
        let served = server.serve_with_incoming(TcpListenerStream::new(listener));
        tokio::spawn(inventory_stops.clone().run_until_cancelled_owned(served));
        let settings = [
            ("DATABASE_URL", database.url),
            ("MIGRATIONS", "check".to_owned()),
            ("NATS_URL", broker.url()),
            ("INVENTORY_URL", inventory_url),
            ("ORDER_DEADLINE_SECONDS", deadline_seconds.to_owned()),
        ];
        let replicas = join_all((0..2).map(|_| start(&settings))).await;
        let client = async |nth: usize| Client::connect(replicas[nth].url.clone()).await.unwrap();
        let clients = [client(0).await, client(1).await];
        Self {
            _broker: broker,
            replicas,
            clients,
            settings,
            database: database.pool,
            inventory,
            inventory_stops,
        }
    }

    async fn count(&self, query: &'static str) -> i64 {
        sqlx::query_scalar(query)
            .fetch_one(&self.database)
            .await
            .unwrap()
    }
}

fn order(customer: Uuid, key: &str, sku: &str, quantity: u32) -> CreateOrderRequest {
    CreateOrderRequest {
        customer_id: customer.to_string(),
        idempotency_key: key.to_owned(),
        lines: vec![RequestedLine {
            sku: sku.to_owned(),
            quantity,
        }],
        payment_method: "tok_visa".to_owned(),
    }
}

fn id(answer: CreateOrderResponse) -> String {
    answer.order.unwrap().order_id
}

#[tokio::test]
async fn prices_come_from_inventory_and_are_cached() {
    let mut fixture = Fixture::new("60").await;
    let customer = Uuid::now_v7();
    for key in ["one", "two", "three"] {
        let answer = fixture.clients[0]
            .create_order(order(customer, key, "TEAPOT", 3))
            .await
            .unwrap()
            .into_inner();
        assert_eq!(answer.order.unwrap().total.unwrap().amount, 750);
    }
    assert_eq!(fixture.inventory.requests.load(Ordering::Relaxed), 1);
    let status = fixture.clients[0]
        .create_order(order(customer, "four", "KETTLE", 1))
        .await
        .unwrap_err();
    assert_eq!(status.message(), "items[0].sku: there is no product KETTLE");
    // While inventory is unavailable, a cached product can still be ordered; the other replica has
    // cached nothing.
    fixture.inventory_stops.cancel();
    fixture.clients[0]
        .create_order(order(customer, "five", "TEAPOT", 1))
        .await
        .unwrap();
    let status = fixture.clients[1]
        .create_order(order(customer, "six", "TEAPOT", 1))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    assert_eq!(fixture.count("SELECT count(*) FROM orders").await, 4);
}

#[tokio::test]
async fn an_order_that_is_in_flight_at_shutdown_is_accepted() {
    // On a machine that pauses its prices may come too late.
    for _ in 0..5 {
        let accepted = order_during_shutdown().await;
        match accepted {
            Err(late) if late.code() == Code::Unavailable => {}
            accepted => return accepted.unwrap(),
        }
    }
    panic!("no order in flight was accepted");
}

async fn order_during_shutdown() -> Result<(), Status> {
    let mut fixture = Fixture::new("60").await;
    let held = Arc::clone(&fixture.inventory.held).write_owned().await;
    let mut client = fixture.clients[0].clone();
    let in_flight = tokio::spawn(async move {
        let request = order(Uuid::now_v7(), "one", "TEAPOT", 1);
        client.create_order(request).await
    });
    eventually("it waits for its prices", async || {
        fixture.inventory.requests.load(Ordering::Relaxed) == 1
    })
    .await;
    let process = &mut fixture.replicas[0];
    process.terminate().unwrap();
    let address = process.url.trim_start_matches("http://").to_owned();
    eventually("the listener is closed", async || {
        TcpStream::connect(&address).await.is_err()
    })
    .await;
    drop(held);
    let accepted = in_flight.await.unwrap();
    assert_eq!(process.wait().await.unwrap().code(), Some(0));
    let orders = fixture.count("SELECT count(*) FROM orders").await;
    assert_eq!(orders, i64::from(accepted.is_ok()));
    accepted.map(drop)
}

#[tokio::test]
async fn a_key_creates_one_order_across_replicas() {
    let fixture = Fixture::new("60").await;
    let customer = Uuid::now_v7();
    let until = Instant::now() + test::TIMEOUT;
    let ask = async |nth: usize| {
        let mut client = fixture.clients[nth % 2].clone();
        loop {
            match client
                .create_order(order(customer, "once", "TEAPOT", 1))
                .await
            {
                Err(busy)
                    if matches!(
                        busy.code(),
                        Code::Aborted | Code::Unavailable | Code::DeadlineExceeded
                    ) && Instant::now() < until =>
                {
                    tokio::time::sleep(Duration::from_millis(5)).await
                }
                answer => return id(answer.unwrap().into_inner()),
            }
        }
    };
    let ids = join_all((0..40).map(ask)).await;
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    assert_eq!(fixture.count("SELECT count(*) FROM orders").await, 1);
    assert_eq!(fixture.count("SELECT count(*) FROM outbox").await, 1);
    let other = fixture.clients[1]
        .clone()
        .create_order(order(customer, "once", "TEAPOT", 2))
        .await
        .unwrap_err();
    assert_eq!(other.code(), Code::AlreadyExists);
}

#[tokio::test]
async fn a_key_is_forgotten_after_72_hours_by_the_clock_of_the_database() {
    let fixture = Fixture::new("60").await;
    // Hours since a replica made the order's id, and since the database saw the key. The third
    // replica had a clock that was two days behind.
    for (key, by_replica, by_database) in [("old", 74, 74), ("new", 71, 71), ("behind", 95, 47)] {
        let insert = "INSERT INTO idempotency_keys
            VALUES ($1, $2, '', $3, now() - make_interval(hours => $4))";
        let order_id = messaging::oldest_id(Duration::from_secs(by_replica * 3600));
        let insert = sqlx::query(insert).bind(Uuid::now_v7()).bind(key);
        let insert = insert.bind(order_id).bind(by_database);
        insert.execute(&fixture.database).await.unwrap();
    }
    let [old, kept] = [
        "SELECT count(*) FROM idempotency_keys WHERE key = 'old'",
        "SELECT count(*) FROM idempotency_keys WHERE key <> 'old'",
    ];
    // A replica that starts prunes at once.
    let mut replica = start(&fixture.settings).await;
    eventually("the old key is forgotten", async || {
        fixture.count(old).await == 0
    })
    .await;
    replica.terminate().unwrap();
    assert!(replica.wait().await.unwrap().success());
    assert_eq!(fixture.count(kept).await, 2);
}

#[tokio::test]
async fn overdue_orders_are_cancelled_once_by_two_sweeping_replicas() {
    let mut fixture = Fixture::new("1").await;
    let customer = Uuid::now_v7();
    let mut placed = Vec::new();
    for nth in 0..20 {
        let client = &mut fixture.clients[nth % 2];
        placed.push(id(client
            .create_order(order(customer, &nth.to_string(), "TEAPOT", 1))
            .await
            .unwrap()
            .into_inner()));
    }
    let open = "SELECT count(*) FROM orders WHERE status <> 'cancelled'";
    eventually("the overdue orders are cancelled", async || {
        fixture.count(open).await == 0
    })
    .await;
    for order_id in placed {
        let request = GetOrderRequest {
            order_id,
            customer_id: customer.to_string(),
        };
        let order = fixture.clients[0]
            .get_order(request)
            .await
            .unwrap()
            .into_inner()
            .order
            .unwrap();
        assert_eq!((order.status(), order.version), (OrderStatus::Cancelled, 2));
    }
    let cancelled = "SELECT count(*) FROM outbox WHERE subject = 'order.cancelled.v1'";
    assert_eq!(fixture.count(cancelled).await, 20);
}

#[tokio::test]
async fn a_repeated_key_finds_its_order_while_prices_are_unavailable() {
    let mut fixture = Fixture::new("60").await;
    let customer = Uuid::now_v7();
    let request = || order(customer, "once", "TEAPOT", 1);
    let first = fixture.clients[0].create_order(request()).await.unwrap();
    let first = id(first.into_inner());
    fixture.inventory_stops.cancel();
    // The other replica has no prices in its cache.
    let client = &mut fixture.clients[1];
    let other = order(customer, "another", "TEAPOT", 1);
    let other = client.create_order(other).await.unwrap_err();
    assert_eq!(other.code(), Code::Unavailable, "{other}");
    let repeated = client.create_order(request()).await.unwrap().into_inner();
    assert!(repeated.replayed);
    assert_eq!(id(repeated), first);
    let reused = client.create_order(order(customer, "once", "TEAPOT", 2));
    assert_eq!(reused.await.unwrap_err().code(), Code::AlreadyExists);
}

#[tokio::test]
async fn new_orders_are_refused_while_accepted_ones_do_not_move() {
    // Nobody pays or reserves here: accepted orders wait.
    let mut fixture = Fixture::new("20").await;
    let customer = Uuid::now_v7();
    let until = Instant::now() + test::TIMEOUT;
    let place = async |key: &str| {
        let mut client = fixture.clients[0].clone();
        client.create_order(order(customer, key, "TEAPOT", 1)).await
    };
    eventually("an order is accepted", async || place("0").await.is_ok()).await;
    // At once, so that all of them are late at the same time, however slow the machine is.
    let keys: Vec<String> = (1..100).map(|nth| nth.to_string()).collect();
    join_all(keys.iter().map(|key| place(key))).await;
    for nth in 100.. {
        let response = place(&nth.to_string()).await;
        if response.is_err_and(|status| status.code() == Code::ResourceExhausted) {
            break;
        }
        assert!(Instant::now() < until, "{nth} orders are accepted");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let repeated = order(customer, "0", "TEAPOT", 1);
    let repeated = fixture.clients[0].create_order(repeated).await.unwrap();
    assert!(repeated.into_inner().replayed);
    // All of them time out; then there is room again.
    loop {
        let key = Uuid::now_v7().to_string();
        let request = order(customer, &key, "TEAPOT", 1);
        if fixture.clients[0].create_order(request).await.is_ok() {
            break;
        }
        assert!(Instant::now() < until, "no order is admitted any more");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A transaction that waits for a row must find it when the repair is committed.
#[tokio::test]
async fn an_order_can_be_cancelled_while_its_row_is_repaired() {
    let mut fixture = Fixture::new("60").await;
    let customer = Uuid::now_v7();
    let mut place = async |key: &str| {
        let request = order(customer, key, "TEAPOT", 1);
        let placed = fixture.clients[0].create_order(request).await.unwrap();
        id(placed.into_inner())
    };
    let (damaged, later) = (place("one").await, place("two").await);
    let database = &fixture.database;
    let damage = "UPDATE orders SET total_currency = 'eur' WHERE order_id = $1::uuid";
    let damage = sqlx::query(damage).bind(&damaged).execute(database).await;
    damage.unwrap();
    let waiting = async |expected: i64| {
        let waiting = "SELECT count(*) FROM pg_stat_activity
            WHERE datname = current_database() AND wait_event_type = 'Lock'
                AND query LIKE '-- orders_lock%'";
        eventually("it waits for its lock", async || {
            fixture.count(waiting).await == expected
        })
        .await;
    };

    // The repair locks the first order, and waits for the second.
    let mut lock = database.begin().await.unwrap();
    let hold = sqlx::query("SELECT FROM orders WHERE order_id = $1::uuid FOR UPDATE");
    hold.bind(&later).execute(&mut *lock).await.unwrap();
    let mut repair = Command::new(env!("CARGO_BIN_EXE_order"));
    repair
        .args(["rebuild", "--write"])
        .env("MIGRATIONS", "check");
    let repair = repair.env("DATABASE_URL", &fixture.settings[0].1).spawn();
    let mut repair = repair.unwrap();
    waiting(1).await;
    let mut client = fixture.clients[0].clone();
    let request = CancelOrderRequest {
        order_id: damaged,
        customer_id: customer.to_string(),
    };
    let cancelled = tokio::spawn(async move { client.cancel_order(request).await });
    waiting(2).await;
    lock.rollback().await.unwrap();

    assert!(repair.wait().await.unwrap().success());
    let cancelled = cancelled
        .await
        .unwrap()
        .unwrap()
        .into_inner()
        .order
        .unwrap();
    assert_eq!(cancelled.status(), OrderStatus::Cancelled);
    assert_eq!(cancelled.total.unwrap().currency, "EUR");
}
