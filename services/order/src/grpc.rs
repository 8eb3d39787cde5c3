//! Queries and commands over gRPC, and the statuses of their failures.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use bootstrap::RequestContext;
use chassis::status::{self, timestamp};
use contracts::{Cause, CustomerId, IdempotencyKey, Money, OrderId};
use messaging::{Participant, UnitOfWork};
use proto::order::v1::{
    self as wire, CancelOrderRequest, CancelOrderResponse, CreateOrderRequest, CreateOrderResponse,
    GetOrderRequest, GetOrderResponse, ListOrdersRequest, ListOrdersResponse,
    order_service_server::OrderService,
};
use tonic::{Request, Response, Status};

use crate::{
    domain::{
        self, Command, InvalidRequest, InvalidTransition, Order, OrderRequest, PricedOrder, Refund,
    },
    idempotency,
    intake::{self, Intake, IntakeError, Receipt, Submission},
    outgoing,
    prices::Prices,
    store,
};

const PRICES_TIMEOUT: Duration = Duration::from_secs(2);

/// The gRPC API of the order service.
pub struct OrderApi {
    participant: Participant,
    intake: Intake,
    prices: Arc<Prices>,
}

impl OrderApi {
    pub fn new(participant: Participant, intake: Intake, prices: Prices) -> Self {
        Self {
            participant,
            intake,
            prices: Arc::new(prices),
        }
    }

    async fn prices(
        &self,
        request: &OrderRequest,
        context: &RequestContext,
    ) -> Result<Vec<Option<Money>>, Status> {
        let skus: Vec<_> = request.skus().collect();
        let prepare = |request: &mut Request<_>| context.apply(request, PRICES_TIMEOUT);
        self.prices.get(&skus, prepare).await.map_err(|status| {
            tracing::warn!(correlation.id = %context.correlation_id, %status,
                "prices are unavailable; the order is rejected, its client may retry");
            Status::unavailable("prices are unavailable; a retry with the same key is safe")
        })
    }

    /// The order that a request asks for, if it can be accepted now.
    async fn price(
        &self,
        requested: OrderRequest,
        context: &RequestContext,
    ) -> Result<PricedOrder, Status> {
        self.intake.admit()?;
        let prices = self.prices(&requested, context).await?;
        Ok(requested.price(prices, OrderId::new())?)
    }

    async fn cancel(
        &self,
        customer_id: CustomerId,
        id: OrderId,
        cause: &Cause,
    ) -> Result<Order, CancelError> {
        let mut tx = self.participant.pool.begin().await.context("begin")?;
        let locked = store::lock(&mut tx, &[id]).await;
        let mut locked = locked.context("lock the order")?;
        // Another customer's order does not exist for this customer.
        locked.retain(|_, order| order.customer_id == customer_id);
        let mut work = UnitOfWork::new(locked);
        work.execute(id, Command::Cancel, cause)?;
        work.flush(&mut tx).await.context("save the order")?;
        tx.commit().await.context("commit")?;
        self.participant.wake.wake();
        work.take(id)
            .ok_or(CancelError::Rejected(InvalidTransition::UnknownOrder))
    }
}

