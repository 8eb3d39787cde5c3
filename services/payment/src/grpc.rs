//! Queries over gRPC.

use contracts::OrderId;
use proto::payment::v1::{
    self as wire, GetPaymentRequest, GetPaymentResponse, payment_service_server::PaymentService,
};
use sqlx::PgPool;
use tonic::{Request, Response, Status as Code};

use crate::{
    domain::{Payment, Status},
    store,
};

/// The gRPC face of the payment service.
pub(crate) struct Grpc {
    pub(crate) pool: PgPool,
}

#[tonic::async_trait]
impl PaymentService for Grpc {
    async fn get_payment(
        &self,
        request: Request<GetPaymentRequest>,
    ) -> Result<Response<GetPaymentResponse>, Code> {
        let text = &request.get_ref().order_id;
        let order: OrderId = text
            .parse()
            .map_err(|_| Code::invalid_argument("order_id: expected a UUID"))?;
        let found = store::find(&self.pool, order).await.map_err(|error| {
            tracing::warn!(order.id = %order, %error, "the database does not answer");
            Code::unavailable("the database is away; a retry is safe")
        })?;
        let payment = found.ok_or_else(|| Code::not_found("there is no payment for this order"))?;
        Ok(Response::new(GetPaymentResponse {
            payment: Some(into_wire(payment)),
        }))
    }
}

fn into_wire(payment: Payment) -> wire::Payment {
    let status = match payment.status {
        Status::Pending => wire::PaymentStatus::Pending,
        Status::Completed => wire::PaymentStatus::Completed,
        Status::Failed => wire::PaymentStatus::Failed,
        Status::Voided => wire::PaymentStatus::Voided,
        Status::Refunding => wire::PaymentStatus::Refunding,
        Status::Refunded => wire::PaymentStatus::Refunded,
    };
    wire::Payment {
        payment_id: payment.id.to_string(),
        order_id: payment.order_id.to_string(),
        status: status.into(),
        amount: payment.charge.map(|charge| charge.amount.into()),
        provider_reference: payment.reference.unwrap_or_default(),
        failure_code: payment.failure_code.unwrap_or_default(),
    }
}
