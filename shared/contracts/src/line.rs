//! Lines of an order, as order, payment and inventory pass them on.

use proto::common::v1 as wire;
use serde::{Deserialize, Serialize};

use crate::{DecodeError, Money, Quantity, Sku, event::parse_money};

/// One line of an order. Its JSON form is what databases keep.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderLine {
    /// The product.
    pub sku: Sku,
    /// Units of it.
    pub quantity: Quantity,
    /// Price of one unit when the order was accepted.
    pub unit_price: Money,
}

impl OrderLine {
    /// Most lines in one order.
    pub const MAX_PER_ORDER: usize = 100;
}

impl From<OrderLine> for wire::OrderLine {
    fn from(line: OrderLine) -> Self {
        Self {
            sku: line.sku.into(),
            quantity: line.quantity.into(),
            unit_price: Some(line.unit_price.into()),
        }
    }
}

impl TryFrom<wire::OrderLine> for OrderLine {
    type Error = DecodeError;

    fn try_from(line: wire::OrderLine) -> Result<Self, DecodeError> {
        let (sku, quantity) = (Sku::try_from(line.sku), Quantity::try_from(line.quantity));
        Ok(Self {
            sku: sku.map_err(|error| DecodeError::invalid("lines.sku", error))?,
            quantity: quantity.map_err(|error| DecodeError::invalid("lines.quantity", error))?,
            unit_price: parse_money("lines.unit_price", line.unit_price)?,
        })
    }
}
