//! Private PostgreSQL and nats-server processes for this machine.
