//! gRPC over the outbox: what this service has said about an order. The gateway composes timelines
//! from it.

use contracts::OrderId;
use prost_types::Timestamp;
use proto::eventlog::v1::{
    ListEventsRequest, ListEventsResponse, RecordedEvent, event_log_service_server::EventLogService,
};
use sqlx::PgPool;
use tonic::{Request, Response, Status};

use crate::outbox::{self, Recorded};

/// Serves the outbox of one service; the same code for every service that publishes.
#[derive(Clone, Debug)]
pub struct EventLog {
    pool: PgPool,
}

impl EventLog {
    /// Serves the outbox in `pool`.
    pub fn new(pool: PgPool) -> Self {
        Self { pool }
    }
}

#[tonic::async_trait]
impl EventLogService for EventLog {
    async fn list_events(
        &self,
        request: Request<ListEventsRequest>,
    ) -> Result<Response<ListEventsResponse>, Status> {
        let order_id: OrderId = request
            .get_ref()
            .order_id
            .parse()
            .map_err(|error| Status::invalid_argument(format!("order_id: {error}")))?;
        let recorded = outbox::history(&self.pool, order_id)
            .await
            .map_err(|error| {
                tracing::warn!(order.id = %order_id, %error, "could not read the outbox");
                Status::unavailable("the database is away; a retry is safe")
            })?;
        Ok(Response::new(ListEventsResponse {
            events: recorded.into_iter().map(into_proto).collect(),
        }))
    }
}

fn into_proto(recorded: Recorded) -> RecordedEvent {
    RecordedEvent {
        event_id: recorded.event_id.to_string(),
        subject: recorded.subject,
        order_id: recorded.order_id.to_string(),
        causation_id: recorded.cause.causation_id.to_string(),
        correlation_id: recorded.cause.correlation_id.to_string(),
        traceparent: recorded.cause.traceparent.unwrap_or_default(),
        recorded_at: Some(Timestamp::from(std::time::SystemTime::from(
            recorded.recorded_at,
        ))),
        stream_sequence: recorded
            .stream_sequence
            .and_then(|sequence| u64::try_from(sequence).ok())
            .unwrap_or(0),
    }
}
