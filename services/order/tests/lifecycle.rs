//! Start and stop of a process, as an orchestrator sees them. The order service stands for all
//! services: they share the chassis.
#![expect(clippy::unwrap_used, reason = "a test")]

use bootstrap::settings::{DatabaseSettings, Migrations};
use devstack::{
    Durability, Logs, NatsServer, Postgres, Reaper, TemporaryDirectory, free_port,
    test::{self, Program, eventually},
};
use proto::order::v1::{GetOrderRequest, order_service_client::OrderServiceClient};
use tokio::{
    io::{AsyncBufReadExt as _, copy_bidirectional},
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tonic::Code;
use uuid::Uuid;

const ORDER: &str = env!("CARGO_BIN_EXE_order");

/// Starts the order service without waiting for it.
fn spawn(database: &str, broker: &str, lag: &str) -> Program {
    let settings = [
        ("DATABASE_URL", database),
        ("NATS_URL", broker),
        ("SHUTDOWN_LAG_SECONDS", lag),
    ];
    Program::spawn(ORDER, &settings).unwrap()
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

async fn assert_ends_well(mut program: Program) {
    program.terminate().unwrap();
    assert_eq!(program.wait().await.unwrap().code(), Some(0));
}

/// A process that has noticed that a server is away ends well at SIGTERM.
async fn assert_notices_and_ends_well(program: Program) {
    until_readiness_is(&program, 503).await;
    assert_ends_well(program).await;
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
    let program = spawn(&database, "nats://127.0.0.1:1", "0");
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
    assert_ends_well(program).await;
}

#[tokio::test]
async fn readiness_turns_off_first_and_requests_in_flight_complete() {
    let broker = test::broker().await.unwrap();
    let (database, url) = test::database(&[]).await.unwrap();
    let mut program = spawn(&url, &broker.url(), "60");
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
    // A second signal ends the lag.
    program.terminate().unwrap();
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

/// Runs the task `migrate` and returns its exit code.
async fn migrate(database: &str) -> Option<i32> {
    let mut migrate = tokio::process::Command::new(ORDER);
    migrate.arg("migrate").env("DATABASE_URL", database);
    let ended = migrate.kill_on_drop(true).output().await.unwrap();
    ended.status.code()
}

#[tokio::test]
async fn a_service_that_does_not_migrate_waits_for_the_task_that_does() {
    let broker = test::broker().await.unwrap();
    let (database, url) = test::database(&[]).await.unwrap();
    let settings = [
        ("DATABASE_URL", url.as_str()),
        ("NATS_URL", &broker.url()),
        ("MIGRATIONS", "check"),
    ];
    let mut program = Program::spawn(ORDER, &settings).unwrap();
    let asked = "SELECT count(*) FROM pg_stat_activity \
                 WHERE datname = current_database() AND pid <> pg_backend_pid() \
                   AND query LIKE '%_messaging_migrations%'";
    eventually("it has looked for migrations", async || {
        let asked = sqlx::query_scalar::<_, i64>(asked).fetch_one(&database);
        asked.await.unwrap() > 0
    })
    .await;
    let tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'";
    let tables = sqlx::query_scalar::<_, i64>(tables).fetch_one(&database);
    assert_eq!(tables.await.unwrap(), 0, "the service has migrated");
    until_readiness_is(&program, 503).await;

    assert_eq!(migrate(&url).await, Some(0));
    program.wait_until_ready().await.unwrap();
    assert_eq!(migrate(&url).await, Some(0), "once more changes nothing");
    assert_ends_well(program).await;
}

/// A way to a server that can lose the connections it has: they stay open, and nothing arrives.
async fn forward(server: String) -> (u16, watch::Sender<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (lose, lost) = watch::channel(());
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let (server, mut lost) = (server.clone(), lost.clone());
            lost.mark_unchanged();
            tokio::spawn(async move {
                let mut server = TcpStream::connect(server).await.unwrap();
                tokio::select! {
                    _ = copy_bidirectional(&mut client, &mut server) => {}
                    _ = lost.changed() => std::future::pending().await,
                }
            });
        }
    });
    (port, lose)
}

