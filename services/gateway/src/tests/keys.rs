//! API keys: which are refused, when they end, and how often they may be used. What each route
//! demands of them: `identity`.

use std::path::PathBuf;

use api_keys::{ApiKeySettings, KeyId, Scope};
use axum::{
    body::{Body, to_bytes},
    http::Request,
};
use devstack::{
    Reaper, TemporaryDirectory,
    test::{self, eventually},
};
use futures::future::join_all;
use secrecy::ExposeSecret as _;
use time::OffsetDateTime;
use tokio_util::sync::{CancellationToken, DropGuard};
use tower::ServiceExt as _;

use super::{Api, CUSTOMER, ORDER, Stub, authorization, identity, without_limits};
use crate::{edge::Edge, identity::IdentitySettings, limits::LimitSettings};

const ORDERS: &str = "/api/v1/orders";

/// A file of keys.
pub(super) struct Keys {
    directory: TemporaryDirectory,
}

impl Keys {
    pub(super) fn new() -> Self {
        let reaper = Reaper::new().unwrap();
        Self {
            directory: TemporaryDirectory::new(&reaper).unwrap(),
        }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("keys.json")
    }

    /// A new key that ends after so many seconds.
    pub(super) fn create(&self, scopes: &[Scope], seconds: i64) -> (KeyId, String) {
        let (customer, end) = (
            CUSTOMER.parse().unwrap(),
            OffsetDateTime::now_utc() + time::Duration::seconds(seconds),
        );
        let note = "a test".to_owned();
        let created = api_keys::create(&self.path(), customer, scopes.to_vec(), end, note);
        let (entry, key) = created.unwrap();
        (entry.id, key.expose_secret().to_owned())
    }

    pub(super) fn revoke(&self, key: KeyId) {
        api_keys::revoke(&self.path(), key).unwrap();
    }

    fn settings(&self) -> IdentitySettings {
        let file = self.path().to_str().unwrap().to_owned();
        IdentitySettings {
            api_keys: ApiKeySettings { file },
            ..identity()
        }
    }
}

/// The API with the keys of a file; it is read again until the guard is dropped.
pub(super) async fn api_with_keys(stub: Stub, keys: &Keys) -> (Api, DropGuard) {
    api_with(stub, keys, without_limits()).await
}

async fn api_with(stub: Stub, keys: &Keys, limits: LimitSettings) -> (Api, DropGuard) {
    let settings = keys.settings();
    let edge = Edge::new(&settings, limits).unwrap();
    let stop = CancellationToken::new();
    tokio::spawn(edge.identity.clone().run(stop.clone()));
    let api = Api::with_edge(stub, edge, &settings).await;
    (api, stop.drop_guard())
}

#[tokio::test]
async fn every_key_that_is_not_valid_is_refused_in_the_words_of_a_wrong_token() {
    let keys = Keys::new();
    let (_, key) = keys.create(&Scope::ALL, 60);
    let (revoked, revoked_key) = keys.create(&Scope::ALL, 60);
    keys.revoke(revoked);
    let (_, expired) = keys.create(&Scope::ALL, -1);
    let (_, unknown) = Keys::new().create(&Scope::ALL, 60);
    let (api, _stop) = api_with_keys(Stub::default(), &keys).await;
    assert_eq!(api.as_bearer(&key).await.status, 200);
    let guess = api.as_bearer("x.y.z").await.problem();
    for (what, wrong) in [
        ("revoked", revoked_key.clone()),
        ("expired", expired),
        ("unknown", unknown),
        ("the prefix only", api_keys::PREFIX.to_owned()),
        ("a part of it", key[..key.len() - 1].to_owned()),
        ("more than it", format!("{key}0")),
        ("two keys", format!("{revoked_key} {key}")),
    ] {
        let response = api.as_bearer(&wrong).await;
        assert_eq!(response.status, 401, "{what}");
        assert_eq!(response.problem(), guess, "{what}");
    }
    let without_keys = Api::new(Stub::default()).await;
    let refused = without_keys.as_bearer(&key).await;
    assert_eq!((refused.status.as_u16(), refused.problem()), (401, guess));
    let document = without_keys.get("/openapi.json").await.text;
    assert!(!document.contains("apiKey"), "there are none");
}

#[tokio::test]
async fn a_live_stream_ends_when_its_api_key_is_revoked() {
    let keys = Keys::new();
    let (id, key) = keys.create(&[Scope::OrdersRead], 600);
    // As long as a log cannot be read the stream goes on.
    let stub = Stub::default().with_unreadable_logs(usize::MAX);
    let (api, _stop) = api_with_keys(stub, &keys).await;
    let request = Request::get(format!("{ORDERS}/{ORDER}/events"))
        .header("authorization", format!("Bearer {key}"));
    let request = request.body(Body::empty()).unwrap();
    let response = api.router.clone().oneshot(request).await.unwrap();
    assert_eq!(response.status(), 200);
    keys.revoke(id);
    let stream = to_bytes(response.into_body(), usize::MAX);
    let stream = tokio::time::timeout(test::TIMEOUT, stream).await;
    stream.expect("the stream ends").unwrap();
    assert_eq!(api.as_bearer(&key).await.status, 401);
}

#[tokio::test]
async fn a_key_that_is_made_later_is_accepted_and_one_that_has_changed_is_another() {
    let keys = Keys::new();
    let (id, _) = keys.create(&[Scope::OrdersRead], 60);
    let (api, _stop) = api_with_keys(Stub::default(), &keys).await;
    let (_, later) = keys.create(&[Scope::OrdersRead], 60);
    eventually("the new key is accepted", async || {
        api.as_bearer(&later).await.status == 200
    })
    .await;
    let text = std::fs::read_to_string(keys.path()).unwrap();
    std::fs::write(keys.path(), text.replace("orders:read", "operations")).unwrap();
    eventually("it has another scope", async || {
        api.as_bearer(&later).await.status == 403
    })
    .await;
    keys.revoke(id);
}

#[tokio::test]
async fn a_key_has_a_limit_of_its_own_and_wrong_keys_count_for_their_address() {
    let keys = Keys::new();
    let [first, second] = [(); 2].map(|()| keys.create(&Scope::ALL, 60).1);
    let (_, unknown) = Keys::new().create(&Scope::ALL, 60);
    let limits = LimitSettings {
        customer_requests_per_second: 1,
        api_key_requests_per_second: 1,
        address_requests_per_second: 1,
        trusted_proxies: 0,
    };
    let (api, _stop) = api_with(Stub::default(), &keys, limits).await;
    let once = api.as_bearer(&first).await;
    assert_eq!(once.headers["ratelimit"], "\"API key\";r=1;t=1");
    let is_refused = async |key: &str| {
        let responses = join_all((0..50).map(|_| api.as_bearer(key))).await;
        responses.iter().any(|response| response.status == 429)
    };
    assert!(is_refused(&first).await);
    // Another key and the tokens of the same customer.
    assert_eq!(api.as_bearer(&second).await.status, 200);
    let token = authorization(CUSTOMER);
    let token = token.strip_prefix("Bearer ").unwrap();
    assert_eq!(api.as_bearer(token).await.status, 200);
    assert!(is_refused(&unknown).await);
    assert!(is_refused("x.y.z").await, "the same address");
}
