//! The erasure of a customer's personal data, on the admin listener of a service that has some: one
//! step of `sagacity erase`, which also looks after dead letters and redriven events.
//!
//! `POST /customers/{id}/erase` with [`Body`]. 409 while something could bring the data back; then
//! `obstacles` says what. It may be repeated, and goes on where it was cut short.

use std::collections::BTreeMap;

use anyhow::Context as _;
use axum::{
    Extension, Json, Router,
    extract::{Path, State, rejection::JsonRejection},
    http::StatusCode,
    response::{IntoResponse as _, Response},
    routing::post,
};
use contracts::{CustomerId, IdempotencyKey};
use dead_letters::audit;
use messaging::{Participant, in_time, topology::STREAM_MAX_AGE};
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{
    dead_letters::{refuse, unavailable},
    operators::Operator,
};

const _: () = assert!(IdempotencyKey::RETENTION.as_secs() > STREAM_MAX_AGE.as_secs());

/// A service's part in an erasure.
pub trait Erase: Send + Sync + 'static {
    /// Erases the next rows of a customer behind the row `after`, at most [`Step::ROWS`].
    ///
    /// # Errors
    /// Those of the database.
    fn step(
        tx: &mut PgConnection,
        customer: CustomerId,
        after: Uuid,
    ) -> impl Future<Output = anyhow::Result<Step>> + Send;
}

/// What became of some rows of a customer.
#[derive(Debug, Default)]
pub struct Step {
    /// The last of them; `None` when there was none.
    pub last: Option<Uuid>,
    /// How many of them cannot be erased yet.
    pub waiting: usize,
    /// What was erased, by the name of its table.
    pub erased: Vec<(&'static str, u64)>,
}

impl Step {
    /// Rows in one transaction.
    pub const ROWS: i64 = 500;
    /// Seconds for which a row cannot be erased after its last change. Streams keep the events that
    /// have changed it, and an idempotency key is promised for longer than that.
    pub const AGE: f64 = IdempotencyKey::RETENTION.as_secs() as f64;
}

/// How to erase, and who asks.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    /// Check whether it could be done, and change nothing.
    #[serde(default)]
    dry_run: bool,
    /// Who does it, for the audit.
    by: String,
}

pub(crate) fn routes<E: Erase>(participant: &Participant) -> Router {
    Router::new()
        .route("/customers/{id}/erase", post(erase::<E>))
        .with_state(participant.clone())
}

async fn erase<E: Erase>(
    State(participant): State<Participant>,
    Extension(operator): Extension<Operator>,
    Path(id): Path<String>,
    body: Result<Json<Body>, JsonRejection>,
) -> Response {
    let body = match body {
        Ok(Json(body)) => body,
        Err(error) => return refuse(error.status(), error.body_text()),
    };
    if body.by.is_empty() {
        return refuse(StatusCode::BAD_REQUEST, "by: expected who does it".into());
    }
    let Ok(customer) = id.parse() else {
        let error = "expected the id of a customer, a UUID".to_owned();
        return refuse(StatusCode::BAD_REQUEST, error);
    };
    let erasure = Erasure {
        participant,
        customer,
        hash: hash(customer),
        operator,
    };
    match erasure.perform::<E>(&body).await {
        Ok((status, report)) => (status, Json(report)).into_response(),
        Err(error) => unavailable(&error),
    }
}

struct Erasure {
    participant: Participant,
    customer: CustomerId,
    /// Names the customer in the audit and in logs: it shows that a customer was erased to somebody
    /// who knows the id.
    hash: String,
    operator: Operator,
}

