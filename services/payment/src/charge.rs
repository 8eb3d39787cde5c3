//! How an order is charged once, whatever becomes of the responses.
//!
//! A lost response is an unknown outcome, never a failure. The provider is asked again with the
//! same key: it executes what it has not executed, and otherwise sends the stored response again.
//! That response may be a 500, and then the provider is searched for the charge. Only when there is
//! none is it asked for under the next key. A refusal that is not about the charge, such as that of
//! an account that may make no charges, is an unknown outcome, too: no customer is to blame for it.
//!
//! **Why this cannot charge twice.** A charge found is recorded. "None found" proves nothing while
//! an earlier call may still be executed: one that timed out may be waiting in a queue there. So
//! there is definitely no charge ([`ProviderOutcome::NotCharged`]) only if the search finds none
//! and
//!
//! 1. the key has a stored failure: whatever still arrives under it gets that, and executes
//!    nothing; or
//! 2. every call under the key was answered, or never had a connection: none is left that could be
//!    executed (`attempts` and `answered` of the row; a worker that died leaves its call
//!    unanswered); or
//! 3. the deadline passed longer ago than any request is executed: nothing is asked for after the
//!    deadline, so the last call is older than that.
//!
//! The search begins after that is known, and lists are not behind at the provider. The decider
//! accepts the result only while the row has the key and the number of attempts with which this
//! call began: no other worker has asked since.

use std::time::{Duration, SystemTime};

use contracts::OrderId;

use crate::{
    domain::{Charge, Payment, Status},
    provider::{CallError, Provider, ProviderOutcome},
    request,
    store::Leased,
};

/// Longer than a request is executed after its client has given up: Stripe's own clients wait for
/// 80 seconds.
const EXECUTION_LIMIT: Duration = Duration::from_secs(120);
/// Stripe may forget keys after 24 hours (<https://docs.stripe.com/api/idempotent_requests>): a
/// call with one that was forgotten would charge a second time.
const KEY_RETENTION: Duration = Duration::from_secs(23 * 3600);
/// Unknown outcomes after which the charge is also searched for.
const ATTEMPTS_BEFORE_SEARCH: i32 = 3;

/// What is known about the calls under the current key.
struct Calls<'a> {
    payment: &'a Payment,
    age: Duration,
    /// No earlier call can still be executed.
    others_are_over: bool,
    /// Nothing may be asked for any more.
    is_late: bool,
}

impl<'a> Calls<'a> {
    fn new(leased: &'a Leased, charge: &Charge) -> Self {
        let payment = &leased.payment;
        let past_deadline = charge.deadline.map(|deadline| leased.now - deadline);
        let age = age(leased);
        Self {
            payment,
            age,
            others_are_over: payment.answered + 1 >= payment.attempts
                || past_deadline.is_some_and(|past| past > EXECUTION_LIMIT),
            is_late: past_deadline.is_some_and(|past| !past.is_negative()) || age > KEY_RETENTION,
        }
    }

    /// Whether to search without asking again. A cancelled order is not charged if that can be
    /// avoided.
    fn only_searches(&self) -> bool {
        let is_cancelled = self.payment.cancelled.is_some();
        let is_first = self.payment.attempts == 1;
        !is_first && (self.is_late || (is_cancelled && self.others_are_over))
    }
}

/// Whether the next call asks for nothing, so that none is left behind when it is given up.
pub fn only_searches(leased: &Leased) -> bool {
    let charge = leased.payment.charge.as_ref();
    charge.is_some_and(|charge| Calls::new(leased, charge).only_searches())
}

