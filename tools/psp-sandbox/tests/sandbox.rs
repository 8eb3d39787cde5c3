//! The sandbox as a process: Stripe's HTTP API, and what is left after `kill -9`.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::{path::Path, time::Duration};

use devstack::{Reaper, TemporaryDirectory, test::Program};
use reqwest::{Client, RequestBuilder};
use serde_json::{Value, json};

struct Sandbox {
    program: Program,
    client: Client,
}

impl Sandbox {
    async fn start(data: &Path) -> Self {
        let settings = [("DATA_DIR", data.to_str().unwrap())];
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
    let injected = sandbox
        .client
        .put(format!("{}/sandbox/faults/tok_visa", sandbox.program.url))
        .json(&fault)
        .send();
    injected.await.unwrap().error_for_status().unwrap();
    let timed_out = sandbox
        .charge("stalled", "100", "tok_visa")
        .timeout(Duration::from_millis(300))
        .send()
        .await;
    assert!(timed_out.unwrap_err().is_timeout());
    let (status, replayed, _) = send(sandbox.charge("stalled", "100", "tok_visa")).await;
    assert_eq!((status, replayed), (200, true));
    assert_eq!(sandbox.ledger().await[0]["captures"], 1);
}

#[tokio::test]
async fn sigterm_ends_the_process_with_exit_code_0() {
    let data = data_directory();
    let mut sandbox = Sandbox::start(data.path()).await;
    sandbox.program.terminate().unwrap();
    let status = sandbox.program.wait().await.unwrap();
    assert_eq!(status.code(), Some(0));
}
