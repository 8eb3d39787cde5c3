//! Holds the prose against the code: layering, canvases, names of tests, links, recipes.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use contracts::{Service, Subject, choreography::subscriptions, rpc::RPCS};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// All files of the repository with one of these endings, without build output.
fn files(endings: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut directories = vec![root()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            if path.is_dir() && !matches!(&*name, "target" | ".git" | ".sagacity") {
                directories.push(path);
            } else if path.is_file() && endings.iter().any(|ending| name.ends_with(ending)) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// What stands between backticks, outside of code blocks.
fn backticked(text: &str) -> Vec<String> {
    let mut is_code = false;
    let prose = text.lines().filter(|line| {
        let is_fence = line.starts_with("```");
        is_code ^= is_fence;
        !is_fence && !is_code
    });
    let quoted = prose.flat_map(|line| line.split('`').skip(1).step_by(2));
    quoted.map(str::to_owned).collect()
}

#[test]
fn a_domain_imports_only_std_contracts_time_and_thiserror() {
    let mut checked = 0;
    for path in files(&[".rs"]) {
        let text = path.to_str().unwrap();
        if !text.contains("/src/domain") || text.ends_with("/tests.rs") {
            continue;
        }
        checked += 1;
        let source = read(&path);
        // Unit tests may build values as they like.
        let code = source.split("#[cfg(test)]\nmod tests {").next().unwrap();
        for line in code
            .lines()
            .filter_map(|line| line.trim().strip_prefix("use "))
        {
            let import = line.split([':', ';']).next().unwrap();
            let allowed = [
                "std",
                "contracts",
                "time",
                "thiserror",
                "super",
                "Status",
                "CancelReason",
            ];
            assert!(
                allowed.contains(&import),
                "{text} imports {import}: a domain is pure"
            );
        }
    }
    assert!(checked >= 3, "only {checked} domain files were found");
}

/// The crates below `services/`.
fn services() -> BTreeSet<String> {
    let entries = fs::read_dir(root().join("services")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.collect()
}

#[test]
fn every_service_but_the_gateway_is_a_participant() {
    let mut participants: BTreeSet<String> = Service::ALL.iter().map(Service::to_string).collect();
    participants.insert("gateway".to_owned());
    assert_eq!(services(), participants);
}

#[test]
fn dependencies_point_downwards() {
    let services = services();
    let layers: &[(&str, &[&str])] = &[
        (
            "services/",
            &["audit", "cli", "client", "devstack", "psp-sandbox", "e2e"],
        ),
        (
            "shared/chassis",
            &["audit", "cli", "client", "devstack", "psp-sandbox", "e2e"],
        ),
        (
            "shared/messaging",
            &["bootstrap", "chassis", "devstack", "client", "audit"],
        ),
        (
            "shared/dead-letters",
            &[
                "messaging",
                "bootstrap",
                "chassis",
                "devstack",
                "client",
                "audit",
                "sqlx",
            ],
        ),
        (
            "shared/api-keys",
            &[
                "messaging",
                "bootstrap",
                "chassis",
                "devstack",
                "client",
                "audit",
                "sqlx",
            ],
        ),
        (
            "shared/bootstrap",
            &["messaging", "chassis", "devstack", "client", "audit"],
        ),
        (
            "shared/contracts",
            &["messaging", "bootstrap", "chassis", "async-nats", "sqlx"],
        ),
        ("tools/", &["chassis", "messaging"]),
    ];
    for path in files(&["Cargo.toml"]) {
        let text = path
            .strip_prefix(root())
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned();
        let manifest = read(&path);
        let dependencies = manifest.split("[dependencies]").nth(1).unwrap_or_default();
        let dependencies = dependencies.split("\n[").next().unwrap();
        let depends_on = |name: &str| {
            dependencies
                .lines()
                .any(|line| line.starts_with(&format!("{name}.workspace")))
        };
        for service in &services {
            assert!(
                !depends_on(service),
                "{text} depends on the service {service}"
            );
        }
        for (layer, above) in layers.iter().filter(|(layer, _)| text.starts_with(layer)) {
            for name in *above {
                assert!(
                    !depends_on(name),
                    "{text} depends on {name}, which does not belong below {layer}"
                );
            }
        }
    }
}

/// The paths of all RPCs of the `.proto` files.
fn declared_rpcs() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for path in files(&[".proto"]) {
        let (mut package, mut service) = (String::new(), String::new());
        for line in read(&path).lines() {
            let mut words = line
                .split([' ', '(', ';', '{'])
                .filter(|word| !word.is_empty());
            match (words.next(), words.next()) {
                (Some("package"), Some(name)) => package = name.to_owned(),
                (Some("service"), Some(name)) => service = name.to_owned(),
                (Some("rpc"), Some(name)) => {
                    found.insert(format!("/{package}.{service}/{name}"));
                }
                _ => {}
            }
        }
    }
    found
}

#[test]
fn every_rpc_has_its_callers() {
    let in_table: BTreeSet<String> = RPCS.iter().map(|(path, _)| (*path).to_owned()).collect();
    assert_eq!(in_table, declared_rpcs());
    assert_eq!(in_table.len(), RPCS.len(), "an RPC is there twice");
    for (path, callers) in RPCS {
        assert!(!callers.is_empty(), "nobody may call {path}: delete it");
    }
}

#[test]
fn every_crate_inherits_the_lints() {
    for path in files(&["Cargo.toml"]) {
        let manifest = read(&path);
        assert!(
            !manifest.contains("[package]") || manifest.contains("[lints]\nworkspace = true"),
            "{}: add [lints] workspace = true",
            path.display()
        );
    }
}

#[test]
fn every_test_that_the_documents_name_exists() {
    let sources: String = files(&[".rs"]).iter().map(|path| read(path)).collect();
    let mut checked = 0;
    for path in files(&[".md"]) {
        for name in backticked(&read(&path)) {
            let is_name = name
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
            if is_name && name.matches('_').count() >= 3 {
                checked += 1;
                let exists = sources.contains(&format!("fn {name}("));
                // A setting of the sandbox may have as many words as a test.
                let is_field = sources.contains(&format!(" {name}: "));
                assert!(
                    exists || is_field,
                    "{} names the test {name}, which does not exist",
                    path.display()
                );
            }
        }
    }
    assert!(checked > 40, "only {checked} names were found");
}

/// The subjects in a row of a canvas, without their version.
fn row(canvas: &str, name: &str) -> BTreeSet<String> {
    let row = canvas
        .lines()
        .find(|line| line.starts_with(&format!("| {name} |")));
    let row = row.unwrap_or_else(|| panic!("no row {name} in {canvas}"));
    backticked(row).into_iter().collect()
}

#[test]
fn every_canvas_agrees_with_the_choreography() {
    let fact = |subject: Subject| {
        let (fact, _version) = subject.as_str().rsplit_once('.').unwrap();
        fact.to_owned()
    };
    for service in Service::ALL {
        let path = root().join(format!("services/{service}/README.md"));
        let canvas = read(&path);
        let subscribed = Service::ALL
            .into_iter()
            .flat_map(|owner| subscriptions(service, owner));
        assert_eq!(
            row(&canvas, "subscribes to"),
            subscribed.map(fact).collect(),
            "{}",
            path.display()
        );
        let published = Subject::ALL
            .into_iter()
            .filter(|subject| subject.owner() == service);
        assert_eq!(
            row(&canvas, "publishes"),
            published.map(fact).collect(),
            "{}",
            path.display()
        );
    }
}

#[test]
fn every_link_leads_to_a_file() {
    for path in files(&[".md"]) {
        let text = read(&path);
        for target in text
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split(')').next())
        {
            let file = target.split('#').next().unwrap();
            if file.is_empty() || file.contains("://") {
                continue;
            }
            let linked = path.parent().unwrap().join(file);
            assert!(
                linked.exists(),
                "{}: {target} does not exist",
                path.display()
            );
        }
    }
}

#[test]
fn every_path_in_the_recipes_exists() {
    let mut checked = 0;
    for name in ["CONTRIBUTING.md", "docs/architecture.md"] {
        for path in backticked(&read(&root().join(name))) {
            let is_pattern = path.contains(['…', '*', '<', ' ', ':']) || !path.contains('/');
            if !is_pattern && !path.starts_with('/') {
                checked += 1;
                assert!(
                    root().join(&path).exists(),
                    "{name} names {path}, which does not exist"
                );
            }
        }
    }
    assert!(checked > 40, "only {checked} paths were found");
}

#[test]
fn compose_grants_the_time_that_a_shutdown_may_take() {
    let source = read(&root().join("shared/bootstrap/src/shutdown.rs"));
    let seconds = |text: &str, before: &str| {
        let rest = text
            .split(before)
            .nth(1)
            .unwrap_or_else(|| panic!("no {before}"));
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        digits.parse::<u64>().unwrap()
    };
    let grace = seconds(&source, "pub const GRACE: Duration = Duration::from_secs(");
    let compose = read(&root().join("docker-compose.yml"));
    assert!(
        seconds(&compose, "stop_grace_period: ") >= grace,
        "docker-compose.yml: {grace} s"
    );
}
