//! What a customer may order. A value of [`OrderRequest`] obeys every rule that needs no other
//! service; [`OrderRequest::price`] adds what inventory knows.

use std::collections::HashSet;

use contracts::{
    CustomerId, InvalidValue, Money, MoneyError, OrderId, OrderLine, PaymentMethod, Quantity, Sku,
};
use time::OffsetDateTime;

use super::NewOrder;

const MAX_LINES: usize = OrderLine::MAX_PER_ORDER;

/// A valid request for an order.
#[derive(Debug)]
pub struct OrderRequest {
    customer_id: CustomerId,
    lines: Vec<(Sku, Quantity)>,
    payment_method: PaymentMethod,
}

/// A request that breaks a rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct InvalidRequest {
    /// The part of the request, in the words of the HTTP API: `items[0].quantity`.
    field: String,
    reason: String,
}

fn invalid(field: impl Into<String>, reason: impl ToString) -> InvalidRequest {
    InvalidRequest {
        field: field.into(),
        reason: reason.to_string(),
    }
}

/// A request with its prices. It becomes an order when it is accepted: then its deadline begins.
#[derive(Clone, Debug)]
pub struct PricedOrder {
    pub id: OrderId,
    customer_id: CustomerId,
    lines: Vec<OrderLine>,
    total: Money,
    payment_method: PaymentMethod,
}

impl PricedOrder {
    pub fn accept(self, deadline: OffsetDateTime) -> NewOrder {
        NewOrder {
            id: self.id,
            customer_id: self.customer_id,
            lines: self.lines,
            total: self.total,
            payment_method: self.payment_method,
            deadline,
        }
    }
}

impl OrderRequest {
    /// Checks a request: 1 to 100 lines, each with another product.
    pub fn new(
        customer_id: CustomerId,
        lines: impl ExactSizeIterator<Item = (String, u32)>,
        payment_method: String,
    ) -> Result<Self, InvalidRequest> {
        let payment_method = PaymentMethod::try_from(payment_method);
        let payment_method = payment_method.map_err(|error| invalid("payment_method", error))?;
        if !(1..=MAX_LINES).contains(&lines.len()) {
            return Err(invalid("items", format!("expected 1 to {MAX_LINES} lines")));
        }
        let mut seen = HashSet::with_capacity(lines.len());
        let mut valid = Vec::with_capacity(lines.len());
        for (nth, (sku, quantity)) in lines.enumerate() {
            let wrong = |name, error: InvalidValue| invalid(format!("items[{nth}].{name}"), error);
            let quantity =
                Quantity::try_from(quantity).map_err(|error| wrong("quantity", error))?;
            let sku = Sku::try_from(sku).map_err(|error| wrong("sku", error))?;
            if !seen.insert(sku.clone()) {
                let reason = format!("{sku} has a line already; change its quantity instead");
                return Err(invalid(format!("items[{nth}].sku"), reason));
            }
            valid.push((sku, quantity));
        }
        Ok(Self {
            customer_id,
            lines: valid,
            payment_method,
        })
    }

    /// The products of the request, in the order of its lines.
    pub fn skus(&self) -> impl Iterator<Item = &Sku> {
        self.lines.iter().map(|(sku, _)| sku)
    }

    /// What is requested, and how it is paid.
    pub fn parts(&self) -> (&[(Sku, Quantity)], &PaymentMethod) {
        (&self.lines, &self.payment_method)
    }

    /// Adds the unit price of each line, in the same order; `None` for a product that does not
    /// exist.
    pub fn price(
        self,
        prices: Vec<Option<Money>>,
        id: OrderId,
    ) -> Result<PricedOrder, InvalidRequest> {
        let mut lines = Vec::with_capacity(self.lines.len());
        for (nth, ((sku, quantity), price)) in self.lines.into_iter().zip(prices).enumerate() {
            let Some(unit_price) = price else {
                let reason = format!("there is no product {sku}");
                return Err(invalid(format!("items[{nth}].sku"), reason));
            };
            lines.push(OrderLine {
                sku,
                quantity,
                unit_price,
            });
        }
        Ok(PricedOrder {
            id,
            customer_id: self.customer_id,
            total: total(&lines).map_err(|error| invalid("items", error))?,
            lines,
            payment_method: self.payment_method,
        })
    }
}

fn total(lines: &[OrderLine]) -> Result<Money, MoneyError> {
    let mut sums = lines
        .iter()
        .map(|line| line.unit_price.times(line.quantity.get()));
    // A request has at least one line.
    let first = sums.next().unwrap_or(Err(MoneyError::Overflow))?;
    sums.try_fold(first, |sum, line| sum.plus(line?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(lines: &[(&str, u32)]) -> Result<OrderRequest, InvalidRequest> {
        let lines: Vec<_> = lines
            .iter()
            .map(|(sku, n)| ((*sku).to_owned(), *n))
            .collect();
        OrderRequest::new(CustomerId::new(), lines.into_iter(), "tok_visa".to_owned())
    }

    fn price(amount: i64, currency: &str) -> Option<Money> {
        Some(Money::new(amount, currency.parse().unwrap()))
    }

    #[test]
    fn a_request_that_breaks_a_rule_names_the_field() {
        let many: Vec<String> = (0..=MAX_LINES).map(|nth| format!("SKU-{nth}")).collect();
        let many: Vec<(&str, u32)> = many.iter().map(|sku| (sku.as_str(), 1)).collect();
        for (lines, expected) in [
            (&[][..], "items: expected 1 to 100 lines"),
            (&many, "items: expected 1 to 100 lines"),
            (&[("a", 0)], "items[0].quantity: expected 1 to 999"),
            (
                &[("a", 1), ("b", 1000)],
                "items[1].quantity: expected 1 to 999",
            ),
            (
                &[("a\0", 1)],
                "items[0].sku: expected 1 to 255 printable ASCII characters",
            ),
            (
                &[("a", 1), ("a", 2)],
                "items[1].sku: a has a line already; change its quantity instead",
            ),
        ] {
            assert_eq!(request(lines).unwrap_err().to_string(), expected);
        }
        let no_method = OrderRequest::new(CustomerId::new(), [].into_iter(), String::new());
        let error = no_method.unwrap_err().to_string();
        assert!(
            error.starts_with("payment_method: expected 1 to 255"),
            "{error}"
        );
    }

    #[test]
    fn prices_add_up_and_an_unknown_product_is_named() {
        let priced = |prices| {
            let request = request(&[("a", 2), ("b", 3)]).unwrap();
            request.price(prices, OrderId::new())
        };
        let order = priced(vec![price(100, "EUR"), price(10, "EUR")]).unwrap();
        assert_eq!(Some(order.total), price(230, "EUR"));
        for (prices, expected) in [
            (
                vec![price(1, "EUR"), None],
                "items[1].sku: there is no product b",
            ),
            (
                vec![price(i64::MAX, "EUR"), price(1, "EUR")],
                "items: the amount is too large",
            ),
            (
                vec![price(1, "EUR"), price(1, "USD")],
                "items: an amount in USD cannot be added to one in EUR",
            ),
        ] {
            assert_eq!(priced(prices).unwrap_err().to_string(), expected);
        }
    }
}
