//! What the role of a service may do in its database when another role owns the tables: read and
//! write rows, and call functions. It may neither create, alter, drop nor truncate a table, nor
//! write to the histories of migrations.

use sqlx::{
    AssertSqlSafe, Executor as _, PgConnection,
    migrate::{Migrate as _, MigrateError, Migrator},
};

/// Grants `role` what it needs, now and in tables of later migrations. Nothing when `role` is the
/// owner itself.
///
/// Runs before the migrations: a service that finds them applied has its rights.
pub(crate) async fn grant(
    connection: &mut PgConnection,
    role: &str,
    migrators: &[Migrator],
) -> Result<(), MigrateError> {
    let is_owner = sqlx::query_scalar::<_, bool>("-- is_owner\nSELECT current_user = $1");
    if is_owner.bind(role).fetch_one(&mut *connection).await? {
        return Ok(());
    }
    // Two replicas that grant at once would fail: they change the same rows of the catalogue.
    connection.lock().await?;
    let mut histories = Vec::new();
    for migrator in migrators {
        let table = &*migrator.table_name;
        connection.ensure_migrations_table(table).await?;
        histories.push(table);
    }
    let rights = sqlx::query_scalar::<_, String>(RIGHTS);
    let rights = rights.bind(role).bind(&histories);
    let rights = rights.fetch_all(&mut *connection).await?;
    // One request, and so one transaction.
    connection.execute(AssertSqlSafe(rights.join(";"))).await?;
    connection.unlock().await
}

/// The statements that grant `$1` its rights, but no writing to the tables `$2`.
///
/// Old rows are deleted from the default partitions; those of later days get the default
/// privileges. Tables of other roles, such as what the role of the service has made before there
/// was an owner, are left as they are.
const RIGHTS: &str = "-- rights
    SELECT format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), $1)
    UNION ALL
    SELECT format('GRANT USAGE ON SCHEMA public TO %I', $1)
    UNION ALL
    SELECT format('ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT %s TO %I', later, $1)
    FROM unnest(ARRAY['SELECT, INSERT, UPDATE, DELETE ON TABLES', 'USAGE ON SEQUENCES',
                      'EXECUTE ON FUNCTIONS']) AS later
    UNION ALL
    SELECT format(CASE
            WHEN relkind = 'S' THEN 'GRANT USAGE ON SEQUENCE %s TO %I'
            WHEN relname = ANY ($2) THEN
                'GRANT SELECT ON %1$s TO %2$I; REVOKE INSERT, UPDATE, DELETE ON %1$s FROM %2$I'
            ELSE 'GRANT SELECT, INSERT, UPDATE, DELETE ON %s TO %I'
        END, pg_class.oid::regclass, $1)
    FROM pg_class
    WHERE relnamespace = 'public'::regnamespace AND pg_get_userbyid(relowner) = current_user
      AND relkind IN ('r', 'p', 'S')
      AND (NOT relispartition OR oid IN (SELECT partdefid FROM pg_partitioned_table))
    UNION ALL
    SELECT format('GRANT EXECUTE ON FUNCTION %s TO %I', oid::regprocedure, $1)
    FROM pg_proc
    WHERE pronamespace = 'public'::regnamespace AND pg_get_userbyid(proowner) = current_user";
