//! The role of a service does not own the tables of its database. The inventory service stands for
//! all services: they share chassis and messaging.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::process::Stdio;

use devstack::{
    Durability, Logs, Postgres, Reaper, TemporaryDirectory, free_port,
    test::{self, Program, ServiceDatabase, eventually},
};
use futures::future::try_join_all;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection, PgPool};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    process::{Child, ChildStdout, Command},
};

const INVENTORY: &str = env!("CARGO_BIN_EXE_inventory");

/// What the role of a service may not do, with the SQLSTATE of the refusal.
const REFUSED: &[(&str, &str)] = &[
    ("42501", "ALTER TABLE stock ADD COLUMN note text"),
    (
        "42501",
        "ALTER TABLE stock DROP CONSTRAINT stock_never_negative",
    ),
    (
        "42501",
        "ALTER TABLE outbox DETACH PARTITION outbox_default",
    ),
    ("42501", "ALTER SEQUENCE outbox_position RESTART"),
    ("42501", "CREATE TABLE mine ()"),
    ("42501", "CREATE TEMPORARY TABLE mine ()"),
    ("42501", "CREATE SCHEMA mine"),
    ("42501", "CREATE INDEX mine ON stock (on_hand)"),
    (
        "42501",
        "CREATE FUNCTION mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    ),
    (
        "42501",
        "CREATE RULE mine AS ON UPDATE TO stock DO INSTEAD NOTHING",
    ),
    ("42501", "DROP TABLE reservations"),
    ("42501", "DROP FUNCTION drop_partition"),
    (
        "22023",
        "SELECT drop_partition('inbox', (to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD') || ' BC')::date)",
    ),
    ("42501", "TRUNCATE reservations"),
    (
        "42501",
        "ALTER DEFAULT PRIVILEGES FOR ROLE test_owner GRANT ALL ON TABLES TO test",
    ),
    ("42501", "SET ROLE test_owner"),
    ("42501", "DELETE FROM _sqlx_migrations"),
    ("42501", "UPDATE _messaging_migrations SET checksum = ''"),
    (
        "42501",
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
         VALUES (9999, '', true, '', 0)",
    ),
    // The functions make and drop partitions of a day, and nothing else.
    ("22023", "SELECT drop_partition('stock', '2026-01-01')"),
    (
        "22023",
        "SELECT drop_partition('_sqlx_migrations', '2026-01-01')",
    ),
    (
        "22023",
        "SELECT drop_partition('outbox_default', '2026-01-01')",
    ),
    ("22023", "SELECT drop_partition('outbox', current_date)"),
    ("22023", "SELECT drop_partition('inbox', current_date - 7)"),
    ("42P01", "SELECT drop_partition('inbox', '2026-01-01')"),
    ("22023", "SELECT make_partition('stock', current_date + 1)"),
    (
        "22023",
        "SELECT make_partition('outbox', current_date + 30)",
    ),
    (
        "22023",
        "SELECT make_partition('outbox', current_date - 30)",
    ),
];

#[tokio::test]
async fn the_role_of_a_service_cannot_change_its_tables() {
    let ServiceDatabase { pool, .. } = test::service_database(INVENTORY, &[]).await.unwrap();
    for (expected, statement) in REFUSED {
        let Err(refused) = sqlx::query(*statement).execute(&pool).await else {
            panic!("it is allowed: {statement}");
        };
        let code = refused.as_database_error().and_then(|error| error.code());
        assert_eq!(code.as_deref(), Some(*expected), "{statement}: {refused}");
    }
    let open = "SELECT count(*) FROM pg_proc WHERE pronamespace = 'public'::regnamespace
                AND has_function_privilege('public', oid, 'EXECUTE')";
    let open = sqlx::query_scalar::<_, i64>(open).fetch_one(&pool).await;
    assert_eq!(open.unwrap(), 0, "everybody may call a function");
}

/// Names and owners of the partitions of a table, but for the default one.
async fn partitions(pool: &PgPool, table: &str) -> Vec<(String, String)> {
    let partitions = "SELECT relname::text, pg_get_userbyid(relowner)::text
                      FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
                      WHERE inhparent = to_regclass($1) AND relname !~ 'default' ORDER BY 1";
    let partitions = sqlx::query_as(partitions).bind(table).fetch_all(pool);
    partitions.await.unwrap()
}

#[tokio::test]
async fn partitions_are_made_and_dropped_with_the_rights_of_the_owner() {
    let broker = test::broker().await.unwrap();
    let database = test::service_database(INVENTORY, &[]).await.unwrap();
    let mut owner = PgConnection::connect(&database.owner_url).await.unwrap();
    let old = "CREATE TABLE outbox_20260101 PARTITION OF outbox
                   FOR VALUES FROM ('2026-01-01 00:00:00+00') TO ('2026-01-02 00:00:00+00');
               CREATE TABLE inbox_20260101 PARTITION OF inbox
                   FOR VALUES FROM ('019b76da-a800-7000-8000-000000000000')
                   TO ('019b7c01-0400-7000-8000-000000000000')";
    owner.execute(old).await.unwrap();

    let settings = [
        ("DATABASE_URL", &*database.url),
        ("MIGRATIONS", "check"),
        ("NATS_URL", &broker.url()),
    ];
    let _service = Program::start(INVENTORY, &settings).await.unwrap();
    let days = "SELECT to_char((now() AT TIME ZONE 'UTC')::date + n, '_YYYYMMDD')
                FROM generate_series(0, 3) AS n ORDER BY n";
    let days = sqlx::query_scalar::<_, String>(days).fetch_all(&database.pool);
    let days = days.await.unwrap();
    for table in ["outbox", "inbox"] {
        let expected: Vec<_> = days
            .iter()
            .map(|day| (format!("{table}{day}"), "test_owner".to_owned()))
            .collect();
        let what = format!("the old partition of the {table} is dropped, and four are made");
        eventually(&what, async || {
            partitions(&database.pool, table).await == expected
        })
        .await;
    }
}

#[tokio::test]
async fn several_tasks_may_migrate_and_grant_at_once() {
    let database = test::service_database(INVENTORY, &[]).await.unwrap();
    let settings = [
        ("DATABASE_URL", &*database.owner_url),
        ("DATABASE_ROLE", "test"),
    ];
    let tasks = (0..4).map(|_| Program::run(INVENTORY, "migrate", &settings));
    try_join_all(tasks).await.unwrap();
    let stock = sqlx::query("SELECT FROM stock").fetch_all(&database.pool);
    assert!(stock.await.unwrap().is_empty());
}

/// The task `migrate`, and its log.
struct Migrate {
    process: Child,
    log: Lines<BufReader<ChildStdout>>,
}

impl Migrate {
    fn start(settings: &[(&str, &str)]) -> Self {
        let mut command = Command::new(INVENTORY);
        command.arg("migrate").envs(settings.iter().copied());
        command.stdout(Stdio::piped()).kill_on_drop(true);
        let mut process = command.spawn().unwrap();
        let log = BufReader::new(process.stdout.take().unwrap()).lines();
        Self { process, log }
    }

    async fn until_logged(&mut self, text: &str) {
        let logged = async {
            while let Some(line) = self.log.next_line().await.unwrap() {
                if line.contains(text) {
                    return;
                }
            }
            panic!("the task has ended");
        };
        tokio::time::timeout(test::TIMEOUT, logged).await.unwrap();
    }

    async fn assert_succeeds(mut self) {
        let ended = tokio::time::timeout(test::TIMEOUT, self.process.wait()).await;
        assert_eq!(ended.unwrap().unwrap().code(), Some(0));
    }
}

#[tokio::test]
async fn the_task_migrate_waits_for_a_free_connection() {
    let url = test::empty_database().await.unwrap();
    let (_, database) = url.rsplit_once('/').unwrap();
    let administrator = url.replace("//test:", "//postgres:");
    let mut administrator = PgConnection::connect(&administrator).await.unwrap();
    // One for the administrator, one for the pool, and none for the migration.
    let limit = format!("ALTER DATABASE \"{database}\" CONNECTION LIMIT 2");
    administrator.execute(AssertSqlSafe(limit)).await.unwrap();
    let mut migrate = Migrate::start(&[("DATABASE_URL", &url)]);
    migrate.until_logged("too many connections").await;
    let limit = format!("ALTER DATABASE \"{database}\" CONNECTION LIMIT -1");
    administrator.execute(AssertSqlSafe(limit)).await.unwrap();
    migrate.assert_succeeds().await;
}

#[tokio::test]
async fn the_task_migrate_waits_for_the_role_of_the_service() {
    let url = test::empty_database().await.unwrap();
    let (_, role) = url.rsplit_once('/').unwrap();
    let mut migrate = Migrate::start(&[("DATABASE_URL", &url), ("DATABASE_ROLE", role)]);
    let missing = format!("role \\\"{role}\\\" does not exist");
    migrate.until_logged(&missing).await;
    let administrator = url.replace("//test:", "//postgres:");
    let mut administrator = PgConnection::connect(&administrator).await.unwrap();
    let create = format!("CREATE ROLE \"{role}\"");
    administrator.execute(AssertSqlSafe(create)).await.unwrap();
    migrate.assert_succeeds().await;
    let granted = "SELECT has_table_privilege($1, 'stock', 'UPDATE')";
    let granted = sqlx::query_scalar::<_, bool>(granted).bind(role);
    assert!(granted.fetch_one(&mut administrator).await.unwrap());
}

/// The steps of deploy/k8s/README.md, while the version before serves.
#[tokio::test]
async fn an_installation_with_one_role_gets_an_owner_while_it_serves() {
    let reaper = Reaper::new().unwrap();
    let directory = TemporaryDirectory::new(&reaper).unwrap();
    let logs = Logs::Directory(devstack::tools::target_directory().join("test-logs/roles"));
    let (place, port) = (directory.path().join("postgres"), free_port().unwrap());
    let server = Postgres::start(&place, port, Durability::Ephemeral, &logs, &reaper);
    let (server, broker) = (server.await.unwrap(), test::broker().await.unwrap());
    let mut administrator = PgConnection::connect(&server.admin_url()).await.unwrap();
    for create in [
        "CREATE ROLE inventory LOGIN",
        "CREATE DATABASE inventory OWNER inventory",
        "REVOKE ALL ON DATABASE inventory FROM PUBLIC",
    ] {
        administrator.execute(create).await.unwrap();
    }
    let (url, owner_url) = (
        server.url("inventory", "inventory"),
        server.url("inventory_owner", "inventory"),
    );
    let broker_url = broker.url();
    let start = async |migrations| {
        let settings = [
            ("DATABASE_URL", &*url),
            ("MIGRATIONS", migrations),
            ("NATS_URL", &broker_url),
        ];
        Program::start(INVENTORY, &settings).await.unwrap()
    };
    let mut before = start("apply").await;

    let administrator = server.url("postgres", "inventory");
    let mut administrator = PgConnection::connect(&administrator).await.unwrap();
    let first = "CREATE ROLE inventory_owner LOGIN;
                 GRANT inventory_owner TO inventory;
                 REASSIGN OWNED BY inventory TO inventory_owner";
    administrator.execute(first).await.unwrap();
    before.wait_until_ready().await.unwrap();
    let _restarted = start("apply").await;
    let task = [
        ("DATABASE_URL", &*owner_url),
        ("DATABASE_ROLE", "inventory"),
    ];
    Program::run(INVENTORY, "migrate", &task).await.unwrap();
    let _after = start("check").await;
    before.terminate().unwrap();
    assert_eq!(before.wait().await.unwrap().code(), Some(0));

    let last = "REVOKE inventory_owner FROM inventory;
                REASSIGN OWNED BY inventory TO inventory_owner";
    administrator.execute(last).await.unwrap();
    let _later = start("check").await;
    let mut service = PgConnection::connect(&url).await.unwrap();
    let update = service.execute("UPDATE stock SET initial = initial + 1, on_hand = on_hand + 1");
    assert_eq!(update.await.unwrap().rows_affected(), 1000);
    let refused = service.execute("DROP TABLE stock").await.unwrap_err();
    assert!(refused.to_string().contains("must be owner"), "{refused}");
    drop(server);
}
