//! Queries over gRPC.

use chassis::status;
use contracts::OrderId;
use proto::notification::v1::{
    self as wire, ListNotificationsRequest, ListNotificationsResponse, NotificationKind,
    notification_service_server::NotificationService,
};
use sqlx::PgPool;
use tonic::{Request, Response, Status};

use crate::{
    kind::Kind,
    store::{self, Notification},
};

/// The gRPC API of the notification service.
pub struct NotificationApi {
    pool: PgPool,
}

impl NotificationApi {
    pub fn new(pool: PgPool) -> Self {
        Self { pool }
    }
}

#[tonic::async_trait]
impl NotificationService for NotificationApi {
    async fn list_notifications(
        &self,
        request: Request<ListNotificationsRequest>,
    ) -> Result<Response<ListNotificationsResponse>, Status> {
        let order = status::parse_id("order_id", &request.get_ref().order_id)?;
        let found = store::list(&self.pool, order).await;
        let notifications = found.map_err(status::from_error)?.into_iter();
        let notifications = notifications.map(|notification| into_wire(order, &notification));
        Ok(Response::new(ListNotificationsResponse {
            notifications: notifications.collect(),
        }))
    }
}

fn into_wire(order: OrderId, notification: &Notification) -> wire::Notification {
    let kind = match notification.kind {
        Kind::OrderConfirmed => NotificationKind::OrderConfirmed,
        Kind::OrderCancelled => NotificationKind::OrderCancelled,
        Kind::PaymentRefunded => NotificationKind::PaymentRefunded,
    };
    wire::Notification {
        notification_id: notification.notification_id.to_string(),
        order_id: order.to_string(),
        kind: kind.into(),
        created_at: Some(status::timestamp(notification.created_at)),
    }
}
