//! Queries over gRPC.

use chassis::status;
use proto::payment::v1::{
    self as wire, GetPaymentRequest, GetPaymentResponse, payment_service_server::PaymentService,
};
use sqlx::PgPool;
use tonic::{Request, Response, Status};

use crate::{
    domain::{self, InvalidTransition, Payment},
    store,
};

/// The gRPC API of the payment service.
pub struct PaymentApi {
    pool: PgPool,
}

impl PaymentApi {
    pub fn new(pool: PgPool) -> Self {
        Self { pool }
    }
}

#[tonic::async_trait]
impl PaymentService for PaymentApi {
    async fn get_payment(
        &self,
        request: Request<GetPaymentRequest>,
    ) -> Result<Response<GetPaymentResponse>, Status> {
        let order = status::parse_id("order_id", &request.get_ref().order_id)?;
        let found = store::find(&self.pool, order).await;
        let found = found.map_err(status::from_error)?;
        let missing = || Status::not_found(InvalidTransition::UnknownPayment.to_string());
        Ok(Response::new(GetPaymentResponse {
            payment: Some(into_wire(found.ok_or_else(missing)?)),
        }))
    }
}

fn into_wire(payment: Payment) -> wire::Payment {
    let status = match payment.status {
        domain::Status::Pending => wire::PaymentStatus::Pending,
        domain::Status::Completed => wire::PaymentStatus::Completed,
        domain::Status::Failed => wire::PaymentStatus::Failed,
        domain::Status::Voided => wire::PaymentStatus::Voided,
        domain::Status::Refunding => wire::PaymentStatus::Refunding,
        domain::Status::Refunded => wire::PaymentStatus::Refunded,
    };
    wire::Payment {
        payment_id: payment.identity.payment_id.to_string(),
        order_id: payment.identity.order_id.to_string(),
        status: status.into(),
        amount: payment.charge.map(|charge| charge.amount.into()),
        provider_reference: payment.reference.unwrap_or_default(),
        failure_code: payment.failure_code.unwrap_or_default(),
    }
}
