//! Values with rules: a value of one of these types has been checked, and each limit stands once.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

/// A value that breaks a rule of its type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected}")]
pub struct InvalidValue {
    expected: String,
}

impl InvalidValue {
    pub(crate) fn expected(expected: impl Into<String>) -> Self {
        Self {
            expected: expected.into(),
        }
    }
}

/// Most characters of a text that a client chooses.
pub const MAX_TEXT: usize = 255;

macro_rules! short_text {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        ///
        /// 1 to 255 printable ASCII characters: bytes and characters are the same number
        /// everywhere, and PostgreSQL's `text` can hold all of them.
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidValue;

            fn try_from(text: String) -> Result<Self, InvalidValue> {
                check_text(&text).map(|()| Self(text))
            }
        }

        impl FromStr for $name {
            type Err = InvalidValue;

            fn from_str(text: &str) -> Result<Self, InvalidValue> {
                text.to_owned().try_into()
            }
        }

        impl From<$name> for String {
            fn from(text: $name) -> Self {
                text.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

short_text!(
    /// A stock keeping unit: names one product.
    Sku
);
short_text!(
    /// The provider's name for a card or account, for example `tok_visa`.
    PaymentMethod
);
short_text!(
    /// The key under which a client may repeat a request (IETF
    /// draft-ietf-httpapi-idempotency-key-header).
    IdempotencyKey
);

impl PaymentMethod {
    /// What is stored in place of a method that was forgotten: nothing is asked of the provider for
    /// its charge any more. Versions that do not know it can read it.
    pub const FORGOTTEN: &str = "forgotten";
}

impl IdempotencyKey {
    /// How long a key is remembered. The documentation of the HTTP API publishes it.
    pub const RETENTION: Duration = Duration::from_secs(72 * 3600);
}

fn check_text(text: &str) -> Result<(), InvalidValue> {
    let is_printable = |byte| matches!(byte, b' '..=b'~');
    if (1..=MAX_TEXT).contains(&text.len()) && text.bytes().all(is_printable) {
        return Ok(());
    }
    Err(InvalidValue::expected(format!(
        "1 to {MAX_TEXT} printable ASCII characters"
    )))
}

/// Units of one product in an order, 1 to 999.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Quantity(u32);

impl Quantity {
    /// Most units in one line.
    pub const MAX: u32 = 999;

    /// The number of units.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl TryFrom<u32> for Quantity {
    type Error = InvalidValue;

    fn try_from(units: u32) -> Result<Self, InvalidValue> {
        match units {
            1..=Self::MAX => Ok(Self(units)),
            _ => Err(InvalidValue::expected(format!("1 to {}", Self::MAX))),
        }
    }
}

impl From<Quantity> for u32 {
    fn from(quantity: Quantity) -> Self {
        quantity.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_has_1_to_255_printable_ascii_characters() {
        for right in ["SKU-0001", " ", &"~".repeat(MAX_TEXT)] {
            assert_eq!(right.parse::<Sku>().unwrap().as_str(), right);
        }
        for wrong in ["", "SKU\0", "a\nb", "é", &"x".repeat(MAX_TEXT + 1)] {
            let error = wrong.parse::<Sku>().unwrap_err();
            assert_eq!(
                error.to_string(),
                "expected 1 to 255 printable ASCII characters"
            );
        }
    }

    #[test]
    fn a_quantity_is_1_to_999() {
        assert_eq!(Quantity::try_from(999).unwrap().get(), 999);
        for wrong in [0, 1000] {
            let error = Quantity::try_from(wrong).unwrap_err();
            assert_eq!(error.to_string(), "expected 1 to 999");
        }
    }
}
