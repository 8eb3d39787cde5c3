//! Requests that no honest client sends. None may cause a server error, and the system must work as
//! before.

use std::{
    fmt::Write as _,
    sync::atomic::{AtomicUsize, Ordering},
};

use anyhow::{Context as _, ensure};
use e2e::{Harness, wait_for};
use futures::future::try_join_all;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::{Outcome, close};

const REQUESTS: u64 = 10_000;
const CLIENTS: usize = 16;

const METHODS: [&str; 8] = [
    "GET", "POST", "HEAD", "PUT", "DELETE", "TRACE", "PATCH", "get",
];
const PATHS: [&str; 9] = [
    "/api/v1/orders",
    "/api/v1/orders/",
    "/api/v1/orders/{}",
    "/api/v1/orders/{}/cancel",
    "/api/v1/orders/{}/timeline",
    "/api/v1/products/{}",
    "/api/v1/orders?limit={}",
    "/api/v1/products?cursor={}&limit=1",
    "/{}",
];
/// Texts that have broken other programs.
const TEXTS: [&str; 30] = [
    "",
    "0",
    "-1",
    "%00",
    "%FF%FE",
    "%",
    "%zz",
    "..",
    "../../etc/passwd",
    "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "..%5c..%5cwindows",
    "//products",
    ";jsessionid=1",
    "SKU-0001%0d%0aSet-Cookie:%20x=1",
    "'%20OR%201=1--",
    "$(id)",
    "${jndi:ldap://127.0.0.1/x}",
    "{{7*7}}",
    "<script>alert(1)</script>",
    "%E2%80%AE",
    "%EF%BC%B3KU-0001",
    "%F0%9D%95%8AKU-0001",
    "S%D0%9AU-0001",
    "99999999999999999999999999",
    "1e999",
    "NaN",
    "00000000-0000-0000-0000-000000000000",
    "ffffffff-ffff-ffff-ffff-ffffffffffff",
    "{01890000-0000-7000-8000-000000000001}",
    "http://127.0.0.1:1/",
];
const HEADERS: [&str; 20] = [
    "idempotency-key: ",
    "idempotency-key: \u{e9}",
    "idempotency-key: a\tb",
    "idempotency-key: \"",
    "x-correlation-id: \u{0}",
    "x-correlation-id: ../../x",
    "traceparent: 00-ffffffffffffffffffffffffffffffff-0000000000000000-ff",
    "traceparent: 99-x",
    "tracestate: =,=,=",
    "last-event-id: order:99999999999999999999999,payment:-1",
    "x-http-method-override: DELETE",
    "x-forwarded-for: 127.0.0.1, ::1, not an address",
    "forwarded: for=\"[::1]\"",
    "x-original-url: /livez",
    "host: other.example",
    "content-encoding: gzip",
    "accept-encoding: identity;q=0, *;q=0",
    "expect: 200-maybe",
    "range: bytes=0-,-1,0-0,0-0,0-0",
    "authorization: Bearer a.b.c",
];
/// Bytes, because some are no text.
const BODIES: [&[u8]; 28] = [
    b"",
    b"null",
    b"[]",
    b"\"\"",
    b"{",
    b"{}x",
    b"\xEF\xBB\xBF{}",
    b"\xFF\xFE{\0}\0",
    b"{\"items\":[{\"sku\":\"SKU-0001\",\"quantity\":1}],\"payment_method\":\"\\ud800\"}",
    b"{\"items\":[{\"sku\":\"SKU-0001\",\"quantity\":1}],\"payment_method\":\"\\u0000\"}",
    b"{\"items\":[{\"sku\":\"\xF0\x9D\x95\x8AKU-0001\",\"quantity\":1}],\"payment_method\":\"tok_visa\"}",
    b"{\"items\":[{\"sku\":\"S\xD0\x9AU-0001\",\"quantity\":1}],\"payment_method\":\"tok_visa\"}",
    b"{\"items\":[{\"sku\":\"\xC0\xAF\",\"quantity\":1}],\"payment_method\":\"tok_visa\"}",
    b"{\"items\":[{\"sku\":\"SKU-0001\",\"quantity\":1e400}],\"payment_method\":\"tok_visa\"}",
    b"{\"items\":[{\"sku\":\"SKU-0001\",\"quantity\":-0}],\"payment_method\":\"tok_visa\"}",
    b"{\"items\":[{\"sku\":\"SKU-0001\",\"quantity\":4294967297}],\"payment_method\":\"tok_visa\"}",
    b"{\"items\":[{\"sku\":\"SKU-0001\",\"quantity\":1.0000000000000000000000000001}],\"payment_method\":\"x\"}",
    b"{\"items\":[{\"sku\":\"SKU-0001\",\"quantity\":0x1}],\"payment_method\":\"tok_visa\"}",
    b"{\"items\":[{\"sku\":\"SKU-0001\",\"quantity\":NaN}],\"payment_method\":\"tok_visa\"}",
    b"{\"items\":[],\"items\":[{\"sku\":\"SKU-0001\",\"quantity\":1}],\"payment_method\":\"tok_visa\"}",
    b"{\"items\":[{\"sku\":\"SKU-0001\",\"sku\":\"SKU-0002\",\"quantity\":1}],\"payment_method\":\"tok_visa\"}",
    b"{\"__proto__\":{\"admin\":true},\"items\":[],\"payment_method\":\"tok_visa\"}",
    b"{\"items\":{\"0\":{\"sku\":\"SKU-0001\",\"quantity\":1}},\"payment_method\":\"tok_visa\"}",
    b"{\"items\":[{\"sku\":{\"$ne\":null},\"quantity\":1}],\"payment_method\":\"tok_visa\"}",
    b"// comment\n{}",
    b"{'items':[]}",
    b"<?xml version=\"1.0\"?><!DOCTYPE x [<!ENTITY e SYSTEM \"file:///etc/passwd\">]><x>&e;</x>",
    b"\x1f\x8b\x08\x00",
];

