//! The dead letters of the service, for operators, on its admin listener: what `sagacity dlq` does,
//! without access to the broker. An error is `{ "error": "..." }`.
//!
//! - `GET /dead-letters?id=&reason=&after=&limit=`: a page; `next` is the `after` of the next one.
//! - `GET /dead-letters/{sequence or event id}`: those that it names, with headers and event.
//! - `POST /dead-letters/redrive` and `/dead-letters/discard`: see [`Body`].

use axum::{
    Extension, Json, Router,
    extract::{
        Path, Query, State,
        rejection::{JsonRejection, QueryRejection},
    },
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use dead_letters::{Act, DeadLetters, Filter, FullLetter, Letter, Task};
use messaging::Participant;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::operators::Operator;

/// Dead letters in a page, unless the request has another limit.
const PAGE: usize = 100;
/// Most dead letters in a page, and most that one request redrives or discards.
const MOST: usize = 1000;

/// What to redrive or discard. Some condition is needed, or `all`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    /// Sequences or event ids.
    #[serde(default)]
    id: Vec<String>,
    /// Text that the reason contains.
    reason: Option<String>,
    /// All dead letters of the service.
    #[serde(default)]
    all: bool,
    /// Check whether it could be done, and change nothing.
    #[serde(default)]
    dry_run: bool,
    /// Who does it, for the audit.
    by: String,
}

pub(crate) fn routes(participant: &Participant) -> Router {
    let redrive = async |State(own), operator, body| act(own, operator, Act::Redrive, body).await;
    let discard = async |State(own), operator, body| act(own, operator, Act::Discard, body).await;
    Router::new()
        .route("/dead-letters", get(list))
        .route("/dead-letters/{id}", get(show))
        .route("/dead-letters/redrive", post(redrive))
        .route("/dead-letters/discard", post(discard))
        .with_state(participant.dead_letters())
}

async fn list(
    State(own): State<DeadLetters>,
    query: Result<Query<Vec<(String, String)>>, QueryRejection>,
) -> Response {
    let page = query.map_err(|error| error.body_text());
    let page = match page.and_then(|Query(parameters)| Page::parse(parameters)) {
        Ok(page) => page,
        Err(error) => return refuse(StatusCode::BAD_REQUEST, error),
    };
    // One more shows whether there is a next page.
    let found = own.select(&page.filter, page.after, page.limit + 1).await;
    let mut letters = match found {
        Ok(letters) => letters,
        Err(error) => return unavailable(&error),
    };
    let more = letters.len() > page.limit;
    letters.truncate(page.limit);
    let next = letters.last().filter(|_| more);
    let next = next.map(|letter| letter.sequence);
    Json(json!({ "dead_letters": letters, "next": next })).into_response()
}

struct Page {
    filter: Filter,
    after: u64,
    limit: usize,
}

impl Page {
    fn parse(parameters: Vec<(String, String)>) -> Result<Self, String> {
        let mut page = Self {
            filter: Filter::default(),
            after: 0,
            limit: PAGE,
        };
        for (name, value) in parameters {
            match name.as_str() {
                "id" => page.filter.ids.push(value),
                "reason" => page.filter.reason = Some(value),
                "after" => {
                    let after = value.parse();
                    page.after = after.map_err(|_| "after: expected a sequence".to_owned())?;
                }
                "limit" => {
                    let limit = value.parse().ok();
                    let limit = limit.filter(|limit| (1..=MOST).contains(limit));
                    page.limit = limit.ok_or(format!("limit: expected 1 to {MOST}"))?;
                }
                _ => {
                    return Err(format!(
                        "{name}: expected id, reason, after or limit; a service has only its own \
                         dead letters"
                    ));
                }
            }
        }
        page.filter.check().map_err(|error| error.to_string())?;
        Ok(page)
    }
}

async fn show(State(own): State<DeadLetters>, Path(id): Path<String>) -> Response {
    match own.find(&id).await {
        Ok(found) if found.is_empty() => refuse(
            StatusCode::NOT_FOUND,
            format!("there is no dead letter {id}"),
        ),
        Ok(found) => {
            let found: Vec<Value> = found.iter().map(describe).collect();
            Json(json!({ "dead_letters": found })).into_response()
        }
        Err(error) => unavailable(&error),
    }
}

fn describe(full: &FullLetter) -> Value {
    let headers = full.headers.iter().map(|(name, values)| {
        let values: Vec<&str> = values.iter().map(|value| value.as_str()).collect();
        (name.to_string(), Value::from(values))
    });
    json!({
        "dead_letter": full.letter,
        "headers": headers.collect::<Map<_, _>>(),
        "payload_bytes": full.payload.len(),
        "event": full.event().map(|event| format!("{event:?}")),
    })
}

async fn act(
    own: DeadLetters,
    Extension(operator): Extension<Operator>,
    act: Act,
    body: Result<Json<Body>, JsonRejection>,
) -> Response {
    let body = match body {
        Ok(Json(body)) => body,
        Err(error) => return refuse(error.status(), error.body_text()),
    };
    let task = match body.task(act, operator) {
        Ok(task) => task,
        Err(error) => return refuse(StatusCode::BAD_REQUEST, error),
    };
    let (mut done, mut failed) = (Vec::new(), Vec::new());
    let mut tell = |letter: &Letter, result: anyhow::Result<()>| match result {
        Ok(()) => done.push(letter.clone()),
        Err(error) => failed.push(json!({
            "dead_letter": letter,
            "error": format!("{error:#}"),
        })),
    };
    let summary = match own.perform(&task, MOST, &mut tell).await {
        Ok(summary) => summary,
        Err(error) => return unavailable(&error),
    };
    let status = match (failed.is_empty(), summary.not_found.is_empty()) {
        (true, true) => StatusCode::OK,
        (true, false) => StatusCode::NOT_FOUND,
        (false, _) => StatusCode::INTERNAL_SERVER_ERROR,
    };
    let report = json!({
        "act": act,
        "dry_run": task.dry_run,
        "done": done,
        "failed": failed,
        "not_found": summary.not_found,
        "more": summary.selected == MOST,
    });
    (status, Json(report)).into_response()
}

impl Body {
    fn task(self, act: Act, operator: Operator) -> Result<Task, String> {
        let filter = Filter {
            ids: self.id,
            reason: self.reason,
        };
        filter.check().map_err(|error| error.to_string())?;
        if self.by.is_empty() {
            return Err("by: expected who does it".to_owned());
        }
        if self.all != filter.selects_all() {
            return Err("expected a condition, id or reason, or else all".to_owned());
        }
        Ok(Task {
            act,
            filter,
            dry_run: self.dry_run,
            by: self.by,
            key: operator.key.map(|key| key.to_string()),
        })
    }
}

pub(crate) fn refuse(status: StatusCode, error: String) -> Response {
    (status, Json(json!({ "error": error }))).into_response()
}

pub(crate) fn unavailable(error: &anyhow::Error) -> Response {
    refuse(StatusCode::SERVICE_UNAVAILABLE, format!("{error:#}"))
}
