//! Queries and commands over gRPC, and what their failures are called there.

use std::{collections::HashSet, fmt::Display, sync::Arc, time::Duration};

use anyhow::Context as _;
use bootstrap::RequestContext;
use contracts::{CustomerId, Money, OrderId, OrderLine};
use messaging::{
    Node,
    outbox::{self, Cause},
};
use proto::order::v1::{
    self as wire, CancelOrderRequest, CancelOrderResponse, CreateOrderRequest, CreateOrderResponse,
    GetOrderRequest, GetOrderResponse, ListOrdersRequest, ListOrdersResponse, RequestedLine,
    order_service_server::OrderService,
};
use tonic::{Request, Response, Status};

use crate::{
    decisions::{Decisions, Undecided},
    domain::{self, Command, Created, Order, Refund},
    intake::{self, Answer, Intake, Refused},
    log,
    prices::Prices,
    store,
};

const MAX_LINES: usize = 100;
const MAX_QUANTITY: u32 = 999;
/// In bytes. PostgreSQL's text holds any character but NUL.
const MAX_TEXT: usize = 255;
const PRICES_DEADLINE: Duration = Duration::from_secs(2);

/// The gRPC face of the order service.
pub(crate) struct Grpc {
    pub(crate) node: Node,
    pub(crate) intake: Intake,
    pub(crate) prices: Arc<Prices>,
    pub(crate) deadline: Duration,
}

#[tonic::async_trait]
impl OrderService for Grpc {
    async fn create_order(
        &self,
        request: Request<CreateOrderRequest>,
    ) -> Result<Response<CreateOrderResponse>, Status> {
        let context = RequestContext::from_metadata(request.metadata());
        let request = request.into_inner();
        let customer_id: CustomerId = id("customer_id", &request.customer_id)?;
        check_text("idempotency_key", &request.idempotency_key)?;
        check_text("payment_method", &request.payment_method)?;
        let lines = self.priced(request.lines, &context).await?;
        let order = Created {
            id: OrderId::new(),
            customer_id,
            total: total(&lines)?,
            lines,
            payment_method: request.payment_method,
            deadline: outbox::now() + self.deadline,
        };
        let key = (customer_id, request.idempotency_key);
        let answer = self
            .intake
            .accept(intake::Request {
                key,
                order,
                cause: cause(&context),
            })
            .await;
        let (order, replayed) = match answer.map_err(|refused| refused_status(&refused))? {
            Answer::Accepted(order) => (order, false),
            Answer::Replayed(order) => (order, true),
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
        let (customer, order) = (
            id("customer_id", &request.customer_id)?,
            id("order_id", &request.order_id)?,
        );
        let found = store::find(&self.node.pool, customer, order)
            .await
            .map_err(|error| unavailable(&error.into()))?;
        let order = found.ok_or_else(not_found)?;
        Ok(Response::new(GetOrderResponse {
            order: Some(into_wire(&order)),
        }))
    }

    async fn list_orders(
        &self,
        request: Request<ListOrdersRequest>,
    ) -> Result<Response<ListOrdersResponse>, Status> {
        let request = request.get_ref();
        let customer = id("customer_id", &request.customer_id)?;
        let before = match request.before.as_str() {
            "" => None,
            text => Some(id("before", text)?),
        };
        let limit = request.limit.clamp(1, 100) as usize;
        // One more than asked for tells whether there is a next page.
        let mut orders = store::list(&self.node.pool, customer, before, limit as i64 + 1)
            .await
            .map_err(|error| unavailable(&error.into()))?;
        let more = orders.len() > limit;
        orders.truncate(limit);
        let next_before = orders
            .last()
            .filter(|_| more)
            .map(|last| last.id.to_string())
            .unwrap_or_default();
        Ok(Response::new(ListOrdersResponse {
            orders: orders.iter().map(into_wire).collect(),
            next_before,
        }))
    }

    async fn cancel_order(
        &self,
        request: Request<CancelOrderRequest>,
    ) -> Result<Response<CancelOrderResponse>, Status> {
        let cause = cause(&RequestContext::from_metadata(request.metadata()));
        let request = request.get_ref();
        let (customer, order_id) = (
            id("customer_id", &request.customer_id)?,
            id("order_id", &request.order_id)?,
        );
        let order = self
            .cancel(customer, order_id, &cause)
            .await
            .map_err(|error| unavailable(&error))??;
        Ok(Response::new(CancelOrderResponse {
            order: Some(into_wire(&order)),
        }))
    }
}

impl Grpc {
    /// Checks lines and puts prices on them.
    async fn priced(
        &self,
        lines: Vec<RequestedLine>,
        context: &RequestContext,
    ) -> Result<Vec<OrderLine>, Status> {
        check_lines(&lines)?;
        let skus: Vec<&str> = lines.iter().map(|line| line.sku.as_str()).collect();
        let prices =
            self.prices.of(&skus, |request| context.apply(request, PRICES_DEADLINE)).await.map_err(|status| {
                tracing::warn!(correlation.id = %context.correlation_id, %status, "inventory does not answer");
                Status::unavailable("prices cannot be had now; a retry with the same key is safe")
            })?;
        let priced = lines
            .into_iter()
            .zip(prices)
            .enumerate()
            .map(|(nth, (line, price))| match price {
                Some(unit_price) => Ok(OrderLine {
                    sku: line.sku,
                    quantity: line.quantity,
                    unit_price,
                }),
                None => Err(Status::invalid_argument(format!(
                    "items[{nth}].sku: there is no product {:?}",
                    line.sku
                ))),
            });
        priced.collect()
    }

