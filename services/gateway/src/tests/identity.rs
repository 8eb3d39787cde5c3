//! Access tokens: which are refused, what each route demands, and how the keys of a provider
//! change.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use api_keys::Scope;
use axum::{Json, Router, body::Body, http::Request, routing::get as route_get};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use development_issuer::AUDIENCE;
use devstack::test::{self, eventually};
use futures::future::join_all;
use jsonwebtoken::{
    Algorithm, EncodingKey, Header, encode,
    jwk::{Jwk, JwkSet},
};
use parking_lot::Mutex;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};
use uuid::Uuid;

use super::{
    Api, CUSTOMER, ORDER, Response, Stub, VALID_ORDER,
    keys::{Keys, api_with_keys},
    without_limits,
};
use crate::{
    edge::Edge,
    identity::{IdentitySettings, LEEWAY},
};

const ORDERS: &str = "/api/v1/orders";
/// Routes that need no token.
const PUBLIC: [&str; 2] = ["list_products", "get_product"];

fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap().as_secs()
}

fn claims(issuer: &str) -> Value {
    json!({
        "iss": issuer, "aud": AUDIENCE, "sub": CUSTOMER, "exp": now() + 60,
        "scope": "orders:read orders:write",
    })
}

fn with(mut claims: Value, name: &str, value: Value) -> Value {
    claims[name] = value;
    claims
}

fn without(mut claims: Value, name: &str) -> Value {
    claims.as_object_mut().unwrap().remove(name);
    claims
}

/// A key of an issuer.
struct Key {
    algorithm: Algorithm,
    id: &'static str,
    private: EncodingKey,
}

impl Key {
    fn rsa(id: &'static str) -> Self {
        // Generating one takes seconds.
        let private = EncodingKey::from_rsa_der(include_bytes!("rsa.der"));
        let algorithm = Algorithm::RS256;
        Self {
            algorithm,
            id,
            private,
        }
    }

    fn p256(id: &'static str) -> Self {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let private = EncodingKey::from_ec_der(&pair.serialize_der());
        let algorithm = Algorithm::ES256;
        Self {
            algorithm,
            id,
            private,
        }
    }

    fn ed25519(id: &'static str) -> Self {
        // PKCS #8 as RFC 8410 has it, without the public key.
        let mut der = vec![
            0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22,
            0x04, 0x20,
        ];
        der.extend(
            [Uuid::new_v4(), Uuid::new_v4()]
                .iter()
                .flat_map(|half| *half.as_bytes()),
        );
        Self {
            algorithm: Algorithm::EdDSA,
            id,
            private: EncodingKey::from_ed_der(&der),
        }
    }

    fn header(&self) -> Header {
        let kid = Some(self.id.to_owned());
        Header {
            kid,
            ..Header::new(self.algorithm)
        }
    }

    fn sign(&self, claims: &Value) -> String {
        encode(&self.header(), claims, &self.private).unwrap()
    }

    fn public(&self) -> Jwk {
        let mut key = Jwk::from_encoding_key(&self.private, self.algorithm).unwrap();
        key.common.key_id = Some(self.id.to_owned());
        key
    }
}

/// An OpenID Connect provider whose keys can be changed.
struct Provider {
    issuer: String,
    keys: Arc<Mutex<Vec<Jwk>>>,
    reads: Arc<AtomicUsize>,
    _stop: DropGuard,
}

impl Provider {
    async fn start(keys: &[&Key]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::serve(listener, keys)
    }

    fn serve(listener: TcpListener, keys: &[&Key]) -> Self {
        let issuer = format!("http://{}", listener.local_addr().unwrap());
        let keys = Arc::new(Mutex::new(
            keys.iter().map(|key| key.public()).collect::<Vec<_>>(),
        ));
        let reads = Arc::<AtomicUsize>::default();
        let discovery = json!({ "issuer": issuer, "jwks_uri": format!("{issuer}/keys") });
        let (served, counted) = (keys.clone(), reads.clone());
        let router = Router::new()
            .route(
                "/.well-known/openid-configuration",
                route_get(async || Json(discovery)),
            )
            .route(
                "/keys",
                route_get(async move || {
                    counted.fetch_add(1, Ordering::SeqCst);
                    Json(JwkSet {
                        keys: served.lock().clone(),
                    })
                }),
            );
        let stop = CancellationToken::new();
        let stopped = stop.clone().cancelled_owned();
        tokio::spawn(
            axum::serve(listener, router)
                .with_graceful_shutdown(stopped)
                .into_future(),
        );
        Self {
            issuer,
            keys,
            reads,
            _stop: stop.drop_guard(),
        }
    }

