//! `docs/saga.md` is rendered from the choreography; this fails when it is stale.
//! `UPDATE=1 cargo test -p contracts --test saga_document` renders it again.

use std::{fmt::Write as _, path::Path};

use contracts::{
    Service, Subject,
    choreography::{COMMANDS, EDGES, subscriptions},
};

#[test]
fn the_saga_document_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/saga.md");
    let rendered = render();
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, &rendered).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == rendered,
        "docs/saga.md is stale: UPDATE=1 cargo test -p contracts --test saga_document"
    );
}

/// Writing to a string cannot fail.
macro_rules! line {
    ($text:ident, $($arguments:tt)*) => { writeln!($text, $($arguments)*).unwrap() };
}

fn render() -> String {
    let mut text = String::new();
    line!(text, "# The saga\n");
    line!(
        text,
        "Rendered from `shared/contracts/src/choreography.rs` by `shared/contracts/tests/saga_document.rs`;"
    );
    line!(
        text,
        "edit the table there, not this file. Dotted arrows undo something.\n"
    );
    line!(text, "```mermaid\nflowchart LR");
    for command in COMMANDS {
        line!(
            text,
            "    {}([{}]) --> {}",
            command.name.replace(' ', "_"),
            command.name,
            node(command.emits)
        );
    }
    for edge in EDGES {
        let arrow = if edge.compensation { "-.->" } else { "-->" };
        let step = format!(
            "{}_{}_{}",
            edge.by,
            edge.does.replace(' ', "_"),
            edge.on.as_str().replace('.', "_")
        );
        line!(
            text,
            "    {} {arrow} {step}{{{{{}: {}}}}}",
            node(edge.on),
            edge.by,
            edge.does
        );
        for emitted in edge.emits {
            line!(text, "    {step} {arrow} {}", node(*emitted));
        }
    }
    line!(text, "```\n\n## Reactions\n");
    line!(
        text,
        "| on | service | does | publishes | undoes |\n|---|---|---|---|---|"
    );
    for edge in EDGES {
        let emits: Vec<String> = edge
            .emits
            .iter()
            .map(|subject| format!("`{subject}`"))
            .collect();
        let (emits, undoes) = (
            emits.join(" or "),
            if edge.compensation { "yes" } else { "" },
        );
        line!(
            text,
            "| `{}` | {} | {} | {emits} | {undoes} |",
            edge.on,
            edge.by,
            edge.does
        );
    }
    line!(
        text,
        "\n## What starts or stops a saga\n\n| command | service | publishes |\n|---|---|---|"
    );
    for command in COMMANDS {
        line!(
            text,
            "| {} | {} | `{}` |",
            command.name,
            command.by,
            command.emits
        );
    }
    line!(
        text,
        "\n## Streams and consumers\n\n\
         | stream | subjects | consumers, and what they subscribe to in every version |\n|---|---|---|"
    );
    for owner in Service::ALL {
        let Some(stream) = owner.stream() else {
            continue;
        };
        let consumers = Service::ALL.into_iter().filter_map(|service| {
            let subjects = subscriptions(service, owner);
            let filters: Vec<String> = subjects
                .iter()
                .map(|subject| format!("`{subject}`"))
                .collect();
            (!subjects.is_empty()).then(|| format!("{service}: {}", filters.join(", ")))
        });
        line!(
            text,
            "| {stream} | `{owner}.>` | {} |",
            consumers.collect::<Vec<_>>().join("; ")
        );
    }
    line!(text, "| DEAD_LETTER | `dlq.>` | operators |");
    line!(
        text,
        "| REDRIVE | `redrive.>` | each service: `redrive.<service>.>` |"
    );
    line!(text, "| AUDIT | `audit.>` | operators |");
    text
}

fn node(subject: Subject) -> String {
    format!("{}[{subject}]", subject.as_str().replace('.', "_"))
}