#[derive(Debug, thiserror::Error)]
enum CancelError {
    #[error(transparent)]
    Rejected(#[from] InvalidTransition),
    #[error(transparent)]
    Failed(#[from] anyhow::Error),
}

#[tonic::async_trait]
impl OrderService for OrderApi {
    async fn create_order(
        &self,
        request: Request<CreateOrderRequest>,
    ) -> Result<Response<CreateOrderResponse>, Status> {
        let context = RequestContext::from_metadata(request.metadata());
        let request = request.into_inner();
        let customer_id: CustomerId = status::parse_id("customer_id", &request.customer_id)?;
        let key = IdempotencyKey::try_from(request.idempotency_key);
        let key = key.map_err(|error| status::invalid("idempotency_key", error))?;
        let lines = request
            .lines
            .into_iter()
            .map(|line| (line.sku, line.quantity));
        let requested = OrderRequest::new(customer_id, lines, request.payment_method)?;
        let key = (customer_id, key);
        let fingerprint = idempotency::fingerprint(&requested);
        let receipt = match self.price(requested, &context).await {
            Ok(order) => {
                let submission = Submission {
                    key,
                    fingerprint,
                    order,
                    cause: context.cause(),
                };
                self.intake.submit(submission).await?
            }
            // A repetition needs neither admission nor prices.
            Err(status) => {
                let replayed = intake::replay(&self.participant, &key, &fingerprint).await;
                replayed.map_err(status::from_error)?.ok_or(status)?
            }
        };
        let (order, replayed) = match receipt {
            Receipt::Accepted(order) => (order, false),
            Receipt::Replayed(order) => (order, true),
            Receipt::KeyReused => {
                let message = "the idempotency key belongs to another request";
                return Err(Status::already_exists(message));
            }
        };
        Ok(Response::new(CreateOrderResponse {
            order: Some(into_wire(&order)),
            replayed,
        }))
    }

    async fn get_order(
        &self,
        request: Request<GetOrderRequest>,
    ) -> Result<Response<GetOrderResponse>, Status> {
        let request = request.get_ref();
        let customer_id = status::parse_id("customer_id", &request.customer_id)?;
        let id = status::parse_id("order_id", &request.order_id)?;
        let found = store::find(&self.participant.pool, customer_id, id).await;
        let order = found.map_err(status::from_error)?.ok_or_else(not_found)?;
        Ok(Response::new(GetOrderResponse {
            order: Some(into_wire(&order)),
        }))
    }

    async fn list_orders(
        &self,
        request: Request<ListOrdersRequest>,
    ) -> Result<Response<ListOrdersResponse>, Status> {
        let request = request.get_ref();
        let customer_id = status::parse_id("customer_id", &request.customer_id)?;
        let before = match request.before.as_str() {
            "" => None,
            text => Some(status::parse_id("before", text)?),
        };
        let size = status::page_size(request.limit);
        let rows = store::list(&self.participant.pool, customer_id, before, size as i64 + 1).await;
        let mut orders = rows.map_err(status::from_error)?;
        let has_next = status::cut_to_page(&mut orders, size);
        let last = orders.last().filter(|_| has_next);
        Ok(Response::new(ListOrdersResponse {
            next_before: last.map(|last| last.id.to_string()).unwrap_or_default(),
            orders: orders.iter().map(into_wire).collect(),
        }))
    }

    async fn cancel_order(
        &self,
        request: Request<CancelOrderRequest>,
    ) -> Result<Response<CancelOrderResponse>, Status> {
        let cause = RequestContext::from_metadata(request.metadata()).cause();
        let request = request.get_ref();
        let customer_id = status::parse_id("customer_id", &request.customer_id)?;
        let id = status::parse_id("order_id", &request.order_id)?;
        let order = self.cancel(customer_id, id, &cause).await?;
        Ok(Response::new(CancelOrderResponse {
            order: Some(into_wire(&order)),
        }))
    }
}

fn not_found() -> Status {
    Status::not_found(InvalidTransition::UnknownOrder.to_string())
}

impl From<InvalidRequest> for Status {
    fn from(error: InvalidRequest) -> Self {
        Self::invalid_argument(error.to_string())
    }
}

impl From<IntakeError> for Status {
    fn from(error: IntakeError) -> Self {
        match error {
            IntakeError::InProgress => Self::aborted(error.to_string()),
            IntakeError::Busy => Self::resource_exhausted(error.to_string()),
            IntakeError::Stopping | IntakeError::Unavailable => {
                Self::unavailable(error.to_string())
            }
            IntakeError::Failed(error) => status::from_error(error),
        }
    }
}

impl From<CancelError> for Status {
    fn from(error: CancelError) -> Self {
        match error {
            CancelError::Rejected(InvalidTransition::UnknownOrder) => not_found(),
            CancelError::Rejected(rejection) => Self::failed_precondition(rejection.to_string()),
            CancelError::Failed(error) => status::from_error(error),
        }
    }
}

fn into_wire(order: &Order) -> wire::Order {
    let (status, reason) = match order.status {
        domain::Status::Pending => (wire::OrderStatus::Pending, None),
        domain::Status::Paid => (wire::OrderStatus::Paid, None),
        domain::Status::Confirmed => (wire::OrderStatus::Confirmed, None),
        domain::Status::Cancelled(reason) => (wire::OrderStatus::Cancelled, Some(reason)),
    };
    let reason = reason.map_or(wire::CancelReason::Unspecified, outgoing::cancel_reason);
    let refund = match order.refund() {
        Refund::None => wire::RefundStatus::None,
        Refund::Pending => wire::RefundStatus::Pending,
        Refund::Done => wire::RefundStatus::Done,
    };
    wire::Order {
        order_id: order.id.to_string(),
        customer_id: order.customer_id.to_string(),
        status: status.into(),
        cancel_reason: reason.into(),
        refund: refund.into(),
        lines: order.lines.iter().cloned().map(Into::into).collect(),
        total: Some(order.total.into()),
        created_at: Some(timestamp(order.created_at)),
        updated_at: Some(timestamp(order.updated_at)),
        deadline: Some(timestamp(order.deadline)),
        version: u32::try_from(order.version).unwrap_or_default(),
    }
}
