//! The sandbox as a process: Stripe's HTTP API, and what is left after `kill -9`.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::{fs, path::Path};

use devstack::{
    Reaper, TemporaryDirectory,
    test::{Program, eventually},
};
use reqwest::{Client, RequestBuilder};
use serde_json::{Value, json};

struct Sandbox {
    program: Program,
    client: Client,
}

impl Sandbox {
    async fn start(data: &Path) -> Self {
        Self::start_with(data, &[]).await
    }

    async fn start_with(data: &Path, more: &[(&str, &str)]) -> Self {
        let mut settings = vec![("DATA_DIR", data.to_str().unwrap())];
        settings.extend(more);
        let program = Program::start(env!("CARGO_BIN_EXE_psp-sandbox"), &settings)
            .await
            .unwrap();
        Self {
            program,
            client: client::http_client().unwrap(),
        }
    }

    /// Kills the process and starts it again with the same data.
    async fn crash_and_restart(self, data: &Path) -> Self {
        self.program.kill().await.unwrap();
        Self::start(data).await
    }

    fn get(&self, path: &str) -> RequestBuilder {
        self.client
            .get(format!("{}{path}", self.program.url))
            .bearer_auth("sk_test_x")
    }

    fn post(&self, path: &str, key: &str, form: &[(&str, &str)]) -> RequestBuilder {
        let request = self
            .client
            .post(format!("{}{path}", self.program.url))
            .bearer_auth("sk_test_x");
        request.header("idempotency-key", key).form(form)
    }

    fn charge(&self, key: &str, amount: &str, token: &str) -> RequestBuilder {
        let form = [
            ("amount", amount),
            ("currency", "eur"),
            ("confirm", "true"),
            ("payment_method_data[type]", "card"),
            ("payment_method_data[card][token]", token),
            ("metadata[order_id]", key),
        ];
        self.post("/v1/payment_intents", key, &form)
    }

    async fn inject(&self, name: &str, fault: Value) {
        let url = format!("{}/sandbox/faults/{name}", self.program.url);
        let injected = self.client.put(url).json(&fault).send().await.unwrap();
        injected.error_for_status().unwrap();
    }

    /// Ids of the intents on a page, and whether there are more.
    async fn page(&self, query: &str) -> (Vec<String>, bool) {
        let (status, _, page) = send(self.get(&format!("/v1/payment_intents?{query}"))).await;
        assert_eq!((status, &page["object"]), (200, &json!("list")), "{page}");
        let intents = page["data"].as_array().unwrap().iter();
        let ids = intents.map(|intent| intent["id"].as_str().unwrap().to_owned());
        (ids.collect(), page["has_more"].as_bool().unwrap())
    }

    async fn keys_in_use(&self) -> Vec<Value> {
        let response = self.get("/sandbox/keys-in-use").send().await.unwrap();
        response.json().await.unwrap()
    }

