//! Settings of the services.

use std::collections::BTreeSet;

use anyhow::ensure;
use e2e::Harness;

use crate::Outcome;

/// Settings that a process must reject.
struct Wrong {
    program: &'static str,
    settings: &'static [(&'static str, &'static str)],
    /// How the error names the setting: clap by its option, a secret by its variable.
    name: &'static str,
    /// What the error says is expected.
    expected: &'static str,
}

const fn wrong(
    program: &'static str,
    settings: &'static [(&'static str, &'static str)],
    name: &'static str,
    expected: &'static str,
) -> Wrong {
    Wrong {
        program,
        settings,
        name,
        expected,
    }
}

/// Must not appear in any error.
const SECRET: &str = "do-not-show";

const DATABASE: (&str, &str) = ("DATABASE_URL", "postgres://nobody@127.0.0.1:1/none");
const PRODUCTION: (&str, &str) = ("ENVIRONMENT", "production");

// One row per setting and rule.
#[rustfmt::skip]
const WRONG: &[Wrong] = &[
    wrong("order", &[], "--database-url", "required"),
    wrong("order", &[("DATABASE_URL", "postgres//order:do-not-show@x/y")],
        "DATABASE_URL", "expected postgres://user:password@host:port/database"),
    wrong("order", &[("DATABASE_URL", "mysql://x")],
        "DATABASE_URL", "expected postgres://user:password@host:port/database"),
    wrong("order", &[("DATABASE_URL", "postgres://order:sagacity@db:5432/order"), PRODUCTION],
        "DATABASE_URL", "production needs one of its own"),
    wrong("order", &[DATABASE, ("DATABASE_POOL_SIZE", "5")],
        "--database-pool-size", "6..=100"),
    wrong("order", &[DATABASE, ("NATS_URL", "localhost")],
        "--nats-url", "expected nats://host:port"),
    wrong("order", &[DATABASE, ("INVENTORY_URL", "inventory")],
        "--inventory-url", "expected http://host:port"),
    wrong("order", &[DATABASE, ("ORDER_DEADLINE_SECONDS", "0")],
        "--deadline-seconds", "1..=86400"),
    wrong("payment", &[DATABASE], "--provider-api-key", "required"),
    wrong("payment", &[DATABASE, ("PROVIDER_API_KEY", SECRET)],
        "PROVIDER_API_KEY", "expected a secret key of the provider"),
    wrong("order", &[DATABASE, ("NATS_URL", "nats://order:do-not-show@localhost:4222")],
        "NATS_URL", "NATS_PASSWORD"),
    wrong("order", &[DATABASE, PRODUCTION], "NATS_PASSWORD", "production needs one"),
    wrong("payment", &[DATABASE, ("NATS_PASSWORD", "a-secret"),
        ("PROVIDER_API_KEY", "sk_test_sagacity"), PRODUCTION],
        "PROVIDER_API_KEY", "production needs one of its own"),
    wrong("inventory", &[DATABASE, ("INITIAL_STOCK", "-1")], "--initial-stock", "0.."),
    wrong("notification", &[DATABASE, ("LISTEN", "everywhere")],
        "--listen", "invalid socket address"),
    wrong("gateway", &[("ORDER_URL", "ftp://order")], "--order-url", "expected http://host:port"),
    wrong("gateway", &[PRODUCTION],
        "OIDC_ISSUER", "production needs an OpenID Connect provider"),
    wrong("gateway", &[("OIDC_ISSUER", "login.example.com")], "OIDC_ISSUER", "expected https://"),
    wrong("gateway", &[("API_KEYS_FILE", "/nowhere")], "API_KEYS_FILE", "read /nowhere"),
    wrong("order", &[DATABASE, ("API_KEYS_FILE", "/dev/null")], "API_KEYS_FILE", "is not valid"),
    wrong("order", &[DATABASE, ("TLS_DIR", "/nowhere")], "TLS_DIR", "read /nowhere/tls.crt"),
    wrong("gateway", &[("TRUSTED_PROXIES", "11")], "--trusted-proxies", "0..=10"),
    wrong("gateway", &[("RUST_LOG", "order=loud")], "RUST_LOG", "expected a filter like"),
    wrong("gateway", &[("LOG_FORMAT", "xml")], "LOG_FORMAT", "expected auto, pretty or json"),
    wrong("psp-sandbox", &[], "DATA_DIR", "required"),
];

/// A missing or wrong setting stops the process at once. The error has the setting's name and what
/// is expected, but no secret.
pub async fn a_wrong_setting_stops_the_process_and_is_named(_: &Harness) -> Outcome {
    let programs = devstack::test::programs().await?;
    for wrong in WRONG {
        let Wrong {
            program, settings, ..
        } = wrong;
        let mut command = tokio::process::Command::new(programs.join(program));
        let output = command
            .env_clear()
            .envs(settings.iter().copied())
            .kill_on_drop(true)
            .output();
        let output = tokio::time::timeout(devstack::test::TIMEOUT, output).await??;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.code() == Some(2),
            "{program} {settings:?} did not stop: {error}"
        );
        for part in [wrong.name, wrong.expected] {
            ensure!(
                error.contains(part),
                "{program} {settings:?}: expected {part:?} in {error}"
            );
        }
        ensure!(!error.contains(SECRET), "{program} shows a secret: {error}");
    }
    Ok(BTreeSet::new())
}
