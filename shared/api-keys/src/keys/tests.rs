//! The file of keys, and which of them are valid.

use std::{fs, os::unix::fs::PermissionsExt as _};

use contracts::CustomerId;
use devstack::{Reaper, TemporaryDirectory, test::eventually};
use secrecy::ExposeSecret as _;

use super::*;
use crate::{PREFIX, Scope, create, read, revoke};

fn directory() -> TemporaryDirectory {
    TemporaryDirectory::new(&Reaper::new().unwrap()).unwrap()
}

/// A key of the file at `path`, which ends after so many seconds.
fn key(path: &Path, seconds: i64) -> (KeyId, String) {
    let end = OffsetDateTime::now_utc() + time::Duration::seconds(seconds);
    let scopes = vec![Scope::OrdersRead, Scope::Operations];
    let created = create(path, CustomerId::new(), scopes, end, "a test".to_owned());
    let (entry, text) = created.unwrap();
    (entry.id, text.expose_secret().to_owned())
}

#[test]
fn only_a_whole_key_that_is_in_the_file_and_has_not_ended_is_valid() {
    let directory = directory();
    let path = directory.path().join("keys.json");
    let (id, text) = key(&path, 60);
    let (other, other_text) = key(&path, 60);
    let (ended, ended_text) = key(&path, -1);
    let keys = ApiKeys::open(&path).unwrap();
    let valid = keys.verify(&text).unwrap();
    assert_eq!(valid.id, id);
    assert_eq!(valid.scopes, [Scope::OrdersRead, Scope::Operations]);
    assert_eq!(
        keys.verify(&ended_text).unwrap_err(),
        Refusal::Expired(ended)
    );
    assert_eq!(keys.verify(&text[1..]).unwrap_err(), Refusal::Mistyped);
    let elsewhere = directory.path().join("elsewhere.json");
    let (unknown, unknown_text) = key(&elsewhere, 60);
    assert_eq!(
        keys.verify(&unknown_text).unwrap_err(),
        Refusal::Unknown(unknown)
    );
    // Two keys whose ids are exchanged: each has the hash of the other.
    let file = fs::read_to_string(&path).unwrap();
    let [first, second] = [id, other].map(|id| id.to_string());
    let file = file.replace(&first, "FIRST").replace(&second, &first);
    fs::write(&path, file.replace("FIRST", &second)).unwrap();
    let keys = ApiKeys::open(&path).unwrap();
    assert_eq!(keys.verify(&text).unwrap_err(), Refusal::WrongSecret(id));
    assert_eq!(
        keys.verify(&other_text).unwrap_err(),
        Refusal::WrongSecret(other)
    );
}

#[test]
fn the_file_has_no_key_and_is_its_owners() {
    let directory = directory();
    let path = directory.path().join("keys.json");
    let mode = || fs::metadata(&path).unwrap().permissions().mode() & 0o777;
    let (id, text) = key(&path, 60);
    assert_eq!(mode(), 0o600);
    let secret = text.rsplit_once('_').unwrap().1;
    let content = fs::read_to_string(&path).unwrap();
    assert!(content.contains(&id.to_string()), "{content}");
    assert!(!content.contains(secret) && !content.contains(PREFIX));
    // The user of a container may have to read it.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let _second = key(&path, 60);
    assert_eq!(mode(), 0o644);
    revoke(&path, id).unwrap();
    assert_eq!(read(&path).unwrap().len(), 1);
    let again = revoke(&path, id).unwrap_err().to_string();
    assert!(again.contains(&format!("no key {id}")), "{again}");
    let files = fs::read_dir(directory.path()).unwrap().count();
    assert_eq!(files, 1, "nothing else is left");
}

#[test]
fn keys_that_are_made_at_the_same_time_are_all_kept() {
    let directory = directory();
    let path = directory.path().join("keys.json");
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| (0..5).for_each(|_| drop(key(&path, 60))));
        }
    });
    assert_eq!(read(&path).unwrap().len(), 40);
}

#[test]
fn a_file_that_is_not_valid_is_refused_with_the_place() {
    let directory = directory();
    let path = directory.path().join("keys.json");
    let (id, text) = key(&path, 60);
    let good = fs::read_to_string(&path).unwrap();
    let entry = &read(&path).unwrap()[0];
    let (entry, hash) = (serde_json::to_string(entry).unwrap(), &entry.sha256);
    for (wrong, expected) in [
        (String::new(), "EOF"),
        (good.replace("note", "notes"), "unknown field `notes`"),
        (good.replace("orders:read", "orders"), "orders:write"),
        (
            good.replace(&id.to_string(), &text),
            "12 hexadecimal digits",
        ),
        (good.replace(hash, &text), "64 hexadecimal digits"),
        (good.replace("customer\": \"", "customer\": \"x"), "line 6"),
        (format!("{{\"keys\": [{entry}, {entry}]}}"), "there twice"),
    ] {
        fs::write(&path, &wrong).unwrap();
        let error = format!("{:#}", ApiKeys::open(&path).unwrap_err());
        assert!(error.contains("keys.json"), "{error}");
        assert!(error.contains(expected), "{expected}: {error}");
        assert!(!error.contains(&text), "it shows the key: {error}");
    }
    fs::remove_file(&path).unwrap();
    let error = format!("{:#}", ApiKeys::open(&path).unwrap_err());
    assert!(error.contains("No such file"), "{error}");
}

#[tokio::test]
async fn a_change_is_noticed_and_a_broken_file_changes_nothing() {
    let directory = directory();
    // As Kubernetes mounts it: the link to the directory changes.
    let [first, second] = ["first", "second"].map(|name| directory.path().join(name));
    let link = directory.path().join("current");
    fs::create_dir(&first).unwrap();
    fs::create_dir(&second).unwrap();
    let (_, stays) = key(&first.join("keys.json"), 60);
    fs::copy(first.join("keys.json"), second.join("keys.json")).unwrap();
    let (id, text) = key(&first.join("keys.json"), 60);
    std::os::unix::fs::symlink(&first, &link).unwrap();
    let path = link.join("keys.json");
    let keys = ApiKeys::open(&path).unwrap();
    let (key_that_stays, revoked) = (keys.verify(&stays).unwrap(), keys.verify(&text).unwrap());
    let stop = CancellationToken::new();
    let running = tokio::spawn(keys.clone().run(stop.clone()));

    let good = fs::read(&path).unwrap();
    fs::write(&path, "{").unwrap();
    assert!(keys.read_again().await.is_err());
    assert!(keys.verify(&text).is_ok());
    fs::write(&path, good).unwrap();

    let swapped = directory.path().join("swapped");
    std::os::unix::fs::symlink(&second, &swapped).unwrap();
    fs::rename(&swapped, &link).unwrap();
    let waited = tokio::time::timeout(10 * POLL_INTERVAL, revoked.revoked.cancelled()).await;
    assert!(waited.is_ok(), "it is not revoked");
    assert_eq!(keys.verify(&text).unwrap_err(), Refusal::Unknown(id));
    assert!(keys.verify(&stays).is_ok());
    assert!(!key_that_stays.revoked.is_cancelled());
    let (_, new) = key(&path, 60);
    eventually("the new key is valid", async || keys.verify(&new).is_ok()).await;
    stop.cancel();
    running.await.unwrap().unwrap();
}