fn hash(customer: CustomerId) -> String {
    let hash = Sha256::digest(customer.to_string());
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What was erased, by table.
type Erased = BTreeMap<&'static str, u64>;

impl Erasure {
    async fn perform<E: Erase>(&self, body: &Body) -> anyhow::Result<(StatusCode, Value)> {
        let mut obstacles = self.obstacles().await?;
        // The check does all of it and rolls it back.
        let (would_erase, waiting) = self.pass::<E>(false).await?;
        obstacles.extend(describe(waiting));
        if !obstacles.is_empty() {
            return Ok(self.refused(&Erased::new(), &obstacles));
        }
        if body.dry_run {
            return Ok(self.done(&would_erase, true));
        }
        self.record(&body.by, "started", json!({})).await?;
        match self.pass::<E>(true).await {
            Ok((erased, 0)) => {
                let recorded = self.record(&body.by, "done", json!({ "erased": erased }));
                audit::done(recorded.await)?;
                tracing::info!(
                    customer.sha256 = self.hash,
                    ?erased,
                    "a customer was erased"
                );
                Ok(self.done(&erased, false))
            }
            // An order was placed or cancelled since the check.
            Ok((erased, waiting)) => {
                let details = json!({ "erased": erased, "waiting": waiting });
                self.record(&body.by, "refused", details).await?;
                let obstacles: Vec<_> = describe(waiting).collect();
                Ok(self.refused(&erased, &obstacles))
            }
            Err(error) => {
                let details = json!({ "error": format!("{error:#}") });
                let recorded = self.record(&body.by, "failed", details).await;
                Err(audit::failed(error, recorded))
            }
        }
    }

    /// Erases in one transaction after the other, or rolls each back. Returns what was erased, and
    /// how many rows cannot be erased yet.
    async fn pass<E: Erase>(&self, commit: bool) -> anyhow::Result<(Erased, usize)> {
        let (mut after, mut erased, mut waiting) = (Uuid::nil(), Erased::new(), 0);
        loop {
            let step = in_time(async {
                let mut tx = self.participant.pool.begin().await.context("begin")?;
                let step = E::step(&mut tx, self.customer, after).await?;
                match commit {
                    true => tx.commit().await.context("commit")?,
                    false => tx.rollback().await.context("roll back")?,
                }
                anyhow::Ok(step)
            });
            let step = step.await?;
            waiting += step.waiting;
            for (table, rows) in step.erased {
                *erased.entry(table).or_default() += rows;
            }
            let Some(last) = step.last else {
                return Ok((erased, waiting));
            };
            after = last;
        }
    }

    /// What the broker has that could bring the data back.
    async fn obstacles(&self) -> anyhow::Result<Vec<String>> {
        let participant = &self.participant;
        let dead_letters = participant.dead_letters();
        let customer = self.customer.to_string();
        let mut letters = dead_letters.containing(&customer).await?;
        let is_redriven = dead_letters.redriven(participant.service).await? > 0;
        // One that was being handled again may have become a dead letter since the first look.
        if letters.is_empty() && !is_redriven {
            letters = dead_letters.containing(&customer).await?;
        }
        let mut obstacles: Vec<_> = letters
            .iter()
            .map(|letter| {
                let sequence = letter.sequence;
                format!("dead letter {sequence} is about the customer: redrive or discard it")
            })
            .collect();
        if is_redriven {
            obstacles.push("events that were redriven are not handled yet: wait".to_owned());
        }
        Ok(obstacles)
    }

    async fn record(&self, by: &str, outcome: &str, details: Value) -> anyhow::Result<()> {
        let mut line = json!({
            "by": by,
            "key": self.operator.key.map(|key| key.to_string()),
            "act": "erase",
            "outcome": outcome,
            "service": self.participant.service.name(),
            "customer_sha256": self.hash,
        });
        if let (Some(line), Value::Object(details)) = (line.as_object_mut(), details) {
            line.extend(details);
        }
        self.participant.dead_letters().audit(line).await
    }

    fn done(&self, erased: &Erased, dry_run: bool) -> (StatusCode, Value) {
        let report = json!({
            "service": self.participant.service.name(),
            "customer_sha256": self.hash,
            "dry_run": dry_run,
            "erased": erased,
        });
        (StatusCode::OK, report)
    }

    fn refused(&self, erased: &Erased, obstacles: &[String]) -> (StatusCode, Value) {
        let report = json!({
            "error": "the customer cannot be erased yet",
            "service": self.participant.service.name(),
            "obstacles": obstacles,
            "erased": erased,
        });
        (StatusCode::CONFLICT, report)
    }
}

fn describe(waiting: usize) -> impl Iterator<Item = String> {
    let hours = IdempotencyKey::RETENTION.as_secs() / 3600;
    let waiting = Some(waiting).filter(|waiting| *waiting > 0);
    waiting.into_iter().map(move |waiting| {
        format!("{waiting} rows are of orders that have not ended, or changed within {hours} hours")
    })
}
