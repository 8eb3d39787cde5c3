#!/bin/bash
# Runs when the server is first created: one database and two roles per service. The owner migrates; the service, which
# gets its rights from the task `migrate`, reads and writes rows. Nobody else can enter a database.
#
# Run once more it makes what is missing, and gives the owner what belongs to the service, as in an installation from
# before there was an owner.
set -euo pipefail
administrator=${POSTGRES_USER:-postgres}

sql() { # database, arguments of psql
    psql --no-psqlrc --quiet --output=/dev/null -v ON_ERROR_STOP=1 -U "$administrator" -d "$@"
}

role() { # role, password, name of the setting with the password
    if [ -z "$2" ]; then
        echo "$3 is empty: set it to a password for the role $1" >&2
        exit 1
    fi
    if [ "${ENVIRONMENT:-development}" = production ] && [ "$2" = sagacity ]; then
        echo "$3 is the development password: set another one for production" >&2
        exit 1
    fi
    sql postgres -v role="$1" -v password="$2" <<'SQL'
SELECT format('CREATE ROLE %I LOGIN PASSWORD %L', :'role', :'password')
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'role') \gexec
SQL
}

database() { # service
    sql postgres -v service="$1" -v owner="$1_owner" <<'SQL'
SELECT format('CREATE DATABASE %I OWNER %I', :'service', :'owner')
WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = :'service') \gexec
REVOKE ALL ON DATABASE :"service" FROM PUBLIC;
SQL
    sql "$1" -v service="$1" -v owner="$1_owner" <<'SQL'
-- The default since PostgreSQL 15.
ALTER SCHEMA public OWNER TO pg_database_owner;
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
REASSIGN OWNED BY :"service" TO :"owner";
SQL
}

sql postgres -c 'REVOKE ALL ON DATABASE postgres, template1 FROM PUBLIC'
for service in order payment inventory notification; do
    setting=${service^^}_DB_PASSWORD
    role "$service" "${!setting:-}" "$setting"
    setting=${service^^}_DB_OWNER_PASSWORD
    role "${service}_owner" "${!setting:-}" "$setting"
    database "$service"
done
