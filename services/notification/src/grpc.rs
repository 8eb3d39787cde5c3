//! Queries over gRPC.

use std::time::SystemTime;

use contracts::OrderId;
use prost_types::Timestamp;
use proto::notification::v1::{
    self as wire, ListNotificationsRequest, ListNotificationsResponse, NotificationKind,
    notification_service_server::NotificationService,
};
use sqlx::PgPool;
use tonic::{Request, Response, Status};

use crate::store::{self, Kind};

/// The gRPC face of the notification service.
pub(crate) struct Grpc {
    pub(crate) pool: PgPool,
}

#[tonic::async_trait]
impl NotificationService for Grpc {
    async fn list_notifications(
        &self,
        request: Request<ListNotificationsRequest>,
    ) -> Result<Response<ListNotificationsResponse>, Status> {
        let text = &request.get_ref().order_id;
        let order: OrderId = text
            .parse()
            .map_err(|_| Status::invalid_argument("order_id: expected a UUID"))?;
        let told = store::about(&self.pool, order).await.map_err(|error| {
            tracing::warn!(order.id = %order, %error, "the database does not answer");
            Status::unavailable("the database is away; a retry is safe")
        })?;
        let notifications = told
            .into_iter()
            .map(|notification| into_wire(order, &notification))
            .collect();
        Ok(Response::new(ListNotificationsResponse { notifications }))
    }
}

fn into_wire(order: OrderId, notification: &store::Notification) -> wire::Notification {
    let kind = match notification.kind {
        Kind::OrderConfirmed => NotificationKind::OrderConfirmed,
        Kind::OrderCancelled => NotificationKind::OrderCancelled,
        Kind::PaymentRefunded => NotificationKind::PaymentRefunded,
    };
    wire::Notification {
        notification_id: notification.notification_id.to_string(),
        order_id: order.to_string(),
        kind: kind.into(),
        created_at: Some(Timestamp::from(SystemTime::from(notification.created_at))),
    }
}
