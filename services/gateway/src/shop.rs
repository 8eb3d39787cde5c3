//! The services behind the gateway, and how they are asked.

use std::time::Duration;

use anyhow::Context as _;
use bootstrap::{RequestContext, grpc::channel};
use proto::{
    eventlog::v1::event_log_service_client::EventLogServiceClient,
    inventory::v1::inventory_service_client::InventoryServiceClient,
    notification::v1::notification_service_client::NotificationServiceClient,
    order::v1::order_service_client::OrderServiceClient,
    payment::v1::payment_service_client::PaymentServiceClient,
};
use tonic::{Request, transport::Channel};

use crate::{Config, live::Live};

/// How long a part of a composed answer may take; what is slower is named in `unavailable`.
pub(crate) const PART: Duration = Duration::from_secs(1);
/// How long the answer itself may take.
pub(crate) const WHOLE: Duration = Duration::from_secs(5);

/// Clients of all services; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Shop {
    pub(crate) orders: OrderServiceClient<Channel>,
    pub(crate) payments: PaymentServiceClient<Channel>,
    pub(crate) inventory: InventoryServiceClient<Channel>,
    pub(crate) notifications: NotificationServiceClient<Channel>,
    /// Of each service that publishes, by name.
    pub(crate) logs: [(&'static str, EventLogServiceClient<Channel>); 3],
    pub(crate) live: Live,
}

impl Shop {
    /// Connects when first used.
    pub(crate) fn new(config: &Config, live: Live) -> anyhow::Result<Self> {
        let order = channel(&config.order_url).context("ORDER_URL")?;
        let payment = channel(&config.payment_url).context("PAYMENT_URL")?;
        let inventory = channel(&config.inventory_url).context("INVENTORY_URL")?;
        let notification = channel(&config.notification_url).context("NOTIFICATION_URL")?;
        Ok(Self {
            logs: [
                ("order", EventLogServiceClient::new(order.clone())),
                ("payment", EventLogServiceClient::new(payment.clone())),
                ("inventory", EventLogServiceClient::new(inventory.clone())),
            ],
            orders: OrderServiceClient::new(order),
            payments: PaymentServiceClient::new(payment),
            inventory: InventoryServiceClient::new(inventory),
            notifications: NotificationServiceClient::new(notification),
            live,
        })
    }
}

/// A request to a service that carries on the context of the client's and may take `most`.
pub(crate) fn ask<T>(context: &RequestContext, most: Duration, message: T) -> Request<T> {
    let mut request = Request::new(message);
    context.apply(&mut request, most);
    request
}
