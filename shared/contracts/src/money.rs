//! Money in minor units. Sums are checked: an overflow or a mix of currencies is an error, never a
//! wrong number.

use std::{fmt, str::FromStr};

use proto::common::v1 as wire;
use serde::{Deserialize, Serialize};

use crate::InvalidValue;

/// An ISO 4217 code: three capital letters.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Currency([u8; 3]);

impl Currency {
    /// The code, for example `EUR`.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_else(|_| unreachable!("capital letters are UTF-8"))
    }
}

impl FromStr for Currency {
    type Err = InvalidValue;

    fn from_str(code: &str) -> Result<Self, InvalidValue> {
        match code.as_bytes() {
            [a, b, c] if code.bytes().all(|byte| byte.is_ascii_uppercase()) => {
                Ok(Self([*a, *b, *c]))
            }
            _ => Err(InvalidValue::expected(
                "an ISO 4217 currency code, three capital letters",
            )),
        }
    }
}

impl TryFrom<String> for Currency {
    type Error = InvalidValue;

    fn try_from(code: String) -> Result<Self, InvalidValue> {
        code.parse()
    }
}

impl From<Currency> for String {
    fn from(currency: Currency) -> Self {
        currency.as_str().to_owned()
    }
}

impl fmt::Display for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An amount in the minor unit of its currency: 19.99 EUR is 1999.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Money {
    amount: i64,
    currency: Currency,
}

/// Why an amount cannot be computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MoneyError {
    /// The sum has another currency than the amount to add.
    #[error("an amount in {found} cannot be added to one in {expected}")]
    CurrencyMix {
        /// The currency of the sum so far.
        expected: Currency,
        /// The currency of the amount to add.
        found: Currency,
    },
    /// The result does not fit into 64 bits.
    #[error("the amount is too large")]
    Overflow,
}

impl Money {
    /// An amount in minor units (cents).
    pub const fn new(amount: i64, currency: Currency) -> Self {
        Self { amount, currency }
    }

    /// The amount in minor units (cents).
    pub const fn amount(self) -> i64 {
        self.amount
    }

    /// The currency.
    pub const fn currency(self) -> Currency {
        self.currency
    }

    /// This amount `quantity` times.
    ///
    /// # Errors
    /// [`MoneyError::Overflow`].
    pub fn times(self, quantity: u32) -> Result<Self, MoneyError> {
        let amount = self.amount.checked_mul(i64::from(quantity));
        Ok(Self {
            amount: amount.ok_or(MoneyError::Overflow)?,
            ..self
        })
    }

    /// The sum of two amounts.
    ///
    /// # Errors
    /// [`MoneyError::CurrencyMix`] and [`MoneyError::Overflow`].
    pub fn plus(self, other: Self) -> Result<Self, MoneyError> {
        if self.currency != other.currency {
            return Err(MoneyError::CurrencyMix {
                expected: self.currency,
                found: other.currency,
            });
        }
        let amount = self.amount.checked_add(other.amount);
        Ok(Self {
            amount: amount.ok_or(MoneyError::Overflow)?,
            ..self
        })
    }
}

impl From<Money> for wire::Money {
    fn from(money: Money) -> Self {
        Self {
            amount: money.amount,
            currency: money.currency.into(),
        }
    }
}

impl TryFrom<wire::Money> for Money {
    type Error = InvalidValue;

    fn try_from(money: wire::Money) -> Result<Self, InvalidValue> {
        Ok(Self::new(money.amount, money.currency.parse()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn eur(amount: i64) -> Money {
        Money::new(amount, "EUR".parse().unwrap())
    }

    #[test]
    fn sums_are_exact_and_checked() {
        let three = eur(1999).times(3).unwrap();
        assert_eq!(three.plus(eur(1)), Ok(eur(5998)));
        assert_eq!(eur(i64::MAX).plus(eur(1)), Err(MoneyError::Overflow));
        assert_eq!(eur(i64::MAX).times(2), Err(MoneyError::Overflow));
    }

    #[test]
    fn currencies_do_not_mix() {
        let usd = Money::new(1, "USD".parse().unwrap());
        let error = eur(1).plus(usd).unwrap_err();
        assert_eq!(
            error.to_string(),
            "an amount in USD cannot be added to one in EUR"
        );
    }

    #[test]
    fn a_currency_is_three_capital_letters() {
        for wrong in ["", "eur", "EURO", "E1R"] {
            let error = wrong.parse::<Currency>().unwrap_err();
            assert_eq!(
                error.to_string(),
                "expected an ISO 4217 currency code, three capital letters"
            );
        }
    }
}
