#!/bin/bash
# Runs once, when the server is first created: one database and one role per service. Only its owner
# can enter a database.
set -euo pipefail
administrator=${POSTGRES_USER:-postgres}

database() { # role, password, name of the setting with the password
    if [ -z "$2" ]; then
        echo "$3 is empty: set it to a password for the role $1" >&2
        exit 1
    fi
    if [ "${ENVIRONMENT:-development}" = production ] && [ "$2" = sagacity ]; then
        echo "$3 is the development password: set another one for production" >&2
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
for service in order payment inventory notification; do
    setting=${service^^}_DB_PASSWORD
    database "$service" "${!setting:-}" "$setting"
done
