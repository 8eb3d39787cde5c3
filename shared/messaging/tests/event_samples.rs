//! Samples of every event as any release has written it, in `shared/contracts/tests/samples`:
//! today's code reads each, headers and payload. Streams and outboxes keep events of older
//! releases, so a sample is never changed or removed.
//!
//! `UPDATE=1 cargo test -p messaging --test event_samples` adds samples of what is written today.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::{
    collections::{BTreeMap, HashSet},
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use async_nats::HeaderMap;
use contracts::{Cause, CorrelationId, Envelope, Event, EventId, OrderId, Subject};
use messaging::headers::{from_headers, to_headers};
use proto::{
    common::v1::{Money, OrderLine},
    inventory::v1::{InventoryRejected, InventoryReleased, InventoryReserved},
    order::v1::{
        CancelReason, OrderCancelled, OrderConfirmed, OrderCreated, OrderPaid, OrderRefunded,
    },
    payment::v1::{PaymentCompleted, PaymentFailed, PaymentRefunded},
};
use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use uuid::Uuid;

/// The event of a sample, with a value in every field: a field without one is not in the payload.
fn event(subject: Subject) -> Event {
    let order_id = id(1).to_string();
    let customer_id = id(2).to_string();
    let payment_id = id(3).to_string();
    let money = |amount| {
        Some(Money {
            amount,
            currency: "EUR".to_owned(),
        })
    };
    let line = |sku: &str, quantity, price| OrderLine {
        sku: sku.to_owned(),
        quantity,
        unit_price: money(price),
    };
    let lines = vec![line("SKU-0001", 2, 1999), line("SKU-0002", 1, 500)];
    match subject {
        Subject::OrderCreated => Event::OrderCreated(OrderCreated {
            order_id,
            customer_id,
            lines,
            total: money(4498),
            payment_method: "tok_visa".to_owned(),
            deadline: Some((SystemTime::UNIX_EPOCH + Duration::new(1_767_225_630, 5000)).into()),
        }),
        Subject::OrderPaid => Event::OrderPaid(OrderPaid { order_id }),
        Subject::OrderConfirmed => Event::OrderConfirmed(OrderConfirmed {
            order_id,
            customer_id,
            total: money(4498),
        }),
        Subject::OrderCancelled => Event::OrderCancelled(OrderCancelled {
            order_id,
            customer_id,
            reason: CancelReason::CustomerRequest.into(),
        }),
        Subject::OrderRefunded => Event::OrderRefunded(OrderRefunded { order_id }),
        Subject::PaymentCompleted => Event::PaymentCompleted(PaymentCompleted {
            order_id,
            payment_id,
            amount: money(4498),
            lines,
        }),
        Subject::PaymentFailed => Event::PaymentFailed(PaymentFailed {
            order_id,
            payment_id,
            code: "card_declined".to_owned(),
        }),
        Subject::PaymentRefunded => Event::PaymentRefunded(PaymentRefunded {
            order_id,
            payment_id,
            amount: money(4498),
            customer_id,
        }),
        Subject::InventoryReserved => Event::InventoryReserved(InventoryReserved { order_id }),
        Subject::InventoryRejected => Event::InventoryRejected(InventoryRejected {
            order_id,
            short_skus: vec!["SKU-0001".to_owned(), "SKU-0002".to_owned()],
        }),
        Subject::InventoryReleased => Event::InventoryReleased(InventoryReleased { order_id }),
    }
}

