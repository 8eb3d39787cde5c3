//! Scopes: what an access token or an API key allows.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What an access token or an API key may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Scope {
    /// To see the customer's orders.
    #[serde(rename = "orders:read")]
    OrdersRead,
    /// To create and cancel orders.
    #[serde(rename = "orders:write")]
    OrdersWrite,
    /// To use the routes of operators on admin listeners. Only API keys have it.
    #[serde(rename = "operations")]
    Operations,
}

impl Scope {
    /// Every scope.
    pub const ALL: [Self; 3] = [Self::OrdersRead, Self::OrdersWrite, Self::Operations];
    /// Those of the API: access tokens have no others.
    pub const OF_CUSTOMERS: [Self; 2] = [Self::OrdersRead, Self::OrdersWrite];

    /// As tokens and files name it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::OrdersRead => "orders:read",
            Self::OrdersWrite => "orders:write",
            Self::Operations => "operations",
        }
    }

    /// For people.
    pub const fn description(self) -> &'static str {
        match self {
            Self::OrdersRead => "See your orders",
            Self::OrdersWrite => "Create and cancel orders",
            Self::Operations => "See and change what operators may",
        }
    }
}

impl FromStr for Scope {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|scope| scope.name() == name);
        found.ok_or_else(|| format!("expected one of {}", Self::ALL.map(Self::name).join(", ")))
    }
}

/// A set of scopes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scopes(u8);

impl Scopes {
    /// Whether the set has this scope.
    pub const fn contains(self, scope: Scope) -> bool {
        self.0 & 1 << scope as u8 != 0
    }
}

impl FromIterator<Scope> for Scopes {
    fn from_iter<I: IntoIterator<Item = Scope>>(scopes: I) -> Self {
        let bits = scopes.into_iter().map(|scope| 1 << scope as u8);
        Self(bits.fold(0, |all, bit| all | bit))
    }
}
