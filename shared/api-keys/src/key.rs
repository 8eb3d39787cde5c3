//! What a key looks like: `sagacity_<id>_<secret>`, all digits hexadecimal. The last eight digits
//! are a checksum of the rest, so that a mistyped key is told from an unknown one.

use std::{
    fmt::{self, Write as _},
    str::FromStr,
};

use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// How every key begins, and no access token of a provider.
pub const PREFIX: &str = "sagacity_";

const ID_DIGITS: usize = 12;
const SECRET_BYTES: usize = 32;
const CHECKSUM_DIGITS: usize = 8;
const LENGTH: usize = PREFIX.len() + ID_DIGITS + 1 + 2 * SECRET_BYTES + CHECKSUM_DIGITS;

/// The id of a key: public, unlike the rest of it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KeyId(u64);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:0ID_DIGITS$x}", self.0)
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for KeyId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // The text may be a key in the wrong place: no error repeats it.
        let expected = || format!("expected the id of a key: {ID_DIGITS} hexadecimal digits");
        if text.len() != ID_DIGITS || !is_hex(text) {
            return Err(expected());
        }
        let number = u64::from_str_radix(text, 16);
        number.map(Self).map_err(|_| expected())
    }
}

impl TryFrom<String> for KeyId {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<KeyId> for String {
    fn from(id: KeyId) -> Self {
        id.to_string()
    }
}

/// A new key.
pub(crate) fn generate() -> (KeyId, SecretString) {
    let id = KeyId(rand::random::<u64>() >> (64 - 4 * ID_DIGITS));
    let secret: [u8; SECRET_BYTES] = rand::random();
    let mut text = format!("{PREFIX}{id}_{}", hex(&secret));
    text.push_str(&checksum(&text));
    (id, text.into())
}

/// The id in a key; `None` when the text is no whole key.
pub(crate) fn id(text: &str) -> Option<KeyId> {
    if text.len() != LENGTH {
        return None;
    }
    let (body, end) = text.split_at_checked(LENGTH - CHECKSUM_DIGITS)?;
    let (id, _secret) = body.strip_prefix(PREFIX)?.split_once('_')?;
    id.parse().ok().filter(|_| checksum(body) == end)
}

/// What is kept of a key. The key has 256 bits of randomness, which nobody can try one by one: a
/// slow hash, as for passwords, would protect nothing and cost every request its time.
pub(crate) fn sha256(text: &str) -> String {
    hex(&Sha256::digest(text))
}

pub(crate) fn is_sha256(text: &str) -> bool {
    text.len() == 64 && is_hex(text)
}

fn checksum(body: &str) -> String {
    let mut checksum = sha256(body);
    checksum.truncate(CHECKSUM_DIGITS);
    checksum
}

fn is_hex(text: &str) -> bool {
    text.bytes()
        .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _never_fails = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;

    use super::*;

    #[test]
    fn a_key_names_its_id_and_a_mistyped_one_is_none() {
        let (key, text) = generate();
        assert!(!format!("{text:?}").contains(PREFIX));
        let text = text.expose_secret();
        assert_eq!(id(text), Some(key));
        assert_eq!(key.to_string().parse(), Ok(key));
        // One digit is another, or missing.
        for place in PREFIX.len()..text.len() {
            let other = match &text[place..=place] {
                "0" => "1",
                _ => "0",
            };
            let mistyped = format!("{}{other}{}", &text[..place], &text[place + 1..]);
            assert_eq!(id(&mistyped), None, "digit {place}");
            let short = format!("{}{}", &text[..place], &text[place + 1..]);
            assert_eq!(id(&short), None, "digit {place}");
        }
        for wrong in ["", PREFIX, &text.to_uppercase(), &text.replace('_', "é")] {
            assert_eq!(id(wrong), None, "{wrong}");
        }
    }
}
