//! All services in one, with fixed responses.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use proto::{
    common::v1::{Money, OrderLine},
    eventlog::v1::{
        ListEventsRequest, ListEventsResponse, RecordedEvent,
        event_log_service_server::{EventLogService, EventLogServiceServer},
    },
    inventory::v1::{
        self as inventory, GetPricesRequest, GetPricesResponse, GetProductRequest,
        GetProductResponse, GetReservationRequest, GetReservationResponse, ListProductsRequest,
        ListProductsResponse, ReservationStatus,
        inventory_service_server::{InventoryService, InventoryServiceServer},
    },
    notification::v1::{
        ListNotificationsRequest, ListNotificationsResponse, Notification, NotificationKind,
        notification_service_server::{NotificationService, NotificationServiceServer},
    },
    order::v1::{
        CancelOrderRequest, CancelOrderResponse, CreateOrderRequest, CreateOrderResponse,
        GetOrderRequest, GetOrderResponse, ListOrdersRequest, ListOrdersResponse, Order,
        OrderStatus,
        order_service_server::{OrderService, OrderServiceServer},
    },
    payment::v1::{
        GetPaymentRequest, GetPaymentResponse, Payment, PaymentStatus,
        payment_service_server::{PaymentService, PaymentServiceServer},
    },
};
use tonic::{Code, Request, Response, Status, service::Routes};

use super::ORDER;

#[derive(Clone, Default)]
pub(super) struct Stub {
    /// By method: the status that it fails with.
    failing: HashMap<&'static str, Status>,
    /// The method that never responds.
    hanging: Option<&'static str>,
    replays: bool,
    /// How many event logs are unavailable before all of them can be read.
    unreadable_logs: Arc<AtomicUsize>,
}

impl Stub {
    pub(super) fn with_unreadable_logs(self, times: usize) -> Self {
        self.unreadable_logs.store(times, Ordering::SeqCst);
        self
    }

    pub(super) fn failing(mut self, method: &'static str, code: Code, message: &str) -> Self {
        self.failing.insert(method, Status::new(code, message));
        self
    }

    pub(super) fn hanging(self, method: &'static str) -> Self {
        Self {
            hanging: Some(method),
            ..self
        }
    }

    pub(super) fn replaying(self) -> Self {
        Self {
            replays: true,
            ..self
        }
    }

    pub(super) fn routes(self) -> Routes {
        Routes::new(OrderServiceServer::new(self.clone()))
            .add_service(PaymentServiceServer::new(self.clone()))
            .add_service(InventoryServiceServer::new(self.clone()))
            .add_service(NotificationServiceServer::new(self.clone()))
            .add_service(EventLogServiceServer::new(self))
    }

    async fn respond<T>(&self, method: &'static str, message: T) -> Result<Response<T>, Status> {
        if self.hanging == Some(method) {
            std::future::pending::<()>().await;
        }
        match self.failing.get(method) {
            Some(status) => Err(status.clone()),
            None => Ok(Response::new(message)),
        }
    }
}

fn order() -> Option<Order> {
    let at = Some(prost_types::Timestamp::default());
    Some(Order {
        order_id: ORDER.to_owned(),
        status: OrderStatus::Confirmed.into(),
        lines: vec![OrderLine {
            sku: "SKU-0001".to_owned(),
            quantity: 1,
            unit_price: money(),
        }],
        total: money(),
        created_at: at,
        updated_at: at,
        deadline: at,
        ..Order::default()
    })
}

fn money() -> Option<Money> {
    Some(Money {
        amount: 1999,
        currency: "EUR".to_owned(),
    })
}

fn product() -> inventory::Product {
    inventory::Product {
        sku: "SKU-0001".to_owned(),
        price: money(),
        available: 7,
        ..inventory::Product::default()
    }
}

#[tonic::async_trait]
impl OrderService for Stub {
    async fn create_order(
        &self,
        _: Request<CreateOrderRequest>,
    ) -> Result<Response<CreateOrderResponse>, Status> {
        let response = CreateOrderResponse {
            order: order(),
            replayed: self.replays,
        };
        self.respond("create_order", response).await
    }