    async fn ledger(&self) -> Vec<Value> {
        let lines = self
            .get("/sandbox/ledger")
            .send()
            .await
            .unwrap()
            .text()
            .await
            .unwrap();
        lines
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

/// Status, whether the response was replayed, and body.
async fn send(request: RequestBuilder) -> (u16, bool, Value) {
    let response = request.send().await.unwrap();
    let replayed = response.headers().contains_key("idempotent-replayed");
    (
        response.status().as_u16(),
        replayed,
        response.json().await.unwrap(),
    )
}

fn data_directory() -> TemporaryDirectory {
    TemporaryDirectory::new(&Reaper::new().unwrap()).unwrap()
}

#[tokio::test]
async fn an_idempotency_key_charges_once_even_after_a_crash() {
    let data = data_directory();
    let sandbox = Sandbox::start(data.path()).await;
    let (status, replayed, intent) = send(sandbox.charge("one", "1990", "tok_visa")).await;
    assert_eq!(
        (status, replayed, &intent["status"]),
        (200, false, &json!("succeeded")),
        "{intent}"
    );
    assert_eq!(
        send(sandbox.charge("one", "1990", "tok_visa")).await,
        (200, true, intent.clone())
    );

    let sandbox = sandbox.crash_and_restart(data.path()).await;
    assert_eq!(
        send(sandbox.charge("one", "1990", "tok_visa")).await,
        (200, true, intent.clone())
    );
    let id = intent["id"].as_str().unwrap();
    assert_eq!(
        send(sandbox.get(&format!("/v1/payment_intents/{id}")))
            .await
            .2,
        intent
    );
    let (status, _, other) = send(sandbox.charge("one", "1991", "tok_visa")).await;
    assert_eq!(
        (status, &other["error"]["type"]),
        (400, &json!("idempotency_error"))
    );
    let balance = json!({
        "order_id": "one",
        "currency": "EUR",
        "captured": 1990,
        "refunded": 0,
        "captures": 1,
    });
    assert_eq!(sandbox.ledger().await, [balance]);
}

#[tokio::test]
async fn a_decline_is_replayed_after_a_crash() {
    let data = data_directory();
    let sandbox = Sandbox::start(data.path()).await;
    let declined = send(sandbox.charge("poor", "500", "tok_chargeDeclinedInsufficientFunds")).await;
    assert_eq!(
        (declined.0, &declined.2["error"]["decline_code"]),
        (402, &json!("insufficient_funds"))
    );
    assert_eq!(declined.2["error"]["type"], "card_error");
    let sandbox = sandbox.crash_and_restart(data.path()).await;
    let again = send(sandbox.charge("poor", "500", "tok_chargeDeclinedInsufficientFunds")).await;
    assert_eq!(again, (402, true, declined.2));
    assert!(sandbox.ledger().await.is_empty());
}

#[tokio::test]
async fn a_refund_returns_the_captured_amount_and_no_more() {
    let data = data_directory();
    let sandbox = Sandbox::start(data.path()).await;
    let (_, _, intent) = send(sandbox.charge("back", "700", "tok_visa")).await;
    let form = [("payment_intent", intent["id"].as_str().unwrap())];
    let (status, _, refund) = send(sandbox.post("/v1/refunds", "back-refund", &form)).await;
    assert_eq!(
        (status, &refund["amount"], &refund["status"]),
        (200, &json!(700), &json!("succeeded"))
    );
    let sandbox = sandbox.crash_and_restart(data.path()).await;
    assert_eq!(
        send(sandbox.post("/v1/refunds", "back-refund", &form)).await,
        (200, true, refund.clone())
    );
    let (status, _, twice) = send(sandbox.post("/v1/refunds", "another key", &form)).await;
    assert_eq!(
        (status, &twice["error"]["code"]),
        (400, &json!("charge_already_refunded"))
    );
    let found = send(sandbox.get(&format!("/v1/refunds/{}", refund["id"].as_str().unwrap()))).await;
    assert_eq!(found.2, refund);
    assert_eq!(sandbox.ledger().await[0]["refunded"], 700);
}

#[tokio::test]
async fn an_invalid_request_names_its_parameter_and_charges_nothing() {
    let data = data_directory();
    let sandbox = Sandbox::start(data.path()).await;
    for (request, status, param) in [
        (sandbox.charge("a", "0", "tok_visa"), 400, Some("amount")),
        (sandbox.charge("b", "many", "tok_visa"), 400, Some("amount")),
        (
            sandbox.charge("c", "1", "tok_unknown"),
            400,
            Some("payment_method_data[card][token]"),
        ),
        (
            sandbox.post("/v1/refunds", "d", &[("payment_intent", "pi_none")]),
            400,
            Some("payment_intent"),
        ),
        (sandbox.get("/v1/payment_intents/pi_none"), 404, None),
        (
            sandbox
                .client
                .get(format!("{}/v1/refunds/re_none", sandbox.program.url))
                .bearer_auth("sk_live_x"),
            401,
            None,
        ),
    ] {
        let (found, _, body) = send(request).await;
        assert_eq!(
            (found, body["error"]["param"].as_str()),
            (status, param),
            "{body}"
        );
        assert_eq!(body["error"]["type"], "invalid_request_error", "{body}");
    }
    assert!(sandbox.ledger().await.is_empty());
}

#[tokio::test]
async fn a_client_that_times_out_finds_its_charge_when_it_retries() {
    let data = data_directory();
    let sandbox = Sandbox::start(data.path()).await;
    let fault = json!({ "stall_after_charge_ms": 60_000 });
    sandbox.inject("tok_visa", fault).await;
    let waits = tokio::spawn(sandbox.charge("stalled", "100", "tok_visa").send());
    eventually("it is charged", async || {
        sandbox.ledger().await.len() == 1 && sandbox.keys_in_use().await.is_empty()
    })
    .await;
    waits.abort();
    let (status, replayed, _) = send(sandbox.charge("stalled", "100", "tok_visa")).await;
    assert_eq!((status, replayed), (200, true));
    assert_eq!(sandbox.ledger().await[0]["captures"], 1);
}

#[tokio::test]
async fn a_500_is_stored_under_its_key_whether_the_charge_was_executed_or_not() {
    let data = data_directory();
    let sandbox = Sandbox::start(data.path()).await;
    for (fault, executed) in [("error_rate", false), ("error_after_execution_rate", true)] {
        sandbox.inject("tok_visa", json!({ fault: 1.0 })).await;
        let (status, replayed, first) = send(sandbox.charge(fault, "300", "tok_visa")).await;
        assert_eq!((status, replayed), (500, false), "{first}");
        sandbox.inject("tok_visa", json!({})).await;
        let again = send(sandbox.charge(fault, "300", "tok_visa")).await;
        assert_eq!(again, (500, true, first), "{fault}");
        let captures = sandbox.ledger().await;
        let captured = captures.iter().any(|balance| balance["order_id"] == fault);
        assert_eq!(captured, executed, "{fault}");
    }
    let sandbox = sandbox.crash_and_restart(data.path()).await;
    let again = send(sandbox.charge("error_rate", "300", "tok_visa")).await;
    assert_eq!((again.0, again.1), (500, true));
}

#[tokio::test]
async fn a_500_before_execution_is_not_stored() {
    let data = data_directory();
    let sandbox = Sandbox::start(data.path()).await;
    sandbox
        .inject("*", json!({ "unavailable_rate": 1.0 }))
        .await;
    let (status, replayed, _) = send(sandbox.charge("later", "300", "tok_visa")).await;
    assert_eq!((status, replayed), (500, false));
    sandbox.inject("*", json!({})).await;
    let (status, replayed, _) = send(sandbox.charge("later", "300", "tok_visa")).await;
    assert_eq!((status, replayed), (200, false));
}

#[tokio::test]
async fn a_key_is_in_use_until_its_charge_is_executed_even_if_the_client_hangs_up() {
    let data = data_directory();
    let sandbox = Sandbox::start(data.path()).await;
    // Also the time in which the second request must arrive: generous.
    sandbox
        .inject("tok_visa", json!({ "execution_ms": 20_000 }))
        .await;
    let hung_up = tokio::spawn(sandbox.charge("slow", "100", "tok_visa").send());
    eventually("its key is in use", async || {
        !sandbox.keys_in_use().await.is_empty()
    })
    .await;
    hung_up.abort();
    let (status, _, in_use) = send(sandbox.charge("slow", "100", "tok_visa")).await;
    assert_eq!(
        (status, &in_use["error"]["code"]),
        (409, &json!("idempotency_key_in_use"))
    );
    assert_eq!(sandbox.page("").await, (vec![], false), "not executed yet");
    eventually("the charge is executed", async || {
        sandbox.ledger().await.len() == 1
    })
    .await;
    let (status, replayed, _) = send(sandbox.charge("slow", "100", "tok_visa")).await;
    assert_eq!((status, replayed), (200, true));
}

#[tokio::test]
async fn intents_are_listed_by_time_the_newest_first_and_page_by_page() {
    let data = data_directory();
    let sandbox = Sandbox::start(data.path()).await;
    let mut newest_first = Vec::new();
    for order in ["first", "second", "third"] {
        let (_, _, intent) = send(sandbox.charge(order, "100", "tok_visa")).await;
        assert_eq!(intent["metadata"]["order_id"], order);
        newest_first.insert(0, intent);
    }
    let ids: Vec<&str> = newest_first
        .iter()
        .map(|i| i["id"].as_str().unwrap())
        .collect();
    assert_eq!(
        sandbox.page("limit=2").await,
        (ids[..2].iter().map(|id| id.to_string()).collect(), true)
    );
    let rest = sandbox
        .page(&format!("limit=2&starting_after={}", ids[1]))
        .await;
    assert_eq!(rest, (vec![ids[2].to_owned()], false));
    let created = |intent: &Value| intent["created"].as_i64().unwrap();
    let (first, last) = (created(&newest_first[2]), created(&newest_first[0]));
    let all = format!("created[gte]={first}&created[lte]={last}");
    assert_eq!(sandbox.page(&all).await.0, ids);
    let after = format!("created[gte]={}", last + 1);
    let before = format!("created[lte]={}", first - 1);
    assert_eq!(sandbox.page(&after).await, (vec![], false));
    assert_eq!(sandbox.page(&before).await, (vec![], false));
}

#[tokio::test]
async fn a_pending_refund_succeeds_or_fails_later_and_a_failed_one_can_be_made_again() {
    let data = data_directory();
    let sandbox = Sandbox::start(data.path()).await;
    let (_, _, intent) = send(sandbox.charge("back", "700", "tok_visa")).await;
    let intent = intent["id"].as_str().unwrap();
    let form = [("payment_intent", intent)];
    let fault = json!({ "refund_pending_ms": 1000, "refund_failure_rate": 1.0 });
    sandbox.inject("refund", fault).await;
    let (_, _, failing) = send(sandbox.post("/v1/refunds", "one", &form)).await;
    let path = format!("/v1/refunds/{}", failing["id"].as_str().unwrap());
    assert_eq!(failing["status"], "pending");
    eventually("failed", async || {
        send(sandbox.get(&path)).await.2["status"] == "failed"
    })
    .await;
    assert_eq!(sandbox.ledger().await[0]["refunded"], 0);
    sandbox
        .inject("refund", json!({ "refund_pending_ms": 60_000 }))
        .await;
    let (status, _, pending) = send(sandbox.post("/v1/refunds", "two", &form)).await;
    assert_eq!(
        (status, &pending["status"]),
        (200, &json!("pending")),
        "{pending}"
    );
    let (_, _, third) = send(sandbox.post("/v1/refunds", "three", &form)).await;
    assert_eq!(third["error"]["code"], "charge_already_refunded");
    let path = format!("/v1/refunds?payment_intent={intent}");
    let (_, _, list) = send(sandbox.get(&path)).await;
    let refunds = list["data"].as_array().unwrap().iter();
    let statuses: Vec<&str> = refunds.map(|r| r["status"].as_str().unwrap()).collect();
    assert_eq!(statuses, ["pending", "failed"]);
}

#[tokio::test]
async fn old_keys_are_forgotten() {
    let data = data_directory();
    let sandbox = Sandbox::start_with(data.path(), &[("KEY_RETENTION_SECONDS", "1")]).await;
    let first = send(sandbox.charge("old", "100", "tok_visa")).await.2;
    eventually("a new charge under the old key", async || {
        let (status, replayed, intent) = send(sandbox.charge("old", "100", "tok_visa")).await;
        assert_eq!((status, replayed), (200, intent["id"] == first["id"]));
        !replayed
    })
    .await;
}

/// Resident memory of the process whose environment contains `text`, in bytes.
fn resident_memory(text: &str) -> usize {
    let is_it = |process: &fs::DirEntry| {
        let environment = fs::read(process.path().join("environ")).unwrap_or_default();
        String::from_utf8_lossy(&environment).contains(text)
    };
    let mut processes = fs::read_dir("/proc").unwrap().map(Result::unwrap);
    let process = processes.find(is_it).unwrap();
    let status = fs::read_to_string(process.path().join("status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.unwrap().trim().trim_end_matches(" kB");
    kilobytes.parse::<usize>().unwrap() * 1024
}

#[tokio::test]
async fn memory_does_not_grow_with_the_number_of_charges() {
    const MEBIBYTE: usize = 1024 * 1024;
    let data = data_directory();
    let sandbox = Sandbox::start(data.path()).await;
    // Each charge leaves about 25 KB in the ledger.
    let metadata = "x".repeat(8 * 1024);
    let charge = async |count: usize| {
        for _ in 0..count / 20 {
            let charges = (0..20).map(|_| {
                let id = uuid::Uuid::now_v7().to_string();
                let form = [
                    ("amount", "100"),
                    ("currency", "eur"),
                    ("confirm", "true"),
                    ("payment_method", "pm_card_visa"),
                    ("metadata[order_id]", &*id),
                    ("metadata[note]", &*metadata),
                ];
                sandbox.post("/v1/payment_intents", &id, &form).send()
            });
            for charged in futures::future::join_all(charges).await {
                assert_eq!(charged.unwrap().status(), 200);
            }
        }
    };
    let memory = || resident_memory(data.path().to_str().unwrap());
    charge(400).await;
    let after_few = memory();
    charge(4000).await;
    let after_many = memory();
    let ledger = data.path().join("sandbox.redb").metadata().unwrap().len();
    assert!(ledger > 90 * MEBIBYTE as u64, "{ledger} bytes");
    let grown = after_many.saturating_sub(after_few);
    assert!(
        grown < 32 * MEBIBYTE,
        "from {after_few} to {after_many} bytes"
    );
    let sandbox = sandbox.crash_and_restart(data.path()).await;
    assert!(
        memory() < after_few + 32 * MEBIBYTE,
        "{} bytes after a restart",
        memory()
    );
    // A line per order: nothing was lost, and all of it was never in memory at once.
    assert_eq!(sandbox.ledger().await.len(), 4400);
}

#[tokio::test]
async fn sigterm_ends_the_process_with_exit_code_0() {
    let data = data_directory();
    let mut sandbox = Sandbox::start(data.path()).await;
    sandbox.program.terminate().unwrap();
    let status = sandbox.program.wait().await.unwrap();
    assert_eq!(status.code(), Some(0));
}
