//! What each service may publish and subscribe to at the broker, derived from the choreography. It
//! keeps mistakes apart: a service can neither publish an event of another nor receive its answers.
//!
//! It does not stop an attacker who has the password of a service: JetStream answers on any subject
//! that a request names, with the rights of the server, also on those of its own API. Only an
//! account for JetStream, of which services import what they need, would: see
//! `docs/threat-model.md`.
//!
//! `deploy/nats/users.conf` is rendered from it. JetStream's requests are messages, too:
//! <https://docs.nats.io/reference/reference-protocols/nats_api_reference>.

use std::fmt::Write as _;

use contracts::{
    Service,
    dead_letter::{AUDIT_SUBJECT, STREAM as DEAD_LETTERS},
};

use crate::topology::{Source, stream_names};

/// The user of operators and of the tools, who may do everything.
pub const OPERATOR: &str = "operator";
/// The gateway only listens, to notify live streams.
const GATEWAY: &str = "gateway";

/// Rights of one user: subjects, which may have wildcards.
struct User {
    name: &'static str,
    publish: Vec<String>,
    subscribe: Vec<String>,
}

/// The users as configuration of nats-server. Passwords are variables of its environment, for
/// example `$ORDER_NATS_PASSWORD`.
pub fn users() -> String {
    let mut text = String::from(
        "# Who may publish and subscribe to what. Rendered from the choreography:\n\
         #   UPDATE=1 cargo test -p messaging --test users\n\
         # Passwords come from the environment of the server.\n\
         authorization {\n    users: [\n",
    );
    let services = Service::ALL.map(service).into_iter();
    for user in services.chain([gateway(), operator()]) {
        user.render(&mut text);
    }
    text.push_str("    ]\n}\n");
    text
}

fn service(service: Service) -> User {
    let mut publish = vec![
        // All its events, also those of a newer version that was rolled back.
        format!("{service}.>"),
        format!("dlq.{service}.>"),
        format!("redrive.{service}.>"),
        format!("relay.wake.{service}"),
        AUDIT_SUBJECT.to_owned(),
    ];
    let api = |request: &str| format!("$JS.API.{request}");
    // Every service declares all streams, so that services start in any order. None asks to delete,
    // empty or update one: a stream can be told to publish again what it stores, on any subject.
    publish.push(api("STREAM.INFO.*"));
    publish.extend(stream_names().map(|stream| api(&format!("STREAM.CREATE.{stream}"))));
    for source in Source::all(service) {
        let stream = source.stream();
        publish.extend([
            api(&format!("CONSUMER.CREATE.{stream}.{service}")),
            api(&format!("CONSUMER.INFO.{stream}.{service}")),
            api(&format!("CONSUMER.MSG.NEXT.{stream}.{service}")),
            format!("$JS.ACK.{stream}.{service}.>"),
        ]);
        // A dead letter that was cut is redriven from the stream that it came from.
        if source != Source::Redrive {
            publish.push(api(&format!("STREAM.MSG.GET.{stream}")));
        }
    }
    // What its subscribers have handled, and whether the stream still has what was published.
    if let Some(stream) = service.stream() {
        publish.push(api(&format!("CONSUMER.INFO.{stream}.*")));
        publish.push(api(&format!("STREAM.MSG.GET.{stream}")));
    }
    publish.extend([
        // A reader of its own dead letters has no name that is known before. Nothing is read
        // directly: the answer would be stored as an event if it was asked for on a subject of a
        // stream.
        api(&format!("CONSUMER.CREATE.{DEAD_LETTERS}.*.dlq.{service}.>")),
        api(&format!("CONSUMER.DELETE.{DEAD_LETTERS}.*")),
        api(&format!("CONSUMER.MSG.NEXT.{DEAD_LETTERS}.*")),
        api(&format!("STREAM.MSG.GET.{DEAD_LETTERS}")),
        api(&format!("STREAM.MSG.DELETE.{DEAD_LETTERS}")),
    ]);
    User {
        name: service.name(),
        publish,
        subscribe: vec![inbox(service.name()), format!("relay.wake.{service}")],
    }
}

fn gateway() -> User {
    let publishers = Service::ALL
        .into_iter()
        .filter(|service| service.stream().is_some());
    User {
        name: GATEWAY,
        publish: Vec::new(),
        subscribe: publishers.map(|service| format!("{service}.>")).collect(),
    }
}

fn operator() -> User {
    User {
        name: OPERATOR,
        publish: vec![">".to_owned()],
        subscribe: vec![">".to_owned()],
    }
}

/// Where a user receives answers; nobody else may read them.
pub(crate) fn inbox_prefix(user: &str) -> String {
    format!("_INBOX_{user}")
}

fn inbox(user: &str) -> String {
    format!("{}.>", inbox_prefix(user))
}

impl User {
    fn render(&self, text: &mut String) {
        let Self {
            name,
            publish,
            subscribe,
        } = self;
        let variable = name.to_uppercase();
        let mut line = |line: String| {
            let _infallible = writeln!(text, "        {line}");
        };
        line(format!(
            "{{ user: {name}, password: ${variable}_NATS_PASSWORD, permissions: {{"
        ));
        let list = |subjects: &[String]| {
            let quoted: Vec<_> = subjects
                .iter()
                .map(|subject| format!("\"{subject}\""))
                .collect();
            quoted.join("\n                ")
        };
        match publish.is_empty() {
            true => line("    publish: { deny: \">\" }".to_owned()),
            false => line(format!(
                "    publish: {{ allow: [\n                {}\n            ] }}",
                list(publish)
            )),
        }
        line(format!(
            "    subscribe: {{ allow: [\n                {}\n            ] }}",
            list(subscribe)
        ));
        line("} }".to_owned());
    }
}
