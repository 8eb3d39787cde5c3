//! The bodies of requests to the provider. That of a charge is stored with the payment before the
//! first call: at the provider, an idempotency key stands for one body, and an upgrade of this
//! service must not change it.

use contracts::{Money, OrderId, PaymentMethod};
use serde::Serialize;

/// The body of `POST /v1/payment_intents`: confirm and capture at once, without asking the
/// customer. By `metadata[order_id]` the charge is found again.
#[derive(Serialize)]
struct ChargeForm<'a> {
    amount: i64,
    currency: String,
    confirm: bool,
    error_on_requires_action: bool,
    #[serde(rename = "payment_method_types[]")]
    payment_method_type: &'static str,
    #[serde(rename = "metadata[order_id]")]
    order_id: String,
    #[serde(flatten)]
    method: MethodForm<'a>,
}

/// A saved payment method is named; a token describes a card that Stripe has not saved.
#[derive(Serialize)]
#[serde(untagged)]
enum MethodForm<'a> {
    Saved {
        payment_method: &'a str,
    },
    Token {
        #[serde(rename = "payment_method_data[type]")]
        kind: &'static str,
        #[serde(rename = "payment_method_data[card][token]")]
        token: &'a str,
    },
}

impl<'a> MethodForm<'a> {
    fn for_method(method: &'a str) -> Self {
        if method.starts_with("pm_") {
            return Self::Saved {
                payment_method: method,
            };
        }
        Self::Token {
            kind: "card",
            token: method,
        }
    }
}

/// The encoded body that charges an order.
///
/// # Errors
/// When it cannot be encoded, which no field of this form can cause.
pub fn charge(
    order: OrderId,
    amount: Money,
    method: &PaymentMethod,
) -> Result<String, serde_urlencoded::ser::Error> {
    serde_urlencoded::to_string(ChargeForm {
        amount: amount.amount(),
        currency: amount.currency().as_str().to_lowercase(),
        confirm: true,
        error_on_requires_action: true,
        payment_method_type: "card",
        order_id: order.to_string(),
        method: MethodForm::for_method(method.as_str()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows of the version before this one have no stored body, and were sent this one.
    #[test]
    fn a_charge_is_encoded_as_by_the_version_that_did_not_store_it() {
        let order: OrderId = "0190b3a4-0000-7000-8000-000000000000".parse().unwrap();
        let amount = Money::new(1999, "EUR".parse().unwrap());
        let with = |method: &str| charge(order, amount, &method.parse().unwrap()).unwrap();
        let common = "amount=1999&currency=eur&confirm=true&error_on_requires_action=true\
                      &payment_method_types%5B%5D=card\
                      &metadata%5Border_id%5D=0190b3a4-0000-7000-8000-000000000000";
        assert_eq!(
            with("tok_visa"),
            format!(
                "{common}&payment_method_data%5Btype%5D=card\
                 &payment_method_data%5Bcard%5D%5Btoken%5D=tok_visa"
            )
        );
        assert_eq!(
            with("pm_card_visa"),
            format!("{common}&payment_method=pm_card_visa")
        );
    }
}
