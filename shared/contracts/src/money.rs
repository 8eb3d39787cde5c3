//! Money in minor units. Sums are checked: an overflow or a mix of currencies is an error, never a
//! wrong number.

use proto::common::v1 as wire;
use serde::{Deserialize, Serialize};

/// An amount in the minor unit of its currency: 19.99 EUR is `{ amount: 1999, currency: "EUR" }`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Money {
    /// Minor units (cents).
    pub amount: i64,
    /// ISO 4217 code.
    pub currency: String,
}

/// Why an amount could not be computed or read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MoneyError {
    /// Two currencies met in one sum.
    #[error("an amount in {found} cannot be added to one in {expected}")]
    CurrencyMix {
        /// The currency of the sum so far.
        expected: String,
        /// The currency that does not fit.
        found: String,
    },
    /// The result does not fit into 64 bits.
    #[error("the amount is too large")]
    Overflow,
    /// Not three capital letters.
    #[error("{0:?} is no ISO 4217 currency code: expected three capital letters")]
    Currency(String),
    /// A message without the amount it must carry.
    #[error("the amount is missing")]
    Missing,
}

impl Money {
    /// An amount in minor units.
    ///
    /// # Errors
    /// [`MoneyError::Currency`] when `currency` is not three capital letters.
    pub fn new(amount: i64, currency: impl Into<String>) -> Result<Self, MoneyError> {
        let currency = currency.into();
        if currency.len() != 3 || !currency.bytes().all(|byte| byte.is_ascii_uppercase()) {
            return Err(MoneyError::Currency(currency));
        }
        Ok(Self { amount, currency })
    }

    /// This amount `quantity` times.
    pub fn times(&self, quantity: u32) -> Result<Self, MoneyError> {
        let amount = self
            .amount
            .checked_mul(i64::from(quantity))
            .ok_or(MoneyError::Overflow)?;
        Ok(Self {
            amount,
            currency: self.currency.clone(),
        })
    }

    /// The sum of two amounts.
    ///
    /// # Errors
    /// [`MoneyError::CurrencyMix`] and [`MoneyError::Overflow`].
    pub fn plus(mut self, other: &Self) -> Result<Self, MoneyError> {
        if self.currency != other.currency {
            return Err(MoneyError::CurrencyMix {
                expected: self.currency,
                found: other.currency.clone(),
            });
        }
        self.amount = self
            .amount
            .checked_add(other.amount)
            .ok_or(MoneyError::Overflow)?;
        Ok(self)
    }
}

impl From<Money> for wire::Money {
    fn from(money: Money) -> Self {
        Self {
            amount: money.amount,
            currency: money.currency,
        }
    }
}

impl TryFrom<wire::Money> for Money {
    type Error = MoneyError;

    fn try_from(money: wire::Money) -> Result<Self, MoneyError> {
        Self::new(money.amount, money.currency)
    }
}

impl TryFrom<Option<wire::Money>> for Money {
    type Error = MoneyError;

    fn try_from(money: Option<wire::Money>) -> Result<Self, MoneyError> {
        money.ok_or(MoneyError::Missing)?.try_into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn eur(amount: i64) -> Money {
        Money::new(amount, "EUR").unwrap()
    }

    #[test]
    fn sums_are_exact_and_checked() {
        assert_eq!(
            eur(1999).times(3).and_then(|three| three.plus(&eur(1))),
            Ok(eur(5998))
        );
        assert_eq!(eur(i64::MAX).plus(&eur(1)), Err(MoneyError::Overflow));
        assert_eq!(eur(i64::MAX).times(2), Err(MoneyError::Overflow));
    }

    #[test]
    fn currencies_do_not_mix() {
        let usd = Money::new(1, "USD").unwrap();
        assert!(matches!(
            eur(1).plus(&usd),
            Err(MoneyError::CurrencyMix { .. })
        ));
    }

    #[test]
    fn a_currency_is_three_capital_letters() {
        for wrong in ["", "eur", "EURO", "E1R"] {
            assert_eq!(
                Money::new(1, wrong),
                Err(MoneyError::Currency(wrong.into()))
            );
        }
    }
}