/// All fields of an event. Without `..`: a new field does not compile until it is compared, too.
fn fields(event: Event) -> Value {
    match event {
        Event::OrderCreated(OrderCreated {
            order_id,
            customer_id,
            lines,
            total,
            payment_method,
            deadline,
        }) => json!({
            "order_id": order_id,
            "customer_id": customer_id,
            "lines": lines.into_iter().map(line_fields).collect::<Vec<_>>(),
            "total": total.map(money_fields),
            "payment_method": payment_method,
            "deadline": deadline.map(|at| json!({ "seconds": at.seconds, "nanos": at.nanos })),
        }),
        Event::OrderPaid(OrderPaid { order_id })
        | Event::OrderRefunded(OrderRefunded { order_id })
        | Event::InventoryReserved(InventoryReserved { order_id })
        | Event::InventoryReleased(InventoryReleased { order_id }) => {
            json!({ "order_id": order_id })
        }
        Event::OrderConfirmed(OrderConfirmed {
            order_id,
            customer_id,
            total,
        }) => json!({
            "order_id": order_id,
            "customer_id": customer_id,
            "total": total.map(money_fields),
        }),
        Event::OrderCancelled(OrderCancelled {
            order_id,
            customer_id,
            reason,
        }) => json!({
            "order_id": order_id,
            "customer_id": customer_id,
            "reason": CancelReason::try_from(reason).ok().map(|reason| reason.as_str_name()),
        }),
        Event::PaymentCompleted(PaymentCompleted {
            order_id,
            payment_id,
            amount,
            lines,
        }) => json!({
            "order_id": order_id,
            "payment_id": payment_id,
            "amount": amount.map(money_fields),
            "lines": lines.into_iter().map(line_fields).collect::<Vec<_>>(),
        }),
        Event::PaymentFailed(PaymentFailed {
            order_id,
            payment_id,
            code,
        }) => json!({ "order_id": order_id, "payment_id": payment_id, "code": code }),
        Event::PaymentRefunded(PaymentRefunded {
            order_id,
            payment_id,
            amount,
            customer_id,
        }) => json!({
            "order_id": order_id,
            "payment_id": payment_id,
            "amount": amount.map(money_fields),
            "customer_id": customer_id,
        }),
        Event::InventoryRejected(InventoryRejected {
            order_id,
            short_skus,
        }) => json!({ "order_id": order_id, "short_skus": short_skus }),
    }
}

fn money_fields(money: Money) -> Value {
    let Money { amount, currency } = money;
    json!({ "amount": amount, "currency": currency })
}

fn line_fields(line: OrderLine) -> Value {
    let OrderLine {
        sku,
        quantity,
        unit_price,
    } = line;
    json!({ "sku": sku, "quantity": quantity, "unit_price": unit_price.map(money_fields) })
}

/// Leaves out fields with the default of their type. A field that is newer than a sample has it.
fn without_defaults(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let fields = fields.into_iter();
            let fields = fields.map(|(name, value)| (name, without_defaults(value)));
            let defaults = [json!(null), json!(""), json!(0), json!(false), json!([])];
            Value::Object(
                fields
                    .filter(|(_, value)| !defaults.contains(value))
                    .collect(),
            )
        }
        Value::Array(values) => values.into_iter().map(without_defaults).collect(),
        value => value,
    }
}

fn envelope(subject: Subject) -> Envelope {
    Envelope {
        event_id: EventId(id(4)),
        subject,
        order_id: OrderId(id(1)),
        time: OffsetDateTime::from_unix_timestamp(1_767_225_600).unwrap(),
        cause: Cause {
            correlation_id: CorrelationId(id(5)),
            causation_id: EventId(id(6)),
            traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned()),
        },
    }
}

fn envelope_fields(envelope: Envelope) -> Value {
    let Envelope {
        event_id,
        subject,
        order_id,
        time,
        cause:
            Cause {
                correlation_id,
                causation_id,
                traceparent,
            },
    } = envelope;
    json!({
        "event_id": event_id,
        "subject": subject.as_str(),
        "order_id": order_id,
        "time": time.format(&Rfc3339).unwrap(),
        "correlation_id": correlation_id,
        "causation_id": causation_id,
        "traceparent": traceparent,
    })
}

