//! Messages that no service publishes. `PROPTEST_CASES=20000000 cargo test -p messaging --test arbitrary`
//! tries them for ten minutes.

use async_nats::HeaderMap;
use contracts::{Event, Subject, header};
use messaging::headers::{from_headers, to_headers};
use proptest::{collection::vec, prelude::*, sample::select};

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

fn value() -> impl Strategy<Value = String> {
    prop_oneof![
        "[ -~]{0,60}",
        "[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-8[0-9a-f]{3}-[0-9a-f]{12}",
        "[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\\.[0-9]{1,12})?(Z|\\+[0-9]{2}:[0-9]{2})",
        "00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}",
        select(
            Subject::ALL
                .map(|subject| subject.as_str().to_owned())
                .to_vec()
        ),
    ]
}

proptest! {
    #[test]
    fn arbitrary_headers_are_an_envelope_or_refused(values in vec(value(), HEADERS.len())) {
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
