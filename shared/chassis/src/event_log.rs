//! The outbox over gRPC: the events that a service has published about an order. The gateway
//! composes timelines from it.

use contracts::OrderId;
use messaging::{
    Participant,
    outbox::{self, Recorded},
};
use proto::eventlog::v1::{
    ListEventsRequest, ListEventsResponse, RecordedEvent,
    event_log_service_server::{EventLogService, EventLogServiceServer},
};
use sqlx::PgPool;
use tonic::{Request, Response, Status};

use crate::status;

/// Serves the outbox of a participant; the same code for every service that publishes.
pub fn event_log(participant: &Participant) -> EventLogServiceServer<impl EventLogService> {
    EventLogServiceServer::new(EventLogApi {
        pool: participant.pool.clone(),
    })
}

struct EventLogApi {
    pool: PgPool,
}

#[tonic::async_trait]
impl EventLogService for EventLogApi {
    async fn list_events(
        &self,
        request: Request<ListEventsRequest>,
    ) -> Result<Response<ListEventsResponse>, Status> {
        let order_id: OrderId = status::parse_id("order_id", &request.get_ref().order_id)?;
        let recorded = outbox::history(&self.pool, order_id).await;
        let events = recorded.map_err(status::from_error)?.into_iter();
        Ok(Response::new(ListEventsResponse {
            events: events.map(into_proto).collect(),
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
        recorded_at: Some(status::timestamp(recorded.recorded_at)),
        ..RecordedEvent::default()
    }
}
