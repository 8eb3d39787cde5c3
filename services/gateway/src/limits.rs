//! How many requests a caller may send: each customer, each API key, and each address that sends
//! requests without a token or key, or with one that is refused. The algorithm is GCRA: a steady
//! rate, and a burst of two seconds of it.

use std::{
    hash::Hash,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    num::NonZeroU32,
    sync::Arc,
    time::Duration,
};

use api_keys::KeyId;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use clap::Args;
use contracts::CustomerId;
use governor::{
    DefaultKeyedRateLimiter, Quota, RateLimiter,
    clock::{Clock as _, DefaultClock},
    middleware::StateInformationMiddleware,
};
use tokio_util::sync::CancellationToken;

use crate::problem::Problem;

const BURST_SECONDS: u32 = 2;
/// How many more access tokens of an address are verified than it may send requests without a valid
/// one: many customers share the address of an office. Each costs some ten microseconds.
const NEW_TOKENS: u32 = 10;
/// How often callers are forgotten that could send a whole burst again.
const CLEAN_UP_INTERVAL: Duration = Duration::from_secs(10);

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// How many requests are accepted from whom.
#[derive(Args, Clone, Copy, Debug)]
pub struct LimitSettings {
    /// Requests per second of one customer, with a burst of two seconds; 0 for no limit
    #[arg(long, env = "CUSTOMER_REQUESTS_PER_SECOND", default_value_t = 100,
          value_parser = clap::value_parser!(u32).range(0..=100_000))]
    pub customer_requests_per_second: u32,
    /// Requests per second with one API key, with a burst of two seconds; 0 for no limit
    #[arg(long, env = "API_KEY_REQUESTS_PER_SECOND", default_value_t = 100,
          value_parser = clap::value_parser!(u32).range(0..=100_000))]
    pub api_key_requests_per_second: u32,
    /// Requests per second without a valid access token from one address, with a burst of two
    /// seconds; 0 for no limit
    #[arg(long, env = "ADDRESS_REQUESTS_PER_SECOND", default_value_t = 100,
          value_parser = clap::value_parser!(u32).range(0..=100_000))]
    pub address_requests_per_second: u32,
    /// Proxies between clients and the gateway that add the address of their client to
    /// X-Forwarded-For; with 0 the header is ignored, because anybody can send it
    #[arg(long, env = "TRUSTED_PROXIES", default_value_t = 0,
          value_parser = clap::value_parser!(u8).range(0..=10))]
    pub trusted_proxies: u8,
}

/// The limits, cheap to clone.
#[derive(Clone, Debug)]
pub struct Limits {
    customers: Option<Arc<Limit<CustomerId>>>,
    keys: Option<Arc<Limit<KeyId>>>,
    addresses: Option<Arc<Limit<IpAddr>>>,
    tokens: Option<Arc<Limit<IpAddr>>>,
    trusted_proxies: u8,
}

type Limiter<K> = DefaultKeyedRateLimiter<K, StateInformationMiddleware>;

#[derive(Debug)]
struct Limit<K: Hash + Eq + Clone> {
    /// In the headers of responses.
    name: &'static str,
    limiter: Limiter<K>,
    clock: DefaultClock,
    per_second: NonZeroU32,
}

/// What a caller may still send, for the headers of the response:
/// draft-ietf-httpapi-ratelimit-headers.
#[derive(Clone, Copy, Debug)]
pub struct Allowance {
    name: &'static str,
    per_second: u32,
    remaining: u32,
}

impl Limits {
    pub fn new(settings: LimitSettings) -> Self {
        let LimitSettings {
            customer_requests_per_second: customer,
            api_key_requests_per_second: key,
            address_requests_per_second: address,
            trusted_proxies,
        } = settings;
        Self {
            customers: Limit::new("customer", customer).map(Arc::new),
            keys: Limit::new("API key", key).map(Arc::new),
            addresses: Limit::new("address", address).map(Arc::new),
            tokens: Limit::new("address", address.saturating_mul(NEW_TOKENS)).map(Arc::new),
            trusted_proxies,
        }
    }

    /// Counts a request of a customer.
    ///
    /// # Errors
    /// When it is one too many.
    pub fn customer(&self, customer: CustomerId) -> Result<Option<Allowance>, Problem> {
        check(self.customers.as_deref(), customer)
    }

    /// Counts a request with an API key.
    ///
    /// # Errors
    /// When it is one too many.
    pub fn key(&self, key: KeyId) -> Result<Option<Allowance>, Problem> {
        check(self.keys.as_deref(), key)
    }

    /// Counts a request from an address.
    ///
    /// # Errors
    /// When it is one too many.
    pub fn address(&self, address: IpAddr) -> Result<Option<Allowance>, Problem> {
        check(self.addresses.as_deref(), network(address))
    }

    /// Counts an access token from an address that must be verified.
    ///
    /// # Errors
    /// When it is one too many.
    pub fn new_token(&self, address: IpAddr) -> Result<(), Problem> {
        check(self.tokens.as_deref(), network(address)).map(drop)
    }

    /// The address of the client: the peer, or what the outermost trusted proxy has noted.
    pub fn client(&self, peer: Option<SocketAddr>, headers: &HeaderMap) -> IpAddr {
        let peer = peer.map_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED), |peer| peer.ip());
        let Some(nth) = usize::from(self.trusted_proxies).checked_sub(1) else {
            return peer;
        };
        // Bytes: what a client has sent before the address that a proxy adds may be no text.
        let values = headers.get_all("x-forwarded-for").iter();
        let notes = values.flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
        let notes: Vec<&[u8]> = notes.collect();
        let note = notes.iter().rev().nth(nth);
        note.and_then(|note| read_address(note)).unwrap_or(peer)
    }

    /// Forgets callers that have been quiet, until `stopping`.
    pub async fn run(self, stopping: CancellationToken) -> anyhow::Result<()> {
        while stopping
            .run_until_cancelled(tokio::time::sleep(CLEAN_UP_INTERVAL))
            .await
            .is_some()
        {
            if let Some(limit) = &self.customers {
                limit.clean_up();
            }
            if let Some(limit) = &self.keys {
                limit.clean_up();
            }
            for limit in [&self.addresses, &self.tokens].into_iter().flatten() {
                limit.clean_up();
            }
        }
        Ok(())
    }
}

