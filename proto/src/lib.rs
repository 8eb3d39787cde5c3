//! The contracts between the services: gRPC and events, generated from the `.proto` files beside
//! this crate.
//!
//! Nothing is written by hand here; read the `.proto` files, every message and field is commented
//! there. The crate `contracts` gives events their subjects and typed ids.
#![expect(
    missing_docs,
    reason = "generated clients and servers have undocumented constructors"
)]
#![expect(clippy::all, clippy::allow_attributes, reason = "generated code")]

/// Types that several services share.
pub mod common {
    pub mod v1 {
        tonic::include_proto!("sagacity.common.v1");
    }
}

/// The order service and its events.
pub mod order {
    pub mod v1 {
        tonic::include_proto!("sagacity.order.v1");
    }
}

/// The payment service and its events.
pub mod payment {
    pub mod v1 {
        tonic::include_proto!("sagacity.payment.v1");
    }
}

/// The inventory service and its events.
pub mod inventory {
    pub mod v1 {
        tonic::include_proto!("sagacity.inventory.v1");
    }
}

/// The notification service.
pub mod notification {
    pub mod v1 {
        tonic::include_proto!("sagacity.notification.v1");
    }
}

/// The events that a service has published about an order.
pub mod eventlog {
    pub mod v1 {
        tonic::include_proto!("sagacity.eventlog.v1");
    }
}