/// As when the machine of the server is lost, and another one takes over its name: nothing tells a
/// client that its connections are gone.
#[tokio::test]
async fn a_service_replaces_connections_that_are_lost_without_a_sign() {
    let broker = test::broker().await.unwrap();
    let (database, url) = test::database(&[]).await.unwrap();
    let server = database.connect_options();
    let server = format!("{}:{}", server.get_host(), server.get_port());
    let (port, lose) = forward(server.clone()).await;
    let url = url.replace(&server, &format!("127.0.0.1:{port}"));
    let mut program = spawn(&url, &broker.url(), "0");
    program.wait_until_ready().await.unwrap();
    lose.send(()).unwrap();
    until_readiness_is(&program, 503).await;
    until_readiness_is(&program, 200).await;
    // It also ends well without them.
    lose.send(()).unwrap();
    assert_ends_well(program).await;
}

/// The orders that a sweep has locked are not behind the next one.
#[tokio::test]
async fn a_sweep_that_failed_is_repeated_from_its_beginning() {
    let broker = test::broker().await.unwrap();
    let (database, url) = test::database(&[]).await.unwrap();
    assert_eq!(migrate(&url).await, Some(0));
    let prepare = "
        INSERT INTO orders (order_id, customer_id, status, paid, refunded, lines, total_amount,
                            total_currency, deadline, created_at, updated_at, version)
        VALUES (gen_random_uuid(), gen_random_uuid(), 'pending', false, false, '[]', 100, 'EUR',
                now() - interval '5 minutes', now(), now(), 1);
        CREATE SEQUENCE failures;
        CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN PERFORM nextval('failures'); RAISE EXCEPTION 'not yet'; END $$;
        CREATE TRIGGER fail BEFORE UPDATE ON orders EXECUTE FUNCTION fail();";
    sqlx::raw_sql(prepare).execute(&database).await.unwrap();
    let program = spawn(&url, &broker.url(), "0");
    let count = async |query: &'static str| {
        let count = sqlx::query_scalar::<_, i64>(query).fetch_one(&database);
        count.await.unwrap()
    };
    eventually("a sweep has failed", async || {
        count("SELECT count(*) FROM failures WHERE is_called").await > 0
    })
    .await;
    let repair = sqlx::query("DROP TRIGGER fail ON orders");
    repair.execute(&database).await.unwrap();
    eventually("the order is cancelled", async || {
        count("SELECT count(*) FROM orders WHERE status = 'cancelled'").await == 1
    })
    .await;
    assert_ends_well(program).await;
}

#[tokio::test]
async fn a_row_that_cannot_be_read_does_not_hold_up_the_sweep() {
    let broker = test::broker().await.unwrap();
    let (database, url) = test::database(&[]).await.unwrap();
    assert_eq!(migrate(&url).await, Some(0));
    let prepare = "
        INSERT INTO orders (order_id, customer_id, status, paid, refunded, lines, total_amount,
                            total_currency, deadline, created_at, updated_at, version)
        SELECT gen_random_uuid(), gen_random_uuid(), 'pending', false, false, '[]', 100, currency,
               now() - age, now(), now(), 1
        FROM (VALUES ('eur', interval '5 minutes'), ('EUR', '4 minutes')) AS o (currency, age)";
    sqlx::raw_sql(prepare).execute(&database).await.unwrap();
    let program = spawn(&url, &broker.url(), "0");
    eventually("the other order is cancelled", async || {
        let cancelled = "SELECT total_currency FROM orders WHERE status = 'cancelled'";
        let cancelled = sqlx::query_scalar::<_, String>(cancelled).fetch_all(&database);
        cancelled.await.unwrap() == ["EUR"]
    })
    .await;
    assert_ends_well(program).await;
}

