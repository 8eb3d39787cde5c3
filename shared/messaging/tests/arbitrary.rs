//! Messages that no service publishes. `e2e/fuzz/run` tries them for ten minutes.

#![expect(clippy::unwrap_used, reason = "a test")]

use async_nats::HeaderMap;
use contracts::{Event, Subject, header};
use messaging::headers::{from_headers, to_headers};
use proptest::{collection::vec, prelude::*, sample::select};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

const HEADERS: [&str; 9] = [
    header::ID,
    header::TYPE,
    header::SOURCE,
    header::TIME,
    header::SUBJECT,
    header::SPEC_VERSION,
    header::CORRELATION_ID,
    header::CAUSATION_ID,
    header::TRACEPARENT,
];

/// Mostly valid: an envelope needs nearly all of them.
fn value(name: &'static str) -> BoxedStrategy<String> {
    let valid = match name {
        header::TYPE => select(Subject::ALL.to_vec())
            .prop_map(|subject| subject.as_str().to_owned())
            .boxed(),
        header::TIME => (0..4_000_000_000_i64, 0..1_000_000_000_u32)
            .prop_map(|(seconds, nanoseconds)| {
                let time = OffsetDateTime::from_unix_timestamp(seconds).unwrap();
                let time = time.replace_nanosecond(nanoseconds).unwrap();
                time.format(&Rfc3339).unwrap()
            })
            .boxed(),
        header::TRACEPARENT => "00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}".boxed(),
        header::SOURCE => "/sagacity/[a-z]{1,12}".boxed(),
        header::SPEC_VERSION => Just("1.0".to_owned()).boxed(),
        _ => "[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-8[0-9a-f]{3}-[0-9a-f]{12}".boxed(),
    };
    prop_oneof![19 => valid, 1 => "[ -~]{0,60}".boxed()].boxed()
}

fn headers() -> impl Strategy<Value = Vec<String>> {
    HEADERS.map(value).to_vec()
}

proptest! {
    #[test]
    fn arbitrary_headers_are_an_envelope_or_refused(values in headers()) {
        let mut headers = HeaderMap::new();
        for (name, value) in HEADERS.iter().zip(&values) {
            headers.insert(*name, value.as_str());
        }
        if let Ok(envelope) = from_headers(Some(&headers)) {
            let written = to_headers(&envelope, envelope.subject.owner());
            prop_assert_eq!(from_headers(Some(&written)), Ok(envelope));
        }
    }

    #[test]
    fn arbitrary_payloads_are_an_event_or_refused(
        subject in select(Subject::ALL.to_vec()),
        payload in vec(any::<u8>(), 0..300),
    ) {
        let _refused = Event::decode(subject, &payload);
    }
}
