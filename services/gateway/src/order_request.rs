//! The JSON body that creates an order, parsed into types that cannot hold what `/openapi.json`
//! does not allow. The order service checks the rest: which products exist, one line for each.
//!
//! The limits of the document are literals, because the macros take nothing else; a test of the
//! responses compares them with those of the contracts.

use contracts::{OrderLine, PaymentMethod, Quantity, Sku};
use serde::{Deserialize, Deserializer, de::Error as _};
use serde_json::Number;
use utoipa::ToSchema;

use crate::object::Object;

/// An order to create.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewOrder {
    /// One line for each product.
    #[serde(deserialize_with = "lines")]
    #[schema(min_items = 1, max_items = 100)]
    pub items: Vec<NewItem>,
    /// A payment method of the provider. For tests: `tok_visa`, `tok_mastercard`,
    /// `tok_chargeDeclined`, `tok_chargeDeclinedInsufficientFunds`.
    #[schema(value_type = String, min_length = 1, max_length = 255, pattern = "^[ -~]*$",
             example = "tok_visa")]
    pub payment_method: PaymentMethod,
}

/// One line of an order to create.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewItem {
    /// A stock keeping unit.
    #[schema(value_type = String, min_length = 1, max_length = 255, pattern = "^[ -~]*$",
             example = "SKU-0001")]
    pub sku: Sku,
    /// Units of the product.
    #[serde(deserialize_with = "quantity")]
    #[schema(value_type = u32, minimum = 1, maximum = 999, example = 2)]
    pub quantity: Quantity,
}

fn lines<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<NewItem>, D::Error> {
    let lines = Vec::<Object<NewItem>>::deserialize(deserializer)?;
    let max = OrderLine::MAX_PER_ORDER;
    if !(1..=max).contains(&lines.len()) {
        return Err(D::Error::custom(format!("expected 1 to {max} lines")));
    }
    Ok(lines.into_iter().map(|Object(line)| line).collect())
}

/// To JSON and JSON Schema, 2.0 is the integer 2.
fn quantity<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Quantity, D::Error> {
    let units = Number::deserialize(deserializer)?.as_f64();
    units
        .filter(|units| units.fract() == 0.0)
        .and_then(|units| Quantity::try_from(units as u32).ok())
        .ok_or_else(|| {
            let max = Quantity::MAX;
            D::Error::custom(format!("expected a whole number from 1 to {max}"))
        })
}