/// Opening a connection under load takes longer than a request may wait for one.
#[tokio::test]
async fn a_service_that_is_ready_has_opened_all_its_connections() {
    let broker = test::broker().await.unwrap();
    let (database, url) = test::database(&[]).await.unwrap();
    let mut program = spawn(&url, &broker.url(), "0");
    program.wait_until_ready().await.unwrap();
    let connections = "SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND application_name = 'order'";
    let open = async || {
        let open = sqlx::query_scalar::<_, i64>(connections).fetch_one(&database);
        open.await.unwrap()
    };
    // DATABASE_POOL_SIZE by default, and one that holds the relay's lock, which may come later.
    let of_the_pool = open().await;
    assert!(of_the_pool >= 8, "{of_the_pool} connections are open");
    eventually("the relay has its connection, too", async || {
        open().await == 8 + 1
    })
    .await;
}

/// What a plan costs by its estimate grows with the table, whatever it reads: after two million
/// events the server compiled the relay's statement each time, for a hundred milliseconds.
#[tokio::test]
async fn statements_over_a_large_table_are_not_compiled() {
    let pool = connect().await;
    let jit = sqlx::query_scalar::<_, String>("SHOW jit").fetch_one(&pool);
    assert_eq!(jit.await.unwrap(), "off");
}

/// To plan over the partitions of the outbox takes longer than to read.
#[tokio::test]
async fn a_statement_is_planned_once() {
    let pool = connect().await;
    for limit in 0..10_i64 {
        let numbers = "-- numbers\nSELECT n FROM generate_series(1, 100) AS n LIMIT $1";
        let numbers = sqlx::query(numbers).bind(limit);
        numbers.execute(&pool).await.unwrap();
    }
    let plans = "SELECT generic_plans, custom_plans FROM pg_prepared_statements
                 WHERE statement LIKE '-- numbers%'";
    let plans = sqlx::query_as::<_, (i64, i64)>(plans).fetch_one(&pool);
    assert_eq!(plans.await.unwrap(), (10, 0));
}

/// As a service connects, with one connection.
async fn connect() -> sqlx::PgPool {
    let (_, url) = test::database(&[]).await.unwrap();
    let settings = DatabaseSettings {
        url: url.into(),
        pool_size: 1,
        migrations: Migrations::Apply,
        role: None,
    };
    let pool = bootstrap::database::connect(&settings, "order", Vec::new());
    pool.await.unwrap()
}

#[tokio::test]
async fn a_migration_gives_way_to_a_lock_and_tries_again() {
    let (database, url) = test::database(&[]).await.unwrap();
    assert_eq!(migrate(&url).await, Some(0));
    let mut transaction = database.begin().await.unwrap();
    let lock = sqlx::query("LOCK TABLE _sqlx_migrations IN ACCESS EXCLUSIVE MODE");
    lock.execute(&mut *transaction).await.unwrap();
    let mut migrate = tokio::process::Command::new(ORDER);
    migrate.arg("migrate").env("DATABASE_URL", &url);
    migrate
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true);
    let mut migrate = migrate.spawn().unwrap();
    let mut lines = tokio::io::BufReader::new(migrate.stdout.take().unwrap()).lines();
    let waits = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            if line.contains("a migration waits for a lock") {
                return;
            }
        }
        panic!("the task has ended");
    };
    tokio::time::timeout(test::TIMEOUT, waits).await.unwrap();
    transaction.rollback().await.unwrap();
    let ended = tokio::time::timeout(test::TIMEOUT, migrate.wait()).await;
    assert_eq!(ended.unwrap().unwrap().code(), Some(0));
}

