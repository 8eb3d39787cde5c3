//! Start and stop of a process, as an orchestrator sees them. The order service stands for all
//! services: they share the chassis.
#![expect(clippy::unwrap_used, reason = "a test")]

use devstack::{
    Durability, Logs, Postgres, Reaper, TemporaryDirectory, free_port,
    test::{self, Program, eventually},
};
use proto::order::v1::{GetOrderRequest, order_service_client::OrderServiceClient};
use tokio::net::TcpStream;
use tonic::Code;
use uuid::Uuid;

/// Starts the order service without waiting for it.
fn spawn(database: &str, broker: &str, lag: &str) -> Program {
    let settings = [
        ("DATABASE_URL", database),
        ("NATS_URL", broker),
        ("SHUTDOWN_LAG_SECONDS", lag),
    ];
    Program::spawn(env!("CARGO_BIN_EXE_order"), &settings).unwrap()
}

/// Status and body of an admin endpoint; `None` while the listener is closed.
async fn get(program: &Program, path: &str) -> Option<(u16, String)> {
    let url = format!("{}{path}", program.admin);
    let response = client::http_client().unwrap().get(url).send().await.ok()?;
    Some((response.status().as_u16(), response.text().await.ok()?))
}

/// Waits until readiness answers with `status`.
async fn until_readiness_is(program: &Program, status: u16) {
    let what = format!("readiness is {status}");
    eventually(&what, async || is(program, "/readyz", status).await).await;
}

/// A process that has noticed that a server is away ends well at SIGTERM.
async fn assert_notices_and_ends_well(mut program: Program) {
    until_readiness_is(&program, 503).await;
    program.terminate().unwrap();
    assert_eq!(program.wait().await.unwrap().code(), Some(0));
}

async fn is(program: &Program, path: &str, status: u16) -> bool {
    get(program, path)
        .await
        .is_some_and(|(found, _)| found == status)
}

fn request(order_id: &str) -> GetOrderRequest {
    GetOrderRequest {
        order_id: order_id.to_owned(),
        customer_id: Uuid::now_v7().to_string(),
    }
}

#[tokio::test]
async fn a_process_is_alive_before_its_database_answers() {
    let nowhere = free_port().unwrap();
    let database = format!("postgres://order:secret@127.0.0.1:{nowhere}/order");
    let mut program = spawn(&database, "nats://127.0.0.1:1", "0");
    eventually("the process is alive", async || {
        is(&program, "/livez", 200).await
    })
    .await;
    for path in ["/startupz", "/readyz"] {
        let (status, body) = get(&program, path).await.unwrap();
        assert_eq!(status, 503, "{path}: {body}");
        assert!(body.contains("waiting for the database"), "{path}: {body}");
    }
    assert!(is(&program, "/metrics", 200).await);
    program.terminate().unwrap();
    assert_eq!(program.wait().await.unwrap().code(), Some(0));
}

#[tokio::test]
async fn readiness_turns_off_first_and_requests_in_flight_complete() {
    let broker = test::broker().await.unwrap();
    let (database, url) = test::database(&[]).await.unwrap();
    let mut program = spawn(&url, &broker.url(), "1");
    until_readiness_is(&program, 200).await;
    assert!(is(&program, "/startupz", 200).await);

    // A request that waits for a lock is in flight.
    let mut lock = database.begin().await.unwrap();
    let statement = sqlx::query("LOCK TABLE orders IN ACCESS EXCLUSIVE MODE");
    statement.execute(&mut *lock).await.unwrap();
    let mut client = OrderServiceClient::connect(program.url.clone())
        .await
        .unwrap();
    let id = Uuid::now_v7().to_string();
    let in_flight = tokio::spawn(async move { client.get_order(request(&id)).await });
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' \
                   AND query LIKE '-- order_find%'";
    eventually("the request waits", async || {
        let waiting = sqlx::query_scalar::<_, i64>(waiting).fetch_one(&database);
        waiting.await.unwrap() > 0
    })
    .await;

    program.terminate().unwrap();
    until_readiness_is(&program, 503).await;
    // During the lag a load balancer may still send requests.
    let mut late = OrderServiceClient::connect(program.url.clone())
        .await
        .unwrap();
    let answered = late.get_order(request("mine")).await.unwrap_err();
    assert_eq!(answered.code(), Code::InvalidArgument);
    drop(late);
    let address = program.url.trim_start_matches("http://").to_owned();
    let is_closed = async || TcpStream::connect(&address).await.is_err();
    eventually("the listener is closed", is_closed).await;
    // The admin listener outlives the others.
    let (status, body) = get(&program, "/readyz").await.unwrap();
    assert_eq!((status, body.contains("shutdown")), (503, true), "{body}");
    assert!(is(&program, "/livez", 200).await);
    assert!(!in_flight.is_finished());

    lock.rollback().await.unwrap();
    let completed = in_flight.await.unwrap().unwrap_err();
    assert_eq!(completed.code(), Code::NotFound, "{completed}");
    assert_eq!(program.wait().await.unwrap().code(), Some(0));
}

#[tokio::test]
async fn an_older_replica_starts_after_a_newer_version_has_migrated() {
    let broker = test::broker().await.unwrap();
    let (database, url) = test::database(&[]).await.unwrap();
    for start in ["first", "after the newer version"] {
        let mut program = spawn(&url, &broker.url(), "0");
        eventually(start, async || is(&program, "/readyz", 200).await).await;
        program.terminate().unwrap();
        assert_eq!(program.wait().await.unwrap().code(), Some(0));
        for table in ["_sqlx_migrations", "_messaging_migrations"] {
            let newer = format!(
                "INSERT INTO {table} (version, description, success, checksum, execution_time) \
                 VALUES (9999, 'newer', true, '', 0) ON CONFLICT DO NOTHING"
            );
            let newer = sqlx::query(sqlx::AssertSqlSafe(newer));
            newer.execute(&database).await.unwrap();
        }
    }
}

#[tokio::test]
async fn sigterm_ends_a_process_well_while_the_broker_is_away() {
    let broker = test::broker().await.unwrap();
    let (_, url) = test::database(&[]).await.unwrap();
    let program = spawn(&url, &broker.url(), "0");
    until_readiness_is(&program, 200).await;
    broker.stop().await.unwrap();
    assert_notices_and_ends_well(program).await;
}

#[tokio::test]
async fn sigterm_ends_a_process_well_while_the_database_is_away() {
    let reaper = Reaper::new().unwrap();
    let directory = TemporaryDirectory::new(&reaper).unwrap();
    let logs = Logs::Directory(devstack::tools::target_directory().join("test-logs/lifecycle"));
    let (place, port) = (directory.path().join("postgres"), free_port().unwrap());
    let server = Postgres::start(&place, port, Durability::Ephemeral, &logs, &reaper);
    let server = server.await.unwrap();
    let broker = test::broker().await.unwrap();
    let url = server.url("postgres", "postgres");
    let program = spawn(&url, &broker.url(), "0");
    until_readiness_is(&program, 200).await;
    server.stop().await.unwrap();
    assert_notices_and_ends_well(program).await;
}