    async fn get_order(
        &self,
        _: Request<GetOrderRequest>,
    ) -> Result<Response<GetOrderResponse>, Status> {
        let response = GetOrderResponse { order: order() };
        self.respond("get_order", response).await
    }

    async fn list_orders(
        &self,
        _: Request<ListOrdersRequest>,
    ) -> Result<Response<ListOrdersResponse>, Status> {
        let response = ListOrdersResponse {
            orders: order().into_iter().collect(),
            next_before: ORDER.to_owned(),
        };
        self.respond("list_orders", response).await
    }

    async fn cancel_order(
        &self,
        _: Request<CancelOrderRequest>,
    ) -> Result<Response<CancelOrderResponse>, Status> {
        let response = CancelOrderResponse { order: order() };
        self.respond("cancel_order", response).await
    }
}

#[tonic::async_trait]
impl PaymentService for Stub {
    async fn get_payment(
        &self,
        _: Request<GetPaymentRequest>,
    ) -> Result<Response<GetPaymentResponse>, Status> {
        let payment = Payment {
            status: PaymentStatus::Completed.into(),
            ..Payment::default()
        };
        let response = GetPaymentResponse {
            payment: Some(payment),
        };
        self.respond("get_payment", response).await
    }
}

#[tonic::async_trait]
impl InventoryService for Stub {
    async fn list_products(
        &self,
        request: Request<ListProductsRequest>,
    ) -> Result<Response<ListProductsResponse>, Status> {
        // Two pages of one product.
        let first = request.get_ref().after.is_empty();
        let next_after = if first { "SKU-0001" } else { "" };
        let response = ListProductsResponse {
            products: vec![product()],
            next_after: next_after.to_owned(),
        };
        self.respond("list_products", response).await
    }

    async fn get_product(
        &self,
        _: Request<GetProductRequest>,
    ) -> Result<Response<GetProductResponse>, Status> {
        let response = GetProductResponse {
            product: Some(product()),
        };
        self.respond("get_product", response).await
    }

    async fn get_prices(
        &self,
        _: Request<GetPricesRequest>,
    ) -> Result<Response<GetPricesResponse>, Status> {
        Err(Status::unimplemented("the gateway does not call it"))
    }

    async fn get_reservation(
        &self,
        _: Request<GetReservationRequest>,
    ) -> Result<Response<GetReservationResponse>, Status> {
        let response = GetReservationResponse {
            order_id: ORDER.to_owned(),
            status: ReservationStatus::Reserved.into(),
        };
        self.respond("get_reservation", response).await
    }
}

#[tonic::async_trait]
impl NotificationService for Stub {
    async fn list_notifications(
        &self,
        _: Request<ListNotificationsRequest>,
    ) -> Result<Response<ListNotificationsResponse>, Status> {
        let notification = Notification {
            kind: NotificationKind::OrderConfirmed.into(),
            created_at: Some(prost_types::Timestamp::default()),
            ..Notification::default()
        };
        let response = ListNotificationsResponse {
            notifications: vec![notification],
        };
        self.respond("list_notifications", response).await
    }
}

#[tonic::async_trait]
impl EventLogService for Stub {
    /// The same events in each log, an effect and its cause: this stub is all services.
    async fn list_events(
        &self,
        _: Request<ListEventsRequest>,
    ) -> Result<Response<ListEventsResponse>, Status> {
        let left = |left: usize| left.checked_sub(1);
        let order = (Ordering::SeqCst, Ordering::SeqCst);
        if self
            .unreadable_logs
            .fetch_update(order.0, order.1, left)
            .is_ok()
        {
            return Err(Status::unavailable("not now"));
        }
        let event = |event_id: &str, subject: &str, causation_id: &str, seconds| RecordedEvent {
            event_id: event_id.to_owned(),
            subject: subject.to_owned(),
            causation_id: causation_id.to_owned(),
            recorded_at: Some(prost_types::Timestamp { seconds, nanos: 0 }),
            ..RecordedEvent::default()
        };
        let response = ListEventsResponse {
            events: vec![
                event("cause", "order.created.v1", "command", 1),
                event("effect", "payment.completed.v1", "cause", 3),
            ],
        };
        self.respond("list_events", response).await
    }
}
