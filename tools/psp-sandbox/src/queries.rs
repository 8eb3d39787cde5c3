//! What can be looked up: one object by its id, lists in Stripe's shape, and the ledger. Everything
//! that was answered is found: unlike Stripe's search, its lists are not behind.

use axum::{
    body::{Body, Bytes},
    extract::{Path, Query, State},
    http::{HeaderMap, header},
    response::{IntoResponse as _, Response},
};
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::{
    api::Sandbox,
    charges::success,
    ledger::{Intent, Parameters},
    response,
    tables::{ReadTables, Selection},
};

/// How many bytes of the ledger are sent at once.
const CHUNK: usize = 64 * 1024;

pub(crate) async fn get_intent(
    State(sandbox): State<Sandbox>,
    headers: HeaderMap,
    Path(id): Path<String>,
) -> Response {
    let key = id.clone();
    let body = move |tables: &ReadTables| Ok(tables.intent(&key)?.as_ref().map(Intent::body));
    one(&sandbox, &headers, "payment_intent", &id, body).await
}

pub(crate) async fn get_refund(
    State(sandbox): State<Sandbox>,
    headers: HeaderMap,
    Path(id): Path<String>,
) -> Response {
    let key = id.clone();
    let body = move |tables: &ReadTables| {
        let found = tables.refund(&key)?;
        Ok(found.map(|(refund, intent)| refund.body(&intent, OffsetDateTime::now_utc())))
    };
    one(&sandbox, &headers, "refund", &id, body).await
}

/// <https://docs.stripe.com/api/payment_intents/list>
pub(crate) async fn list_intents(
    State(sandbox): State<Sandbox>,
    headers: HeaderMap,
    Query(parameters): Query<Parameters>,
) -> Response {
    let number = |name: &str| parameters.get(name).and_then(|text| text.parse().ok());
    let selection = Selection {
        created_gte: number("created[gte]"),
        created_lte: number("created[lte]"),
        starting_after: parameters.get("starting_after").cloned(),
        limit: limit(&parameters),
    };
    let page = move |tables: &ReadTables| {
        let (intents, has_more) = tables.intents(&selection)?;
        let data = intents.iter().map(Intent::body).collect();
        Ok(list("/v1/payment_intents", data, has_more))
    };
    list_objects(&sandbox, &headers, page).await
}

/// <https://docs.stripe.com/api/refunds/list>, for one intent.
pub(crate) async fn list_refunds(
    State(sandbox): State<Sandbox>,
    headers: HeaderMap,
    Query(parameters): Query<Parameters>,
) -> Response {
    let page = move |tables: &ReadTables| {
        let intent = match parameters.get("payment_intent") {
            Some(id) => tables.intent(id)?,
            None => None,
        };
        let mut data: Vec<Value> = Vec::new();
        if let Some(intent) = &intent {
            let now = OffsetDateTime::now_utc();
            let newest_first = intent.refunds.iter().rev();
            data.extend(newest_first.map(|refund| refund.body(intent, now)));
        }
        let has_more = data.len() > limit(&parameters);
        data.truncate(limit(&parameters));
        Ok(list("/v1/refunds", data, has_more))
    };
    list_objects(&sandbox, &headers, page).await
}

/// One JSON object per line and order, in a snapshot, so that an auditor can read a million orders
/// line by line.
pub(crate) async fn list_balances(State(sandbox): State<Sandbox>) -> Response {
    let (sender, chunks) = mpsc::channel::<anyhow::Result<Bytes>>(2);
    tokio::spawn(async move {
        let rest = sandbox.journal.read({
            let sender = sender.clone();
            move |tables| {
                let mut chunk = Vec::with_capacity(CHUNK);
                tables.balances(|balance| {
                    chunk.extend_from_slice(balance);
                    chunk.push(b'\n');
                    let is_full = chunk.len() >= CHUNK;
                    // Without a receiver the client has hung up.
                    !is_full
                        || sender
                            .blocking_send(Ok(std::mem::take(&mut chunk).into()))
                            .is_ok()
                })?;
                Ok(Bytes::from(chunk))
            }
        });
        // An error ends the response in the middle, which the client notices.
        let _hung_up = sender.send(rest.await).await;
    });
    let content_type = [(header::CONTENT_TYPE, "application/x-ndjson")];
    (content_type, Body::from_stream(ReceiverStream::new(chunks))).into_response()
}

fn limit(parameters: &Parameters) -> usize {
    let limit = parameters.get("limit").and_then(|text| text.parse().ok());
    limit.unwrap_or(10).clamp(1, 100)
}

fn list(url: &str, data: Vec<Value>, has_more: bool) -> Value {
    json!({ "object": "list", "url": url, "data": data, "has_more": has_more })
}

async fn one(
    sandbox: &Sandbox,
    headers: &HeaderMap,
    kind: &str,
    id: &str,
    read: impl FnOnce(&ReadTables) -> anyhow::Result<Option<Value>> + Send + 'static,
) -> Response {
    if let Some(unauthorized) = response::unauthorized(headers) {
        return unauthorized;
    }
    match sandbox.journal.read(read).await {
        Ok(Some(body)) => success(body).into_response(),
        Ok(None) => response::not_found(kind, id),
        Err(error) => response::unreadable(&error),
    }
}

async fn list_objects(
    sandbox: &Sandbox,
    headers: &HeaderMap,
    read: impl FnOnce(&ReadTables) -> anyhow::Result<Value> + Send + 'static,
) -> Response {
    if let Some(injected) = sandbox.faults.of_lists().inject().await {
        return injected.into_response();
    }
    let read = |tables: &ReadTables| read(tables).map(Some);
    one(sandbox, headers, "list", "", read).await
}
