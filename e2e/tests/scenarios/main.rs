//! The scenarios, each in a shop of its own, each ending with the invariants. After all of them
//! every edge of the choreography must have been seen. One scenario: `cargo test -p e2e --test
//! scenarios -- late_capture`.
//!
//! With `SAGACITY_TARGET=http://localhost:8080` they run one after the other in the containers of `docker compose`.

mod api;
mod containers;
mod faults;
mod outbox;
mod stories;
mod telemetry;

use std::{
    collections::BTreeSet,
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
};

use audit::Expectations;
use e2e::{Pair, Shop, expected_pairs};
use libtest_mimic::{Arguments, Trial};

type Seen = Arc<Mutex<BTreeSet<Pair>>>;

fn main() -> ExitCode {
    if let Some(child) = std::env::var_os(outbox::CHILD) {
        outbox::child(&child);
    }
    let mut arguments = Arguments::from_args();
    if e2e::target().is_some() {
        // All scenarios share the containers.
        arguments.test_threads = Some(1);
    }
    let seen = Seen::default();
    let scenario = |name: &str, scenario: fn() -> anyhow::Result<BTreeSet<Pair>>| {
        let seen = Arc::clone(&seen);
        Trial::test(name, move || {
            let pairs = scenario().map_err(|error| format!("{error:#}"))?;
            seen.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .extend(pairs);
            Ok(())
        })
    };
    let mut trials = Vec::new();
    macro_rules! scenarios {
        ($($module:ident: $($name:ident),+;)+) => {$($(
            trials.push(scenario(stringify!($name), || run($module::$name())));
        )+)+};
    }
    scenarios! {
        stories: confirmed, declined, out_of_stock_is_refunded, deadline_passes, late_capture_is_refunded,
            cancelled_before_payment, cancelled_during_payment, cancelled_after_confirmation, two_orders_for_the_last_unit;
        api: same_key_twice, same_key_from_fifty_clients, bad_input_is_refused_by_name, lists_and_strangers,
            composed_order_degrades, documentation_is_served,
            documentation_in_a_browser, wrong_settings_are_named;
        faults: every_event_twice, every_event_in_a_wrong_order, rubbish_becomes_dead_letters,
            each_service_killed, broker_restarted, provider_out_of_order, order_log_can_be_rebuilt,
            databases_are_closed_to_each_other;
        containers: stopped_and_started, scaled_out;
        outbox: naive_publish_loses_what_the_outbox_keeps;
        telemetry: one_order_is_one_trace, metrics_and_health_are_served;
    }
    let trials = trials.into_iter().map(|trial| {
        let ignored = is_ignored(trial.name());
        trial.with_ignored_flag(ignored)
    });
    let trials = trials.collect();
    let all = arguments.filter.is_none()
        && !arguments.list
        && !arguments.exact
        && arguments.skip.is_empty();
    let conclusion = libtest_mimic::run(&arguments, trials);
    if all && !conclusion.has_failed() {
        let seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        let never: Vec<Pair> = expected_pairs().difference(&seen).copied().collect();
        if !never.is_empty() {
            eprintln!("edges of the choreography that no scenario has shown: {never:?}");
            return ExitCode::FAILURE;
        }
    }
    conclusion.exit_code()
}

/// Whether what a scenario needs is not there.
fn is_ignored(name: &str) -> bool {
    match name {
        "documentation_in_a_browser" => api::browser().is_none(),
        "stopped_and_started" | "scaled_out" => e2e::target().is_none(),
        // Containers reach no collector of ours, and their admin listeners are nobody else's
        // business.
        "one_order_is_one_trace" | "metrics_and_health_are_served" => e2e::target().is_some(),
        _ => false,
    }
}

fn run<T>(scenario: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(scenario)
}

/// Closes a shop in which nothing was tampered with.
async fn close(shop: Shop) -> anyhow::Result<BTreeSet<Pair>> {
    shop.close(Expectations::default()).await
}