/// What is sent, byte for byte, and what is shown when it goes wrong.
fn request(number: u64, token: &str) -> Vec<u8> {
    // The same requests on every machine.
    let mut random = StdRng::seed_from_u64(number);
    let mut pick = |from: &[&'static str]| *from.choose(&mut random).unwrap_or(&"");
    let (method, path, text) = (pick(&METHODS), pick(&PATHS), pick(&TEXTS));
    let (first, second) = (pick(&HEADERS), pick(&HEADERS));
    let long = random.random_range(0..40);
    let text = match long {
        0 => "A".repeat(70_000),
        1 => "%41".repeat(2_000),
        _ => text.to_owned(),
    };
    let mut head = format!(
        "{method} {} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n",
        path.replace("{}", &text)
    );
    if random.random_bool(0.8) {
        let _infallible = write!(head, "authorization: Bearer {token}\r\n");
    }
    let _infallible = write!(head, "{first}\r\n");
    if long == 2 {
        for nth in 0..120 {
            let _infallible = write!(head, "x-{nth}: y\r\n");
        }
    }
    let mut body = match long {
        3 => [b"[".repeat(30_000), b"]".repeat(30_000)].concat(),
        4 => b"{\"items\":".repeat(7_000),
        5 => vec![b' '; 70_000],
        _ => BODIES
            .choose(&mut random)
            .map_or_else(Vec::new, |body| body.to_vec()),
    };
    if method == "POST" || random.random_bool(0.2) {
        let _infallible = write!(
            head,
            "content-type: application/json\r\nidempotency-key: {number}\r\n"
        );
        match random.random_range(0..8) {
            0 => {
                let size = body.len();
                let mut chunked = format!("{size:x}\r\n").into_bytes();
                chunked.extend_from_slice(&body);
                chunked.extend_from_slice(if size == 0 { b"\r\n" } else { b"\r\n0\r\n\r\n" });
                body = chunked;
                head.push_str("transfer-encoding: chunked\r\n");
            }
            1 => {
                head.push_str("transfer-encoding: chunked\r\n");
                body = b"ffffffffffffffffff\r\nx".to_vec();
            }
            2 => {
                let _infallible = write!(
                    head,
                    "content-length: {0}\r\ncontent-length: {1}\r\n",
                    body.len(),
                    body.len() + 1
                );
            }
            _ => {
                let _infallible = write!(head, "content-length: {}\r\n", body.len());
            }
        }
    } else {
        body.clear();
    }
    let _infallible = write!(head, "{second}\r\n");
    head.push_str(match random.random_range(0..30) {
        0 => " folded: line\r\n\r\n",
        1 => "\n\n",
        2 => "no colon\r\n\r\n",
        3 => ": no name\r\n\r\n",
        4 => "x y: space\r\n\r\n",
        _ => "\r\n",
    });
    let mut bytes = head.into_bytes();
    bytes.extend_from_slice(&body);
    bytes
}

/// The status, or `None` when the gateway closes the connection without a response.
async fn status(gateway: &str, request: &[u8]) -> anyhow::Result<Option<u16>> {
    let mut stream = TcpStream::connect(gateway).await?;
    // The gateway may refuse a request before it has all of it.
    let _refused = stream.write_all(request).await;
    let mut response = Vec::new();
    let read = timeout(devstack::test::TIMEOUT, stream.read_to_end(&mut response)).await;
    let _reset = read.context("the connection stays open")?;
    let head = String::from_utf8_lossy(&response[..response.len().min(12)]).into_owned();
    Ok(head
        .strip_prefix("HTTP/1.1 ")
        .and_then(|status| status.parse().ok()))
}

pub async fn ten_thousand_hostile_requests_cause_no_server_error(harness: &Harness) -> Outcome {
    let shop = harness
        .open("hostile", &[("gateway", "TRUSTED_PROXIES", "1")])
        .await?;
    let gateway = shop.endpoints().gateway.clone();
    let gateway = gateway
        .strip_prefix("http://")
        .context("the gateway's address")?;
    let (next, answered) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let clients = (0..CLIENTS).map(async |_| {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed) as u64;
            if number >= REQUESTS {
                return anyhow::Ok(());
            }
            let request = request(number, shop.customer.token());
            let shown =
                || String::from_utf8_lossy(&request[..request.len().min(1500)]).into_owned();
            // A machine that is too busy may be late.
            let status = wait_for("a response that is in time", async || {
                let status = status(gateway, &request).await?;
                Ok((!matches!(status, Some(503 | 504))).then_some(status))
            });
            let status = status.await;
            let status = status.with_context(|| format!("request {number}:\n{}", shown()))?;
            if let Some(status) = status {
                answered.fetch_add(1, Ordering::Relaxed);
                ensure!(status < 500, "request {number}: {status}\n{}", shown());
            }
        }
    });
    try_join_all(clients).await?;
    let answered = answered.into_inner();
    ensure!(answered > 9_000, "only {answered} requests were answered");
    let log = shop.deployment.log("gateway").await?;
    ensure!(!log.contains("panicked"), "a handler panicked");
    shop.order_until(&[("SKU-0003", 1)], "tok_visa", "confirmed")
        .await?;
    close(shop).await
}