#[tokio::test]
async fn a_service_waits_for_a_database_that_is_made_later() {
    let broker = test::broker().await.unwrap();
    let url = test::empty_database().await.unwrap();
    let url = url.replace("//test:", "//postgres:");
    let (server, name) = url.rsplit_once('/').unwrap();
    let name = format!("{name}_later");
    let mut program = spawn(&format!("{server}/{name}"), &broker.url(), "0");
    let log = format!("test-logs/{}-shared/postgres.log", std::process::id());
    let log = devstack::tools::target_directory().join(log);
    eventually("the server has refused it", async || {
        let log = std::fs::read_to_string(&log).unwrap_or_default();
        log.contains(&format!("database \"{name}\" does not exist"))
    })
    .await;
    let create = format!("CREATE DATABASE {name}");
    let administrator = sqlx::PgPool::connect(&url).await.unwrap();
    let create = sqlx::query(sqlx::AssertSqlSafe(create));
    create.execute(&administrator).await.unwrap();
    program.wait_until_ready().await.unwrap();
    assert_ends_well(program).await;
}

/// A password is changed at the services first.
#[tokio::test]
async fn a_service_waits_for_a_broker_that_does_not_know_it_yet() {
    let reaper = Reaper::new().unwrap();
    let directory = TemporaryDirectory::new(&reaper).unwrap();
    // A new log each time: it is read below.
    let logs = directory.path().join("logs");
    let log = logs.join("nats.log");
    let logs = Logs::Directory(logs);
    let place = directory.path().join("nats");
    let port = free_port().unwrap();
    let others = "authorization { users: [ { user: somebody, password: else } ] }";
    let server = NatsServer::start_with(&place, port, others, &logs, &reaper);
    let server = server.await.unwrap();
    let (_, url) = test::database(&[]).await.unwrap();
    let mut program = spawn(&url, &server.url(), "0");
    eventually("the broker has refused it", async || {
        let log = std::fs::read_to_string(&log).unwrap_or_default();
        log.contains("authentication error")
    })
    .await;
    server.stop().await.unwrap();
    let server = NatsServer::start_with(&place, port, "", &logs, &reaper);
    let server = server.await.unwrap();
    program.wait_until_ready().await.unwrap();
    assert_ends_well(program).await;
    server.stop().await.unwrap();
}

#[tokio::test]
async fn a_service_waits_for_a_broker_without_a_leader() {
    let reaper = Reaper::new().unwrap();
    let directory = TemporaryDirectory::new(&reaper).unwrap();
    let logs = Logs::Directory(devstack::tools::target_directory().join("test-logs/lifecycle"));
    // One server of three: it takes connections, and its JetStream has no leader.
    let place = directory.path().join("nats");
    let (port, routes) = (free_port().unwrap(), free_port().unwrap());
    let absent = free_port().unwrap();
    let cluster = format!(
        "server_name: one\ncluster {{ name: three, listen: 127.0.0.1:{routes}, \
         routes: [nats://127.0.0.1:{routes}, nats://127.0.0.1:{absent}] }}\n"
    );
    let server = NatsServer::start_with(&place, port, &cluster, &logs, &reaper);
    let server = server.await.unwrap();
    let (_, url) = test::database(&[]).await.unwrap();

    let mut waiting = spawn(&url, &server.url(), "0");
    eventually("it waits for streams", async || {
        let report = get(&waiting, "/readyz").await;
        report.is_some_and(|(status, body)| {
            status == 503 && body.contains("consumers have not started yet")
        })
    })
    .await;
    assert!(is(&waiting, "/livez", 200).await);
    waiting.terminate().unwrap();
    assert_eq!(waiting.wait().await.unwrap().code(), Some(0));

    let mut program = spawn(&url, &server.url(), "0");
    eventually("it waits as well", async || {
        is(&program, "/livez", 200).await
    })
    .await;
    server.stop().await.unwrap();
    let alone = NatsServer::start(&place, port, &logs, &reaper)
        .await
        .unwrap();
    program.wait_until_ready().await.unwrap();
    program.terminate().unwrap();
    assert_eq!(program.wait().await.unwrap().code(), Some(0));
    alone.stop().await.unwrap();
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
