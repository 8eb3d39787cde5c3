//! Lines of an order, as order, payment and inventory pass them on.

use proto::common::v1 as wire;
use serde::{Deserialize, Serialize};

use crate::{Money, MoneyError};

/// One line of an order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderLine {
    /// Stock keeping unit.
    pub sku: String,
    /// Units, 1 to 999.
    pub quantity: u32,
    /// Price of one unit when the order was accepted.
    pub unit_price: Money,
}

impl From<OrderLine> for wire::OrderLine {
    fn from(line: OrderLine) -> Self {
        Self {
            sku: line.sku,
            quantity: line.quantity,
            unit_price: Some(line.unit_price.into()),
        }
    }
}

impl TryFrom<wire::OrderLine> for OrderLine {
    type Error = MoneyError;

    fn try_from(line: wire::OrderLine) -> Result<Self, MoneyError> {
        Ok(Self {
            sku: line.sku,
            quantity: line.quantity,
            unit_price: line.unit_price.try_into()?,
        })
    }
}
