//! The kinds of notifications.

/// What a customer is notified of: at most once per order and kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    OrderConfirmed,
    OrderCancelled,
    PaymentRefunded,
}

impl Kind {
    pub const ALL: [Self; 3] = [
        Self::OrderConfirmed,
        Self::OrderCancelled,
        Self::PaymentRefunded,
    ];

    /// As the database and the API spell it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::OrderConfirmed => "order_confirmed",
            Self::OrderCancelled => "order_cancelled",
            Self::PaymentRefunded => "payment_refunded",
        }
    }
}