    async fn cancel(
        &self,
        customer: CustomerId,
        id: OrderId,
        cause: &Cause,
    ) -> anyhow::Result<Result<Order, Status>> {
        let mut tx = self.node.pool.begin().await.context("begin")?;
        let mut locked = store::lock(&mut tx, &[id])
            .await
            .context("lock the order")?;
        locked.retain(|order| order.customer_id == customer);
        let mut decisions = Decisions::on(locked);
        match decisions.tell(id, Command::Cancel, cause) {
            Ok(_) => {}
            Err(Undecided::NoSuchOrder(_)) => return Ok(Err(not_found())),
            Err(Undecided::Refused(refusal)) => {
                return Ok(Err(Status::failed_precondition(refusal.to_string())));
            }
        }
        decisions.save(&mut tx).await.context("save the order")?;
        tx.commit().await.context("commit")?;
        self.node.wake.wake();
        Ok(decisions.order(id).cloned().ok_or_else(not_found))
    }
}

/// `field` is written only when it is to blame.
fn check_text(field: impl Display, text: &str) -> Result<(), Status> {
    if (1..=MAX_TEXT).contains(&text.len()) && !text.contains(char::is_control) {
        return Ok(());
    }
    Err(Status::invalid_argument(format!(
        "{field}: expected 1 to {MAX_TEXT} characters, no control characters"
    )))
}

fn check_lines(lines: &[RequestedLine]) -> Result<(), Status> {
    if lines.is_empty() || lines.len() > MAX_LINES {
        return Err(Status::invalid_argument(format!(
            "items: expected 1 to {MAX_LINES} lines"
        )));
    }
    let mut seen = HashSet::new();
    for (nth, line) in lines.iter().enumerate() {
        if !(1..=MAX_QUANTITY).contains(&line.quantity) {
            return Err(Status::invalid_argument(format!(
                "items[{nth}].quantity: expected 1 to {MAX_QUANTITY}"
            )));
        }
        check_text(format_args!("items[{nth}].sku"), &line.sku)?;
        if !seen.insert(&line.sku) {
            return Err(Status::invalid_argument(format!(
                "items[{nth}].sku: {:?} has a line already",
                line.sku
            )));
        }
    }
    Ok(())
}

fn total(lines: &[OrderLine]) -> Result<Money, Status> {
    let wrong = |error: contracts::MoneyError| Status::invalid_argument(format!("items: {error}"));
    let mut sums = lines
        .iter()
        .map(|line| line.unit_price.times(line.quantity));
    let first = sums
        .next()
        .ok_or_else(|| Status::invalid_argument("items: expected 1 to 100 lines"))?;
    sums.try_fold(first.map_err(wrong)?, |sum, line| sum.plus(&line?))
        .map_err(wrong)
}

fn cause(context: &RequestContext) -> Cause {
    Cause {
        correlation_id: context.correlation_id,
        causation_id: context.command_id,
        traceparent: Some(context.traceparent.clone()),
    }
}

fn id<T: std::str::FromStr>(field: &str, text: &str) -> Result<T, Status> {
    text.parse()
        .map_err(|_| Status::invalid_argument(format!("{field}: expected a UUID")))
}

fn not_found() -> Status {
    Status::not_found("there is no such order")
}

fn refused_status(refused: &Refused) -> Status {
    match refused {
        Refused::KeyReused => Status::already_exists(refused.to_string()),
        Refused::InFlight => Status::aborted(refused.to_string()),
        Refused::Busy => Status::resource_exhausted(refused.to_string()),
        Refused::Unavailable => Status::unavailable(refused.to_string()),
    }
}

fn unavailable(error: &anyhow::Error) -> Status {
    tracing::warn!(error = format!("{error:#}"), "the database does not answer");
    Status::unavailable("the database is away; a retry is safe")
}

fn into_wire(order: &Order) -> wire::Order {
    let (status, reason) = match order.status {
        domain::Status::Pending => (wire::OrderStatus::Pending, wire::CancelReason::Unspecified),
        domain::Status::Paid => (wire::OrderStatus::Paid, wire::CancelReason::Unspecified),
        domain::Status::Confirmed => (
            wire::OrderStatus::Confirmed,
            wire::CancelReason::Unspecified,
        ),
        domain::Status::Cancelled(reason) => {
            (wire::OrderStatus::Cancelled, log::cancel_reason(reason))
        }
    };
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
        total: Some(order.total.clone().into()),
        created_at: Some(log::timestamp(order.created_at)),
        updated_at: Some(log::timestamp(order.updated_at)),
        deadline: Some(log::timestamp(order.deadline)),
        version: u32::try_from(order.version).unwrap_or_default(),
    }
}