/// Makes the calls that a leased charge needs.
pub async fn call(provider: &Provider, leased: &Leased, charge: &Charge) -> ProviderOutcome {
    let calls = Calls::new(leased, charge);
    if calls.only_searches() {
        return search(provider, &calls, calls.others_are_over).await;
    }
    let payment = calls.payment;
    let Some(body) = body(payment, charge) else {
        return ProviderOutcome::Unknown {
            reason: "the request cannot be encoded".to_owned(),
            is_over: true,
        };
    };
    match provider.create_intent(&key(payment), body).await {
        Ok(intent) => intent.outcome(),
        Err(CallError::Rejected(error))
            if error.is_of_the_card() || (error.is_of_the_charge() && payment.attempts == 1) =>
        {
            ProviderOutcome::Declined {
                code: error.most_specific_code(),
            }
        }
        // An earlier call may have charged. If there is no charge, the next key declines.
        Err(CallError::Rejected(error)) if error.is_of_the_charge() => {
            search(provider, &calls, calls.others_are_over).await
        }
        Err(CallError::Stored(_)) => search(provider, &calls, true).await,
        // Stripe compares bodies also while the first request is being executed.
        Err(CallError::OtherBody(_)) => search(provider, &calls, calls.others_are_over).await,
        Err(error) if payment.attempts >= ATTEMPTS_BEFORE_SEARCH => {
            match provider
                .find_intent(payment.identity.order_id, calls.age)
                .await
            {
                Ok(Some(intent)) if intent.is_settled() => intent.outcome(),
                Ok(_) | Err(_) => error.unknown(),
            }
        }
        Err(error) => error.unknown(),
    }
}

/// Searches for the charge of an order, after the call that asked for it was answered, or without
/// one. `is_final`: none that is not there now can appear, and none that is there changes.
async fn search(provider: &Provider, calls: &Calls<'_>, is_final: bool) -> ProviderOutcome {
    let order = calls.payment.identity.order_id;
    match provider.find_intent(order, calls.age).await {
        Ok(Some(intent)) if is_final || intent.is_settled() => intent.outcome(),
        Ok(None) if is_final => ProviderOutcome::NotCharged,
        Ok(_) => ProviderOutcome::Unknown {
            reason: "no charge is settled, but an earlier call may still be executed".to_owned(),
            is_over: true,
        },
        // The search has failed, and with it no call that could still be executed.
        Err(error) => ProviderOutcome::Unknown {
            reason: error.to_string(),
            is_over: true,
        },
    }
}

/// The stored body; of a payment that the version before this one has written, the one that it
/// sent.
fn body(payment: &Payment, charge: &Charge) -> Option<String> {
    let order = payment.identity.order_id;
    let stored = charge.request.clone();
    stored.or_else(|| request::charge(order, charge.amount, charge.method.as_ref()?).ok())
}

/// The payment's id, and from the second key on its number.
fn key(payment: &Payment) -> String {
    let id = payment.identity.payment_id;
    match payment.key_number {
        0 => id.to_string(),
        number => format!("{id}-{number}"),
    }
}

/// How long ago the payment was created: by the database's clock, or, if the version before this
/// one has written it, by its id, a UUIDv7.
fn age(leased: &Leased) -> Duration {
    let now = SystemTime::from(leased.now);
    let by_id = || {
        let created = leased.payment.identity.payment_id.0.get_timestamp()?;
        let (seconds, nanos) = created.to_unix();
        SystemTime::UNIX_EPOCH.checked_add(Duration::new(seconds, nanos))
    };
    let created = leased.created_at.map(SystemTime::from).or_else(by_id);
    // Without a time the payment is as old as can be: then it is only searched for.
    now.duration_since(created.unwrap_or(SystemTime::UNIX_EPOCH))
        .unwrap_or_default()
}

/// The body of a leased charge that has none stored.
pub fn missing_body(payment: &Payment) -> Option<(OrderId, String)> {
    let charge = payment.charge.as_ref()?;
    let is_missing = payment.status == Status::Pending && charge.request.is_none();
    is_missing
        .then(|| body(payment, charge))?
        .map(|body| (payment.identity.order_id, body))
}

