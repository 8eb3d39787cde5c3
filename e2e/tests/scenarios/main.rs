//! The scenarios. Each has a system of its own and ends with a check of the invariants. After all
//! of them every edge of the choreography must have occurred.
//!
//! One scenario: `cargo test -p e2e --test scenarios -- a_declined_card`.
//!
//! With `SAGACITY_TARGET=http://localhost:8080` they run one after the other in the containers of
//! `docker compose`; with `KUBECONFIG` as well, in that cluster.
//!
//! `-- --ignored` runs the nightly ones instead: they take minutes, or need the programs of another
//! commit.

mod api;
mod auditor;
mod builds;
mod containers;
mod documentation;
mod encryption;
mod erasure;
mod faults;
mod ha;
mod hostile;
mod infrastructure;
mod keys;
mod load;
mod orders;
mod outbox;
mod overload;
mod recovery;
mod secrets;
mod settings;
mod telemetry;

use std::{
    collections::BTreeSet,
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
};

use audit::Expectations;
use e2e::{Harness, Pair, Shop, expected_pairs};
use libtest_mimic::{Arguments, Trial};

/// The edges of the choreography that occurred in a scenario.
type Outcome = anyhow::Result<BTreeSet<Pair>>;

/// What a scenario needs. Without it the scenario is reported as ignored.
#[derive(Clone, Copy)]
enum Needs {
    Nothing,
    Containers,
    /// A cluster of development is not encrypted.
    Encryption,
    /// Neither containers nor pods reach a collector of a test, or publish their admin listeners.
    Processes,
    Browser,
    /// Processes, and root, who may mount a disk.
    Mount,
    /// Processes, and libfaketime.
    Faketime,
    /// Processes, and minutes: only with `--ignored`.
    Nightly,
    /// Processes, and the programs of another commit: only with `--ignored`.
    Previous,
}

impl Needs {
    fn are_missing(self, harness: &Harness) -> bool {
        match self {
            Self::Nothing => false,
            Self::Containers => !harness.uses_containers(),
            Self::Encryption => !harness.uses_containers() && !harness.uses_processes(),
            Self::Processes | Self::Nightly => !harness.uses_processes(),
            Self::Browser => documentation::browser().is_none(),
            Self::Mount => !harness.uses_processes() || !infrastructure::can_mount(),
            Self::Faketime => !harness.uses_processes() || infrastructure::faketime().is_none(),
            Self::Previous => !harness.uses_processes() || builds::previous().is_none(),
        }
    }

    fn is_nightly(self) -> bool {
        matches!(self, Self::Nightly | Self::Previous)
    }
}

struct Scenario {
    name: &'static str,
    needs: Needs,
    run: fn(&Harness) -> Outcome,
}

/// Lists scenarios by module and need; a scenario is named once, as the function that it is.
macro_rules! scenarios {
    ($($module:ident [$needs:ident]: $($name:ident),+;)+) => {
        &[$($(Scenario {
            name: stringify!($name),
            needs: Needs::$needs,
            run: |harness| block_on($module::$name(harness)),
        },)+)+]
    };
}