/// A fixed id: samples are the same whenever they are written.
fn id(number: u128) -> Uuid {
    Uuid::from_u128(0x019b_7688_6000_7000_8000_0000_0000_0000 + number)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Vec<u8> {
    let digits = (0..text.len()).step_by(2).map(|at| &text[at..at + 2]);
    digits
        .map(|pair| u8::from_str_radix(pair, 16).unwrap())
        .collect()
}

/// The sample of a subject as it is written today.
fn written_today(subject: Subject) -> Value {
    let (envelope, event) = (envelope(subject), event(subject));
    assert_eq!(event.subject(), subject);
    let headers = to_headers(&envelope, subject.owner());
    let headers: BTreeMap<String, &str> = headers
        .iter()
        .map(|(name, values)| (name.to_string(), values[0].as_str()))
        .collect();
    let payload = hex(&event.encode());
    let fields = fields(event);
    assert_eq!(
        fields,
        without_defaults(fields.clone()),
        "a field of {subject} has no value"
    );
    json!({
        "headers": headers,
        "payload": payload,
        "envelope": envelope_fields(envelope),
        "fields": fields,
    })
}

/// What today's code reads from a sample: as the consumer does, first the headers and then the
/// payload that they announce.
fn read(sample: &Value) -> Result<Value, String> {
    let mut headers = HeaderMap::new();
    for (name, value) in sample["headers"].as_object().unwrap() {
        headers.insert(name.as_str(), value.as_str().unwrap());
    }
    let envelope = from_headers(Some(&headers)).map_err(|error| error.to_string())?;
    let payload = from_hex(sample["payload"].as_str().unwrap());
    let event = Event::decode(envelope.subject, &payload).map_err(|error| error.to_string())?;
    Ok(json!({
        "headers": sample["headers"],
        "payload": sample["payload"],
        "envelope": without_defaults(envelope_fields(envelope)),
        "fields": without_defaults(fields(event)),
    }))
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../contracts/tests/samples")
}

/// All samples by the name of their file.
fn samples() -> BTreeMap<String, Value> {
    let files = fs::read_dir(directory()).unwrap().map(|file| {
        let file = file.unwrap();
        let sample = serde_json::from_slice(&fs::read(file.path()).unwrap()).unwrap();
        (file.file_name().into_string().unwrap(), sample)
    });
    files.collect()
}

/// Adds a sample under the next free number; an existing file stays as it is.
fn add(subject: Subject, sample: &Value) {
    let name = |number| directory().join(format!("{subject}.{number}.json"));
    let free = (1..).map(name).find(|path| !path.exists()).unwrap();
    let mut file = fs::File::create_new(free).unwrap();
    writeln!(file, "{}", serde_json::to_string_pretty(sample).unwrap()).unwrap();
}

#[test]
fn every_event_that_was_ever_written_is_read_by_todays_code() {
    let known = samples();
    let is_update = std::env::var_os("UPDATE").is_some();
    let command = "UPDATE=1 cargo test -p messaging --test event_samples adds it";
    for subject in Subject::ALL {
        let today = written_today(subject);
        if is_update && !known.values().any(|sample| *sample == today) {
            add(subject, &today);
        }
    }
    let samples = samples();
    let mut sampled = HashSet::new();
    for (name, sample) in &samples {
        match read(sample) {
            Ok(found) => assert_eq!(found, *sample, "{name} is not read as it was written"),
            Err(error) => panic!("{name} cannot be read any more: {error}"),
        }
        sampled.insert(sample["envelope"]["subject"].as_str().unwrap());
    }
    for subject in Subject::ALL {
        assert!(
            sampled.contains(subject.as_str()),
            "no sample of {subject}: {command}"
        );
        let is_sampled = samples
            .values()
            .any(|sample| *sample == written_today(subject));
        assert!(
            is_sampled,
            "{subject} is written in a way of which there is no sample: {command}"
        );
    }
}

/// A field that is new and about a person has to be erased, too.
#[test]
fn no_event_says_anything_about_a_customer_who_is_erased() {
    let order = OrderId(id(1));
    let of_a_person = [id(2).to_string(), "tok_visa".to_owned()];
    let mut erased = 0;
    for subject in Subject::ALL {
        let before = event(subject);
        let mut after = before.clone();
        erased += usize::from(after.erase_customer(order));
        let payload = String::from_utf8_lossy(&after.encode()).into_owned();
        for text in &of_a_person {
            assert!(!payload.contains(text), "{subject} says {text}");
        }
        // The rest of the event stays: the payment method is the only other field that changes.
        let is_changed = String::from_utf8_lossy(&before.encode()).contains(&of_a_person[0]);
        assert_eq!(before != after, is_changed, "{subject}");
    }
    assert_eq!(erased, 4);
}