#[cfg(test)]
mod tests {
    use contracts::{Cause, CorrelationId, CustomerId, EventId, Money, PaymentId};
    use serde_json::{Value, json};
    use time::OffsetDateTime;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;
    use crate::domain::Identity;

    const HOUR: Duration = Duration::from_secs(3600);

    /// A charge that was created `age` ago, with a deadline `left` after now.
    fn leased(age: Duration, left: time::Duration) -> Leased {
        let now = OffsetDateTime::now_utc();
        let charge = Charge {
            amount: Money::new(1, "EUR".parse().unwrap()),
            method: Some("tok_visa".parse().unwrap()),
            lines: vec![],
            deadline: Some(now + left),
            request: None,
            cause: cause(),
        };
        let payment = Payment {
            identity: Identity {
                payment_id: PaymentId::new(),
                order_id: OrderId::new(),
                customer_id: CustomerId::new(),
            },
            charge: Some(charge),
            status: Status::Pending,
            cancelled: None,
            attempts: 1,
            answered: 0,
            key_number: 0,
            refund_id: None,
            reference: None,
            failure_code: None,
            updated_at: now,
        };
        Leased {
            payment,
            now,
            created_at: Some(now - age),
        }
    }

    fn cause() -> Cause {
        Cause {
            correlation_id: CorrelationId::new(),
            causation_id: EventId::new(),
            traceparent: None,
        }
    }

    /// Whether it is only searched for, and whether "none" would be final.
    fn known(leased: &Leased) -> (bool, bool) {
        let charge = leased.payment.charge.as_ref().unwrap();
        let calls = Calls::new(leased, charge);
        (calls.only_searches(), calls.others_are_over)
    }

    #[test]
    fn nothing_is_concluded_while_an_earlier_call_may_be_executed() {
        let later = time::Duration::HOUR;
        let mut charge = leased(HOUR, later);
        assert_eq!(known(&charge), (false, true), "the first call");
        charge.payment.attempts = 3;
        assert_eq!(known(&charge), (false, false), "two were lost");
        charge.payment.answered = 1;
        charge.payment.cancelled = Some(cause());
        assert_eq!(known(&charge), (false, false), "cancelled, one was lost");
        charge.payment.answered = 2;
        assert_eq!(
            known(&charge),
            (true, true),
            "cancelled, both were answered"
        );

        let mut late = leased(HOUR, time::Duration::seconds(-10));
        late.payment.attempts = 2;
        assert_eq!(
            known(&late),
            (true, false),
            "the lost call may still arrive"
        );
        late.payment.answered = 1;
        assert_eq!(known(&late), (true, true));
        let mut much_later = leased(HOUR, -time::Duration::HOUR);
        much_later.payment.attempts = 2;
        assert_eq!(known(&much_later), (true, true), "the lost call has ended");
    }