const SCENARIOS: &[Scenario] = scenarios! {
    orders [Nothing]:
        an_order_is_confirmed_and_streamed_live,
        a_declined_card_cancels_the_order,
        an_order_that_is_out_of_stock_is_refunded,
        an_order_that_misses_its_deadline_is_cancelled,
        a_capture_after_the_deadline_is_refunded,
        a_cancellation_before_the_charge_voids_the_payment,
        a_cancellation_during_the_charge_is_refunded,
        a_confirmed_order_can_be_cancelled_and_is_refunded,
        the_last_unit_is_sold_once;
    api [Nothing]:
        a_repeated_key_returns_the_same_order,
        fifty_clients_with_one_key_create_one_order,
        bad_input_is_rejected_and_the_field_is_named,
        another_customer_sees_nothing,
        an_order_is_shown_even_if_parts_are_unavailable;
    hostile [Nothing]:
        ten_thousand_hostile_requests_cause_no_server_error;
    auditor [Nothing]:
        the_auditor_finds_what_is_broken;
    erasure [Processes]:
        a_customer_who_is_erased_is_found_nowhere,
        a_customer_is_not_erased_while_something_is_under_way;
    settings [Nothing]:
        a_wrong_setting_stops_the_process_and_is_named;
    documentation [Nothing]:
        the_documentation_is_served_without_outside_downloads;
    documentation [Browser]:
        the_documentation_page_works_in_a_browser;
    faults [Nothing]:
        every_event_delivered_twice_is_applied_once,
        events_in_the_wrong_order_end_the_same_way,
        malformed_events_become_dead_letters,
        a_killed_service_loses_no_order,
        a_killed_broker_loses_no_order,
        a_provider_that_fails_half_the_time_charges_once,
        the_orders_table_can_be_rebuilt_from_the_event_log,
        a_service_cannot_enter_the_database_of_another,
        a_service_cannot_change_its_tables;
    encryption [Encryption]:
        nothing_inside_is_reached_without_a_certificate;
    faults [Processes]:
        a_broker_without_its_disk_loses_no_order,
        a_crashed_database_loses_no_order;
    infrastructure [Processes]:
        a_locked_table_loses_no_order,
        statements_that_take_too_long_lose_no_order,
        a_rotated_password_loses_no_order,
        a_database_that_does_not_respond_loses_no_order,
        a_broker_that_went_back_in_time_loses_no_order,
        deleted_streams_lose_no_order,
        a_payment_service_that_was_away_charges_nothing_late;
    infrastructure [Mount]:
        a_full_disk_loses_no_order;
    infrastructure [Faketime]:
        replicas_whose_clocks_differ_cancel_nothing_early;
    overload [Processes]:
        an_overload_is_refused_and_every_accepted_order_ends;
    overload [Nightly]:
        a_slow_provider_at_200_orders_a_second,
        three_times_the_sustainable_rate;
    ha [Processes]:
        a_leader_a_primary_and_a_replica_may_fail,
        a_rollout_of_all_services_fails_no_request;
    ha [Nightly]:
        each_server_and_each_replica_may_fail,
        a_rollout_at_100_orders_a_second;
    recovery [Nightly]:
        recovery_from_each_fault;
    builds [Previous]:
        two_builds_beside_each_other_lose_no_order;
    infrastructure [Nightly]:
        a_table_that_is_locked_for_two_minutes_loses_no_order;
    containers [Containers]:
        containers_can_be_stopped_and_started,
        a_process_lives_with_little,
        replicas_share_the_work;
    keys [Processes]:
        an_api_key_orders_until_it_is_revoked,
        operators_need_a_key_for_operations;
    outbox [Nothing]:
        naive_publish_loses_what_the_outbox_keeps;
    telemetry [Processes]:
        one_order_is_one_trace,
        metrics_and_health_are_served;
};

fn main() -> ExitCode {
    if let Some(child) = std::env::var_os(outbox::CHILD) {
        outbox::child(&child);
    }
    let mut arguments = Arguments::from_args();
    let harness = Harness::from_env();
    if !harness.uses_processes() {
        // All scenarios share the containers or the cluster.
        arguments.test_threads = Some(1);
    }
    let observed = Arc::new(Mutex::new(BTreeSet::new()));
    let nightly = arguments.ignored || arguments.include_ignored;
    let scenarios = SCENARIOS.iter().filter(|scenario| {
        // `--ignored` selects what is nightly, not what cannot run here.
        !nightly || !scenario.needs.are_missing(&harness)
    });
    let trials = scenarios.map(|scenario| {
        let is_ignored = scenario.needs.is_nightly() || scenario.needs.are_missing(&harness);
        let (harness, observed) = (harness.clone(), Arc::clone(&observed));
        let trial = Trial::test(scenario.name, move || {
            let pairs = (scenario.run)(&harness).map_err(|error| format!("{error:#}"))?;
            observed
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .extend(pairs);
            Ok(())
        });
        trial.with_ignored_flag(is_ignored)
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    let is_filtered = arguments.filter.is_some()
        || arguments.exact
        || arguments.ignored
        || !arguments.skip.is_empty();
    if !is_filtered && !arguments.list && !conclusion.has_failed() {
        let observed = observed.lock().unwrap_or_else(PoisonError::into_inner);
        let missing: Vec<Pair> = expected_pairs().difference(&observed).copied().collect();
        if !missing.is_empty() {
            eprintln!("edges of the choreography that no scenario has shown: {missing:?}");
            return ExitCode::FAILURE;
        }
    }
    match secrets::in_logs() {
        // All scenarios have run in processes: there are logs.
        Ok(None) if !is_filtered && !arguments.list && harness.uses_processes() => {
            eprintln!("there are no logs to search for secrets");
            ExitCode::FAILURE
        }
        Ok(None) => conclusion.exit_code(),
        Ok(Some(found)) if found.is_empty() => conclusion.exit_code(),
        Ok(Some(found)) => {
            eprintln!("secrets in logs:\n{}", found.join("\n"));
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("cannot search the logs for secrets: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn block_on<T>(scenario: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.enable_all().build()?.block_on(scenario)
}

/// Closes a system that must satisfy every invariant.
async fn close(shop: Shop) -> Outcome {
    shop.close(Expectations::default()).await
}
