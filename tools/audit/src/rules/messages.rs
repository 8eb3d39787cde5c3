//! Outboxes against streams.

use std::collections::HashSet;

use super::invariant;
use crate::{Expectations, Invariant, facts::Facts};

/// A second copy in a stream breaks nothing: a relay that dies between publication and note, or a
/// broker that was thought to have lost the event, leaves one, and inboxes drop it. It is a note.
pub(super) fn messages(facts: &Facts, expectations: &Expectations) -> Invariant {
    let mut breaches = Vec::new();
    let mut notes = Vec::new();
    let mut checked = 0;
    for (service, row) in &facts.set_aside {
        breaches.push(format!(
            "{} {} of {service} cannot be published: {}",
            row.subject, row.event_id, row.reason
        ));
    }
    for (service, replay) in &facts.replays {
        notes.push(format!(
            "{service} published again what it had recorded after position {} up to {}, at {}: {}",
            replay.after_position, replay.until_position, replay.at, replay.reason
        ));
    }
    for (service, outbox) in &facts.outboxes {
        let stream = facts.streams.get(service);
        let mut in_outbox = HashSet::new();
        let mut repeated = 0;
        for row in outbox {
            checked += 1;
            in_outbox.insert(row.event_id);
            let found = stream.and_then(|stream| stream.get(&row.event_id));
            let copies = found.map_or(0, |event| event.copies);
            let is_missing = copies < expectations.copies && row.is_retained;
            if !row.sent || is_missing {
                breaches.push(format!(
                    "{} {} of {service}: sent {}, {copies} times in the stream",
                    row.subject, row.event_id, row.sent
                ));
            }
            repeated += usize::from(copies > expectations.copies);
        }
        if repeated > 0 {
            notes.push(format!(
                "{repeated} events of {service} are in the stream more than once"
            ));
        }
        let unknown = stream.into_iter().flatten();
        let unknown =
            unknown.filter(|(id, event)| event.precedes_snapshots && !in_outbox.contains(*id));
        breaches.extend(
            unknown.map(|(id, _)| format!("{id} is in the stream of {service}, not in its outbox")),
        );
    }
    Invariant {
        notes,
        ..invariant(
            "messages",
            "every outbox row was published, and nothing else is in a stream",
            checked,
            breaches,
        )
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use contracts::{EventId, Service, Subject};
    use uuid::Uuid;

    use super::*;
    use crate::facts::{OutboxRow, Replay, SetAside, Streamed};

    const SUBJECT: Subject = Subject::OrderCreated;

    fn row(event_id: Uuid) -> OutboxRow {
        OutboxRow {
            event_id,
            subject: SUBJECT.to_string(),
            sent: true,
            is_retained: true,
        }
    }

    fn streamed(copies: usize) -> Streamed {
        Streamed {
            copies,
            precedes_snapshots: true,
        }
    }

    fn check(outbox: Vec<OutboxRow>, stream: HashMap<Uuid, Streamed>) -> Invariant {
        let facts = Facts {
            outboxes: HashMap::from([(Service::Order, outbox)]),
            streams: HashMap::from([(Service::Order, stream)]),
            ..Facts::default()
        };
        messages(&facts, &Expectations::default())
    }

    #[test]
    fn one_copy_holds_and_a_second_one_is_a_note() {
        let id = EventId::new().0;
        for (copies, notes) in [(1, 0), (2, 1)] {
            let checked = check(vec![row(id)], HashMap::from([(id, streamed(copies))]));
            let found = (checked.breaches.len(), checked.notes.len());
            assert_eq!(found, (0, notes), "{copies}");
        }
    }

    #[test]
    fn an_event_that_is_missing_unsent_or_of_unknown_origin_is_a_breach() {
        let id = EventId::new().0;
        let missing = check(vec![row(id)], HashMap::new());
        let unsent = OutboxRow {
            sent: false,
            ..row(id)
        };
        let unsent = check(vec![unsent], HashMap::from([(id, streamed(1))]));
        let unknown = check(Vec::new(), HashMap::from([(id, streamed(1))]));
        for checked in [missing, unsent, unknown] {
            assert_eq!(checked.breaches.len(), 1);
        }
    }

    #[test]
    fn what_was_published_again_is_a_note_and_what_cannot_be_published_is_a_breach() {
        let replay = Replay {
            after_position: 3,
            until_position: 17,
            reason: "the stream has lost events".to_owned(),
            at: "today".to_owned(),
        };
        let mut facts = Facts {
            replays: vec![(Service::Order, replay)],
            ..Facts::default()
        };
        let checked = messages(&facts, &Expectations::default());
        assert!(checked.breaches.is_empty());
        assert!(checked.notes[0].contains("after position 3 up to 17"));
        let row = SetAside {
            event_id: EventId::new().0,
            subject: SUBJECT.to_string(),
            reason: "it is too large".to_owned(),
        };
        facts.set_aside.push((Service::Order, row));
        assert_eq!(messages(&facts, &Expectations::default()).breaches.len(), 1);
    }

    #[test]
    fn an_event_that_was_appended_while_the_auditor_read_and_an_expired_one_hold() {
        let id = EventId::new().0;
        let new = Streamed {
            precedes_snapshots: false,
            ..streamed(1)
        };
        assert!(
            check(Vec::new(), HashMap::from([(id, new)]))
                .breaches
                .is_empty()
        );
        let expired = OutboxRow {
            is_retained: false,
            ..row(id)
        };
        assert!(check(vec![expired], HashMap::new()).breaches.is_empty());
    }
}