    /// A provider that answers every request to charge with `charge`, and every list with `list`.
    async fn provider(charge: (&'static str, Value), list: Value) -> Provider {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let mut request = [0; 4096];
                let read = socket.read(&mut request).await.unwrap();
                let (head, body) = match request[..read].starts_with(b"POST") {
                    true => (charge.0, charge.1.to_string()),
                    false => ("200 OK", list.to_string()),
                };
                let headers = "date: Fri, 27 Nov 2026 00:00:00 GMT\r\nconnection: close";
                let length = format!("content-length: {}", body.len());
                let answer = format!("HTTP/1.1 {head}\r\n{headers}\r\n{length}\r\n\r\n{body}");
                let _hung_up = socket.write_all(answer.as_bytes()).await;
            }
        });
        let _by_another_test = rustls::crypto::ring::default_provider().install_default();
        Provider::new(&url, "sk_test_x".into()).unwrap()
    }

    async fn outcome(provider: &Provider, leased: &Leased) -> ProviderOutcome {
        let charge = leased.payment.charge.as_ref().unwrap();
        call(provider, leased, charge).await
    }

    fn refusal(error: Value) -> (&'static str, Value) {
        ("400 Bad Request", json!({ "error": error }))
    }

    #[tokio::test]
    async fn a_refusal_declines_a_charge_only_if_it_is_about_the_charge() {
        let nothing = json!({ "data": [], "has_more": false });
        let first = leased(Duration::ZERO, time::Duration::HOUR);
        let of_the_charge = json!({ "type": "invalid_request_error", "code": "resource_missing",
            "param": "payment_method_data[card][token]" });
        let about_it = provider(refusal(of_the_charge), nothing.clone()).await;
        let declined = outcome(&about_it, &first).await;
        assert!(
            matches!(declined, ProviderOutcome::Declined { .. }),
            "{declined:?}"
        );
        let mut after_a_lost_call = first;
        after_a_lost_call.payment.attempts = 2;
        let open = outcome(&about_it, &after_a_lost_call).await;
        let is_over = matches!(open, ProviderOutcome::Unknown { is_over: true, .. });
        assert!(is_over, "{open:?}");
        let mut after_an_answered_call = after_a_lost_call;
        after_an_answered_call.payment.answered = 1;
        let next_key = outcome(&about_it, &after_an_answered_call).await;
        assert_eq!(next_key, ProviderOutcome::NotCharged);

        let first = leased(Duration::ZERO, time::Duration::HOUR);
        for error in [
            json!({ "type": "invalid_request_error", "message": "Unrecognized request URL" }),
            json!({ "type": "invalid_request_error", "code": "parameter_unknown",
                "param": "confirm" }),
        ] {
            let about_another_thing = provider(refusal(error), nothing.clone()).await;
            let open = outcome(&about_another_thing, &first).await;
            let is_over = matches!(open, ProviderOutcome::Unknown { is_over: true, .. });
            assert!(is_over, "{open:?}");
        }
    }

    /// It is stored under the key, and stays when its cause is gone.
    #[tokio::test]
    async fn after_a_refusal_that_is_stored_the_next_key_is_used() {
        let nothing = json!({ "data": [], "has_more": false });
        let payment = leased(Duration::ZERO, time::Duration::HOUR);
        let (_, refusal) = refusal(json!({ "type": "invalid_request_error" }));
        let stored = "400 Bad Request\r\nidempotent-replayed: true";
        let provider = provider((stored, refusal), nothing).await;
        let next_key = outcome(&provider, &payment).await;
        assert_eq!(next_key, ProviderOutcome::NotCharged);
    }

    #[tokio::test]
    async fn a_call_that_charged_is_found_although_the_next_one_is_refused() {
        let mut payment = leased(Duration::ZERO, time::Duration::HOUR);
        payment.payment.attempts = 2;
        let order = payment.payment.identity.order_id.to_string();
        let intent =
            json!({ "id": "pi_1", "status": "succeeded", "metadata": { "order_id": order } });
        let error = json!({ "type": "invalid_request_error", "param": "payment_method" });
        let found = json!({ "data": [intent], "has_more": false });
        let provider = provider(refusal(error), found).await;
        // The call was lost, or answered with a 500.
        for answered in [0, 1] {
            payment.payment.answered = answered;
            let reference = "pi_1".to_owned();
            assert_eq!(
                outcome(&provider, &payment).await,
                ProviderOutcome::Captured { reference }
            );
        }
    }

    #[test]
    fn a_charge_is_not_retried_after_the_provider_may_have_forgotten_its_key() {
        let mut charge = leased(24 * HOUR, time::Duration::HOUR);
        assert_eq!(
            known(&charge),
            (false, true),
            "the first call has no key to forget"
        );
        charge.payment.attempts = 2;
        assert_eq!(known(&charge), (true, false));
        // Written by the version that did not keep the time: the id has it.
        charge.created_at = None;
        assert_eq!(known(&charge), (false, false));
    }
}
