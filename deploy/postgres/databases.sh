#!/bin/bash
# Runs once, when the server is new: one database and one role per service. Nobody but its owner enters a database.
set -euo pipefail
administrator=${POSTGRES_USER:-postgres}

database() { # role, its password, the setting that the password came from
    if [ -z "$2" ]; then
        echo "$3 is empty: expected the password of the role $1" >&2
        exit 1
    fi
    if [ "${ENVIRONMENT:-development}" = production ] && [ "$2" = sagacity ]; then
        echo "$3 is the password of development: production needs one of its own" >&2
        exit 1
    fi
    psql --no-psqlrc --quiet -v ON_ERROR_STOP=1 -U "$administrator" -d postgres -v role="$1" -v password="$2" <<'SQL'
CREATE ROLE :"role" LOGIN PASSWORD :'password';
CREATE DATABASE :"role" OWNER :"role";
REVOKE ALL ON DATABASE :"role" FROM PUBLIC;
SQL
}

psql --no-psqlrc --quiet -v ON_ERROR_STOP=1 -U "$administrator" -d postgres \
    -c 'REVOKE ALL ON DATABASE postgres, template1 FROM PUBLIC'
database order "${ORDER_DB_PASSWORD:-}" ORDER_DB_PASSWORD
database payment "${PAYMENT_DB_PASSWORD:-}" PAYMENT_DB_PASSWORD
database inventory "${INVENTORY_DB_PASSWORD:-}" INVENTORY_DB_PASSWORD
database notification "${NOTIFICATION_DB_PASSWORD:-}" NOTIFICATION_DB_PASSWORD