/// Some proxies also note the port.
fn read_address(note: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(note).ok()?.trim();
    let with_port = || text.parse().map(|address: SocketAddr| address.ip());
    text.parse().or_else(|_| with_port()).ok()
}

fn check<K: Hash + Eq + Clone>(
    limit: Option<&Limit<K>>,
    key: K,
) -> Result<Option<Allowance>, Problem> {
    limit.map(|limit| limit.check(&key)).transpose()
}

impl<K: Hash + Eq + Clone> Limit<K> {
    /// `None` for no limit.
    fn new(name: &'static str, per_second: u32) -> Option<Self> {
        let per_second = NonZeroU32::new(per_second)?;
        let burst = per_second.saturating_mul(NonZeroU32::MIN.saturating_add(BURST_SECONDS - 1));
        let quota = Quota::per_second(per_second).allow_burst(burst);
        Some(Self {
            name,
            limiter: RateLimiter::keyed(quota).with_middleware(),
            clock: DefaultClock::default(),
            per_second,
        })
    }

    fn check(&self, key: &K) -> Result<Allowance, Problem> {
        match self.limiter.check_key(key) {
            Ok(state) => Ok(Allowance {
                name: self.name,
                per_second: self.per_second.get(),
                remaining: state.remaining_burst_capacity(),
            }),
            Err(until) => {
                let wait = until.wait_time_from(self.clock.now());
                Err(Problem::too_many_requests(
                    self.name,
                    self.per_second.get(),
                    wait,
                ))
            }
        }
    }

    fn clean_up(&self) {
        self.limiter.retain_recent();
        self.limiter.shrink_to_fit();
    }
}

impl Allowance {
    pub fn describe(self, headers: &mut HeaderMap) {
        let Self {
            name,
            per_second,
            remaining,
        } = self;
        let burst = per_second * BURST_SECONDS;
        // Seconds until the whole burst is there again.
        let full = burst.saturating_sub(remaining).div_ceil(per_second);
        let limit = HeaderValue::try_from(format!("\"{name}\";r={remaining};t={full}"));
        let policy = HeaderValue::try_from(format!("\"{name}\";q={burst};w={BURST_SECONDS}"));
        if let (Ok(limit), Ok(policy)) = (limit, policy) {
            headers.insert(RATE_LIMIT, limit);
            headers.insert(RATE_LIMIT_POLICY, policy);
        }
    }
}

/// A client with one IPv6 address has the 2^64 of its network, too: they count as one.
fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => IpAddr::V4(v4),
            None => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(trusted_proxies: u8) -> Limits {
        Limits::new(LimitSettings {
            customer_requests_per_second: 0,
            api_key_requests_per_second: 0,
            address_requests_per_second: 1,
            trusted_proxies,
        })
    }

    #[test]
    fn each_address_has_a_burst_and_all_of_an_ipv6_network_share_one() {
        let limits = limits(0);
        let one: IpAddr = "192.0.2.1".parse().unwrap();
        let remaining: Vec<_> = (0..3)
            .map(|_| {
                limits
                    .address(one)
                    .ok()
                    .flatten()
                    .map(|allowance| allowance.remaining)
            })
            .collect();
        assert_eq!(remaining, [Some(1), Some(0), None]);
        for (address, accepted) in [
            ("192.0.2.2", true),
            ("::ffff:192.0.2.1", false),
            ("2001:db8::1", true),
            ("2001:db8::2", true),
            ("2001:db8::3", false),
            ("2001:db8:0:1::1", true),
        ] {
            let result = limits.address(address.parse().unwrap());
            assert_eq!(result.is_ok(), accepted, "{address}");
        }
        for _ in 0..100 {
            assert!(
                limits
                    .customer(CustomerId::new())
                    .is_ok_and(|allowance| allowance.is_none())
            );
        }
    }

    #[test]
    fn an_address_is_taken_only_from_trusted_proxies() {
        let headers = HeaderMap::from_iter(["192.0.2.9, 192.0.2.1", "192.0.2.2"].map(|value| {
            (
                HeaderName::from_static("x-forwarded-for"),
                HeaderValue::from_static(value),
            )
        }));
        let peer = Some(SocketAddr::from(([198, 51, 100, 1], 1)));
        let client = |proxies| limits(proxies).client(peer, &headers).to_string();
        assert_eq!(client(0), "198.51.100.1");
        assert_eq!(client(1), "192.0.2.2");
        assert_eq!(client(2), "192.0.2.1");
        // Fewer proxies than configured: nobody has noted an address that can be trusted.
        assert_eq!(client(9), "198.51.100.1");
        for (noted, address) in [
            (&b"\xe9, 192.0.2.1"[..], "192.0.2.1"),
            (b"192.0.2.1:1234", "192.0.2.1"),
            (b"[2001:db8::1]:1234", "2001:db8::1"),
            (b"unknown", "198.51.100.1"),
        ] {
            let value = HeaderValue::from_bytes(noted).unwrap();
            let headers =
                HeaderMap::from_iter([(HeaderName::from_static("x-forwarded-for"), value)]);
            assert_eq!(limits(1).client(peer, &headers).to_string(), address);
        }
    }
}
