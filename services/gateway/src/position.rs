//! How much of an order's live stream a client has received: the number of events of each service,
//! in the order of that service's log. Logs only grow at their end, so that an event that is read
//! late, or bears an earlier time than others, is still received after a reconnection.

use std::{collections::BTreeMap, convert::Infallible, fmt, str::FromStr};

/// Events received, by service. As text: `order:3,payment:2`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Position(BTreeMap<String, usize>);

impl Position {
    /// Whether the `nth` event of a service, counted from 1, has been received.
    pub fn includes(&self, service: &str, nth: usize) -> bool {
        self.0.get(service).is_some_and(|received| nth <= *received)
    }

    /// The `nth` event of a service is received.
    pub fn advance(&mut self, service: &str, nth: usize) {
        self.0.insert(service.to_owned(), nth);
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (nth, (service, received)) in self.0.iter().enumerate() {
            let separator = if nth == 0 { "" } else { "," };
            write!(f, "{separator}{service}:{received}")?;
        }
        Ok(())
    }
}

/// Anything else than a position is the beginning.
impl FromStr for Position {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        let part = |part: &str| {
            let (service, received) = part.split_once(':')?;
            Some((service.to_owned(), received.parse().ok()?))
        };
        let parts: Option<BTreeMap<_, _>> = text.split(',').map(part).collect();
        Ok(Self(parts.unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_reads_back_and_anything_else_is_the_beginning() {
        let mut position = Position::default();
        position.advance("payment", 1);
        position.advance("order", 1);
        position.advance("order", 2);
        assert_eq!(position.to_string(), "order:2,payment:1");
        assert_eq!(position.to_string().parse(), Ok(position.clone()));
        assert!(position.includes("order", 2) && !position.includes("order", 3));
        assert!(!position.includes("inventory", 1));
        for text in ["", "order", "order:many", "order:1,,", "order:-1"] {
            assert_eq!(text.parse(), Ok(Position::default()), "{text}");
        }
    }
}