    fn replace(&self, keys: &[&Key]) {
        *self.keys.lock() = keys.iter().map(|key| key.public()).collect();
    }
}

/// The API with tokens of an issuer; its keys are read until the guard is dropped.
async fn api_of(issuer: &str) -> (Api, DropGuard) {
    api_with(Stub::default(), issuer).await
}

async fn api_with(stub: Stub, issuer: &str) -> (Api, DropGuard) {
    // A process does it at its start.
    let _by_another_test = rustls::crypto::ring::default_provider().install_default();
    let settings = IdentitySettings {
        issuer: issuer.to_owned(),
        audience: AUDIENCE.to_owned(),
        ..super::identity()
    };
    let edge = Edge::new(&settings, without_limits()).unwrap();
    let stop = CancellationToken::new();
    tokio::spawn(edge.identity.clone().run(stop.clone()));
    let api = Api::with_edge(stub, edge, &settings).await;
    (api, stop.drop_guard())
}

impl Api {
    pub(super) async fn once_as_bearer(&self, token: &str) -> Response {
        let request = Request::get(ORDERS).header("authorization", format!("Bearer {token}"));
        self.send(request.body(Body::empty()).unwrap()).await
    }

    /// The same, again while keys of the provider are awaited, or the machine is too busy.
    pub(super) async fn as_bearer(&self, token: &str) -> Response {
        let until = Instant::now() + test::TIMEOUT;
        loop {
            let response = self.once_as_bearer(token).await;
            let is_final = !matches!(response.status.as_u16(), 503 | 504);
            if is_final || Instant::now() > until {
                return response;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

#[tokio::test]
async fn every_token_that_is_not_exactly_right_is_refused_in_the_same_words() {
    let key = Key::ed25519("one");
    let provider = Provider::start(&[&key]).await;
    let (api, _stop) = api_of(&provider.issuer).await;
    let good = || claims(&provider.issuer);
    let valid = key.sign(&good());
    assert_eq!(api.as_bearer(&valid).await.status, 200);

    let encoded = |part: &Value| BASE64_URL_SAFE_NO_PAD.encode(part.to_string());
    let [header, payload, signature] = valid.split('.').collect::<Vec<_>>().try_into().unwrap();
    let confused = {
        // The public key, which everybody knows, as if it were a shared secret.
        let public = serde_json::to_value(key.public()).unwrap();
        let public = BASE64_URL_SAFE_NO_PAD
            .decode(public["x"].as_str().unwrap())
            .unwrap();
        let header = Header {
            kid: Some("one".to_owned()),
            ..Header::new(Algorithm::HS256)
        };
        encode(&header, &good(), &EncodingKey::from_secret(&public)).unwrap()
    };
    let critical = {
        let header = Header {
            crit: Some(vec!["exp".to_owned()]),
            ..key.header()
        };
        encode(&header, &good(), &key.private).unwrap()
    };
    let other = with(good(), "sub", json!(ORDER));
    let rows = [
        ("nothing", String::new()),
        ("no JWT", "x".to_owned()),
        ("too long", "x".repeat(10_000)),
        ("no signature", format!("{header}.{payload}.")),
        (
            "another subject with this signature",
            format!("{header}.{}.{signature}", encoded(&other)),
        ),
        (
            "alg none",
            format!(
                "{}.{payload}.",
                encoded(&json!({ "alg": "none", "kid": "one" }))
            ),
        ),
        (
            "alg None",
            format!(
                "{}.{payload}.",
                encoded(&json!({ "alg": "None", "kid": "one" }))
            ),
        ),
        ("a confused algorithm", confused),
        ("an algorithm that is not the key's", {
            let header = encoded(&json!({ "alg": "ES256", "kid": "one" }));
            format!("{header}.{payload}.{signature}")
        }),
        ("a critical extension", critical),
        (
            "the same id, another key",
            Key::ed25519("one").sign(&good()),
        ),
        ("a key in the token itself", {
            let forger = Key::ed25519("forged");
            let header = Header {
                jwk: Some(forger.public()),
                ..forger.header()
            };
            encode(&header, &good(), &forger.private).unwrap()
        }),
        (
            "another issuer",
            key.sign(&with(good(), "iss", json!("https://login.example.com"))),
        ),
        (
            "another audience",
            key.sign(&with(good(), "aud", json!("another"))),
        ),
        ("no issuer", key.sign(&without(good(), "iss"))),
        ("no audience", key.sign(&without(good(), "aud"))),
        ("no subject", key.sign(&without(good(), "sub"))),
        ("no expiry", key.sign(&without(good(), "exp"))),
        (
            "an expiry that is text",
            key.sign(&with(good(), "exp", json!("tomorrow"))),
        ),
        (
            "not valid yet",
            key.sign(&with(good(), "nbf", json!(now() + LEEWAY + 60))),
        ),
        ("a token of development", {
            development_issuer::issue(CUSTOMER, AUDIENCE, "orders:read")
        }),
    ];
    for (what, token) in rows {
        let response = api.as_bearer(&token).await;
        assert_eq!(response.status, 401, "{what}");
        let problem = response.problem();
        assert_eq!(
            problem["type"], "urn:sagacity:problem:invalid-token",
            "{what}"
        );
        let same = "The access token was not issued for this API. Get another one.";
        assert_eq!(problem["detail"], same, "{what}");
        let challenge = response.headers["www-authenticate"].to_str().unwrap();
        assert!(
            challenge.contains("error=\"invalid_token\""),
            "{what}: {challenge}"
        );
    }
    let expired = key.sign(&with(good(), "exp", json!(now() - LEEWAY - 5)));
    let expired = api.as_bearer(&expired).await;
    assert_eq!(expired.status, 401);
    assert_eq!(
        expired.problem()["detail"],
        "The access token has expired. Get a new one."
    );
    let tolerated = key.sign(&with(good(), "exp", json!(now() - LEEWAY / 2)));
    assert_eq!(api.as_bearer(&tolerated).await.status, 200, "clocks differ");
    for wrong in ["Basic eDp5", "Bearer", valid.as_str()] {
        let request = Request::get(ORDERS).header("authorization", wrong);
        let response = api.send(request.body(Body::empty()).unwrap()).await;
        assert_eq!(response.status, 401, "{wrong}");
    }
    let twice = Request::get(ORDERS)
        .header("authorization", format!("Bearer {valid}"))
        .header("authorization", format!("Bearer {valid}"));
    assert_eq!(
        api.send(twice.body(Body::empty()).unwrap()).await.status,
        401
    );
    // None of it has made the valid one invalid.
    assert_eq!(api.as_bearer(&valid).await.status, 200);
}

#[tokio::test]
async fn a_token_ends_when_it_expires_also_if_it_was_seen_before() {
    let key = Key::ed25519("one");
    let provider = Provider::start(&[&key]).await;
    let (api, _stop) = api_of(&provider.issuer).await;
    // A machine that pauses may let one end before it was seen.
    let mut seen = None;
    for _ in 0..10 {
        let ends = now() - LEEWAY + 5;
        let token = key.sign(&with(claims(&provider.issuer), "exp", json!(ends)));
        if api.as_bearer(&token).await.status == 200 {
            seen = Some((ends, token));
            break;
        }
    }
    let (ends, token) = seen.unwrap();
    while now() <= ends + LEEWAY {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(api.as_bearer(&token).await.status, 401);
}

#[tokio::test]
async fn a_live_stream_ends_with_its_access_token() {
    let key = Key::ed25519("one");
    let provider = Provider::start(&[&key]).await;
    // As long as a log cannot be read the stream goes on.
    let stub = Stub::default().with_unreadable_logs(usize::MAX);
    let (api, _stop) = api_with(stub, &provider.issuer).await;
    let ends = now() - LEEWAY + 15;
    let token = key.sign(&with(claims(&provider.issuer), "exp", json!(ends)));
    let request = Request::get(format!("{ORDERS}/{ORDER}/events"));
    let request = request.header("authorization", format!("Bearer {token}"));
    let stream = api.send(request.body(Body::empty()).unwrap());
    let stream = tokio::time::timeout(test::TIMEOUT, stream).await;
    assert_eq!(stream.expect("the stream ends").status, 200);
    assert!(now() >= ends + LEEWAY);
}

#[tokio::test]
async fn all_scopes_and_customers_of_providers_are_understood() {
    let key = Key::p256("one");
    let provider = Provider::start(&[&key]).await;
    let (api, _stop) = api_of(&provider.issuer).await;
    let good = || claims(&provider.issuer);
    for (what, claims, status) in [
        (
            "a list of audiences",
            with(good(), "aud", json!(["other", AUDIENCE])),
            200,
        ),
        (
            "scopes of other APIs",
            with(good(), "scope", json!("email orders:read x")),
            200,
        ),
        (
            "scp",
            with(without(good(), "scope"), "scp", json!(["orders:read"])),
            200,
        ),
        ("both", with(good(), "scp", json!("orders:write")), 200),
        (
            "an expiry beyond all times",
            with(good(), "exp", json!(u64::MAX - 5000)),
            200,
        ),
        ("a scope of null", with(good(), "scope", Value::Null), 403),
        (
            "a subject that is no UUID",
            with(good(), "sub", json!("auth0|1")),
            200,
        ),
        (
            "the other scope",
            with(good(), "scope", json!("orders:write")),
            403,
        ),
        (
            "a scope that begins like one",
            with(good(), "scope", json!("orders:reads")),
            403,
        ),
        ("no scope", without(good(), "scope"), 403),
        ("an empty scope", with(good(), "scope", json!("")), 403),
    ] {
        let response = api.as_bearer(&key.sign(&claims)).await;
        assert_eq!(response.status, status, "{what}: {}", response.text);
        if status == 403 {
            let problem = response.problem();
            assert_eq!(
                problem["type"], "urn:sagacity:problem:insufficient-scope",
                "{what}"
            );
            let challenge = response.headers["www-authenticate"].to_str().unwrap();
            assert!(
                challenge.contains("insufficient_scope"),
                "{what}: {challenge}"
            );
        }
    }
}

#[tokio::test]
async fn new_keys_of_the_provider_are_read_when_a_token_needs_them_and_old_ones_end() {
    let (first, second, third) = (Key::rsa("1"), Key::p256("2"), Key::ed25519("3"));
    let provider = Provider::start(&[&first]).await;
    let (api, _stop) = api_of(&provider.issuer).await;
    let token = |key: &Key| key.sign(&claims(&provider.issuer));
    let old = token(&first);
    assert_eq!(api.as_bearer(&old).await.status, 200);
    provider.replace(&[&second, &third]);
    let new = token(&second);
    assert_eq!(api.as_bearer(&new).await.status, 200);
    assert_eq!(api.as_bearer(&token(&third)).await.status, 200);
    assert_eq!(
        api.as_bearer(&old).await.status,
        401,
        "its key is withdrawn"
    );
    let before = provider.reads.load(Ordering::SeqCst);
    let invented = token(&Key::ed25519("invented"));
    let refused = join_all((0..20).map(|_| api.once_as_bearer(&invented))).await;
    let refused = refused.iter().map(|response| response.status.as_u16());
    assert!(refused.clone().all(|status| status == 401 || status == 503));
    let reads = provider.reads.load(Ordering::SeqCst) - before;
    assert!(reads < 10, "the provider is asked {reads} times");
}

#[tokio::test]
async fn without_the_keys_of_the_provider_tokens_are_not_refused_but_put_off() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let issuer = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let (api, _stop) = api_of(&issuer).await;
    let key = Key::ed25519("one");
    let token = key.sign(&claims(&issuer));
    let response = api.once_as_bearer(&token).await;
    assert_eq!(response.status, 503, "{}", response.text);
    assert_eq!(response.problem()["retry_safe"], true);
    let public = Request::get("/api/v1/products")
        .body(Body::empty())
        .unwrap();
    assert_eq!(api.send(public).await.status, 200);
    let listener = TcpListener::bind(issuer.strip_prefix("http://").unwrap())
        .await
        .unwrap();
    let _provider = Provider::serve(listener, &[&key]);
    assert_eq!(api.as_bearer(&token).await.status, 200);
}

/// Each operation of the document: (id, method, path, scope).
async fn operations(api: &Api) -> Vec<(String, String, String, Option<String>)> {
    let document = api.get("/openapi.json").await.json();
    let mut operations = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let id = operation["operationId"].as_str().unwrap().to_owned();
            let path = path.replace("{id}", ORDER).replace("{sku}", "SKU-0001");
            let scopes = &operation["security"][0]["accessToken"];
            assert_eq!(operation["security"][1]["apiKey"], *scopes, "{id}");
            let scope = scopes[0].as_str().map(str::to_owned);
            assert_eq!(scope.is_none(), PUBLIC.contains(&&*id), "{id} has no rule");
            operations.push((id, method.to_uppercase(), path, scope));
        }
    }
    operations
}

#[tokio::test]
async fn every_route_demands_the_token_and_the_scope_that_the_document_names() {
    let keys = Keys::new();
    let own = Scope::ALL.map(|scope| keys.create(&[scope], 60).1);
    let (_, expired) = keys.create(&Scope::ALL, -1);
    let (revoked, revoked_key) = keys.create(&Scope::ALL, 60);
    let (_, unknown) = Keys::new().create(&Scope::ALL, 60);
    let (api, _stop) = api_with_keys(Stub::default(), &keys).await;
    assert_eq!(api.as_bearer(&revoked_key).await.status, 200);
    keys.revoke(revoked);
    eventually("the key is refused", async || {
        api.as_bearer(&revoked_key).await.status == 401
    })
    .await;
    let all = operations(&api).await;
    assert_eq!(all.len(), 8);
    let send = async |method: &str, path: &str, token: Option<String>| {
        let mut request = Request::builder().method(method).uri(path);
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let request = request
            .header("idempotency-key", "one")
            .header("content-type", "application/json");
        api.send_head(request.body(VALID_ORDER.into()).unwrap())
            .await
    };
    let issue =
        |audience: &str, scope: &str| Some(development_issuer::issue(CUSTOMER, audience, scope));
    for (id, method, path, scope) in all {
        let Some(scope) = scope else {
            assert!(send(&method, &path, None).await.is_success(), "{id}");
            continue;
        };
        let others = Scope::OF_CUSTOMERS.map(Scope::name);
        let others = others.into_iter().filter(|other| *other != scope);
        let others = others.collect::<Vec<_>>().join(" ");
        for (who, token, status) in [
            ("nobody", None, 401),
            ("a forger", Some("x.y.z".to_owned()), 401),
            ("for another API", issue("another", &scope), 401),
            ("with the other scopes", issue(AUDIENCE, &others), 403),
        ] {
            assert_eq!(send(&method, &path, token).await, status, "{id} as {who}");
        }
        for wrong in [&unknown, &expired, &revoked_key] {
            let status = send(&method, &path, Some(wrong.clone())).await;
            assert_eq!(status, 401, "{id}");
        }
        for (with, key) in Scope::ALL.iter().zip(&own) {
            let status = send(&method, &path, Some(key.clone())).await;
            match with.name() == scope {
                true => assert!(status.is_success(), "{id}: {status}"),
                false => assert_eq!(status, 403, "{id} with a key for {}", with.name()),
            }
        }
        let status = send(&method, &path, issue(AUDIENCE, &scope)).await;
        assert!(status.is_success(), "{id}: {status}");
    }
}

#[tokio::test]
async fn the_development_issuer_issues_tokens_that_are_accepted() {
    let api = Api::new(Stub::default()).await;
    let ask = async |form: &'static str, basic: Option<&str>| {
        let mut request =
            Request::post("/dev/token").header("content-type", "application/x-www-form-urlencoded");
        if let Some(basic) = basic {
            request = request.header("authorization", basic);
        }
        api.send(request.body(form.into()).unwrap()).await
    };
    let grant = "grant_type=client_credentials";
    let with_id = "grant_type=client_credentials&client_id=me&scope=orders%3Aread";
    // "me:x"
    for (form, basic) in [(with_id, None), (grant, Some("Basic bWU6eA=="))] {
        let response = ask(form, basic).await;
        assert_eq!(response.status, 200, "{}", response.text);
        let token = response.json()["access_token"].as_str().unwrap().to_owned();
        assert_eq!(api.as_bearer(&token).await.status, 200);
    }
    for (form, error) in [
        ("", "invalid_request"),
        ("grant_type=password", "unsupported_grant_type"),
        (grant, "invalid_client"),
        (
            "grant_type=client_credentials&client_id=me&scope=root",
            "invalid_scope",
        ),
    ] {
        let response = ask(form, None).await;
        assert_eq!(response.status, 400, "{form}: {}", response.text);
        assert_eq!(response.json()["error"], error, "{form}");
    }
    let provider = Provider::start(&[&Key::ed25519("one")]).await;
    let (api, _stop) = api_of(&provider.issuer).await;
    let request = Request::post("/dev/token").body(Body::empty()).unwrap();
    assert_eq!(api.send(request).await.status, 404, "there is a provider");
}
