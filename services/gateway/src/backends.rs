//! Clients of the services behind the gateway.

use std::time::Duration;

use anyhow::Context as _;
use bootstrap::{Process, Replicas, RequestContext};
use contracts::Service;
use proto::{
    eventlog::v1::event_log_service_client::EventLogServiceClient,
    inventory::v1::inventory_service_client::InventoryServiceClient,
    notification::v1::notification_service_client::NotificationServiceClient,
    order::v1::order_service_client::OrderServiceClient,
    payment::v1::payment_service_client::PaymentServiceClient,
};
use tonic::Request;

use crate::{Config, live::Live};

/// Time for a whole request. What a request cannot do without gets all of it.
pub const REQUEST_BUDGET: Duration = Duration::from_secs(5);
/// Time for a part of a composed response. A slower part is listed in `unavailable`, so that one
/// slow service does not make the response slow.
pub const PART_TIMEOUT: Duration = Duration::from_secs(1);

/// One client for each service; cheap to clone.
#[derive(Clone, Debug)]
pub struct Backends {
    pub orders: OrderServiceClient<Replicas>,
    pub payments: PaymentServiceClient<Replicas>,
    pub inventory: InventoryServiceClient<Replicas>,
    pub notifications: NotificationServiceClient<Replicas>,
    /// Of the [`publishers`].
    pub event_logs: Vec<(Service, EventLogServiceClient<Replicas>)>,
    pub live: Live,
}

impl Backends {
    /// Connects when they are first used: the gateway starts without the services.
    pub fn connect(config: &Config, process: &Process, live: Live) -> anyhow::Result<Self> {
        let replicas = |urls: &str, service| process.replicas(urls, service);
        let order = replicas(&config.order_url, Service::Order).context("ORDER_URL")?;
        let payment = replicas(&config.payment_url, Service::Payment).context("PAYMENT_URL")?;
        let inventory =
            replicas(&config.inventory_url, Service::Inventory).context("INVENTORY_URL")?;
        let notification = replicas(&config.notification_url, Service::Notification)
            .context("NOTIFICATION_URL")?;
        let replicas_of = |service| match service {
            Service::Order => order.clone(),
            Service::Payment => payment.clone(),
            Service::Inventory => inventory.clone(),
            Service::Notification => notification.clone(),
        };
        Ok(Self::new(replicas_of, live))
    }

    pub fn new(replicas_of: impl Fn(Service) -> Replicas, live: Live) -> Self {
        Self {
            orders: OrderServiceClient::new(replicas_of(Service::Order)),
            payments: PaymentServiceClient::new(replicas_of(Service::Payment)),
            inventory: InventoryServiceClient::new(replicas_of(Service::Inventory)),
            notifications: NotificationServiceClient::new(replicas_of(Service::Notification)),
            event_logs: publishers()
                .map(|service| (service, EventLogServiceClient::new(replicas_of(service))))
                .collect(),
            live,
        }
    }
}

/// The services that publish events, and therefore have an event log.
pub fn publishers() -> impl Iterator<Item = Service> {
    Service::ALL
        .into_iter()
        .filter(|service| service.stream().is_some())
}

/// A gRPC request that carries the correlation id, the trace and the remaining time of `context`,
/// but at most `timeout`.
pub fn request<T>(context: &RequestContext, timeout: Duration, message: T) -> Request<T> {
    let mut request = Request::new(message);
    context.apply(&mut request, timeout);
    request
}
