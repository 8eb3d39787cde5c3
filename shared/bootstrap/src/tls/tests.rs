use std::{error::Error as _, net::SocketAddr};

use contracts::Service;
use devstack::{Certificates, Reaper, TemporaryDirectory};
use proto::{
    inventory::v1::{GetPricesRequest, inventory_service_client::InventoryServiceClient},
    order::v1::{GetOrderRequest, order_service_client::OrderServiceClient},
};
use tokio::net::TcpListener;
use tokio_util::sync::DropGuard;
use tonic::{Code, Status, service::Routes};

use super::*;
use crate::Replicas;

/// An authority and its certificates.
struct Authority {
    certificates: Certificates,
    directory: TemporaryDirectory,
}

impl Authority {
    fn new() -> Self {
        let _installed_before = rustls::crypto::ring::default_provider().install_default();
        let directory = TemporaryDirectory::new(&Reaper::new().unwrap()).unwrap();
        Self {
            certificates: Certificates::issue(directory.path(), 0o600).unwrap(),
            directory,
        }
    }

    fn of(&self, name: &str) -> Tls {
        Tls::load(self.certificates.of(name)).unwrap()
    }
}

/// Serves no RPC at all: one that may be called is unimplemented.
async fn serve(tls: Tls) -> (SocketAddr, DropGuard) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let served = crate::grpc::serve(listener, Routes::default(), Some(tls), stop.clone());
    tokio::spawn(served);
    (address, stop.drop_guard())
}

fn replicas(address: SocketAddr, service: Service, tls: &Tls) -> Replicas {
    Replicas::new(&format!("https://{address}"), service, Some(tls)).unwrap()
}

async fn get_order(replicas: Replicas) -> Status {
    let mut client = OrderServiceClient::new(replicas);
    client
        .get_order(GetOrderRequest::default())
        .await
        .unwrap_err()
}

async fn get_prices(replicas: Replicas) -> Status {
    let mut client = InventoryServiceClient::new(replicas);
    client
        .get_prices(GetPricesRequest::default())
        .await
        .unwrap_err()
}

#[tokio::test]
async fn only_callers_in_the_table_are_served() {
    let authority = Authority::new();
    let (order, _stop) = serve(authority.of("order")).await;
    let (inventory, _stop) = serve(authority.of("inventory")).await;
    for (caller, of_order, of_prices) in [
        ("gateway", Code::Unimplemented, Code::PermissionDenied),
        ("order", Code::PermissionDenied, Code::Unimplemented),
        ("payment", Code::PermissionDenied, Code::PermissionDenied),
        ("operator", Code::PermissionDenied, Code::PermissionDenied),
    ] {
        let tls = authority.of(caller);
        let answer = get_order(replicas(order, Service::Order, &tls)).await;
        assert_eq!(answer.code(), of_order, "{caller}: {answer}");
        let answer = get_prices(replicas(inventory, Service::Inventory, &tls)).await;
        assert_eq!(answer.code(), of_prices, "{caller}: {answer}");
    }
}

#[tokio::test]
async fn a_peer_that_cannot_be_known_gets_no_connection() {
    let (authority, other) = (Authority::new(), Authority::new());
    // It trusts the server, so that only the server can refuse it.
    let known = authority.certificates.of("gateway").join("ca.crt");
    std::fs::copy(known, other.certificates.of("gateway").join("ca.crt")).unwrap();
    let (order, _stop) = serve(authority.of("order")).await;
    let (payment, _stop) = serve(authority.of("payment")).await;
    let gateway = authority.of("gateway");
    let plain = format!("http://{order}");
    for (what, replicas) in [
        (
            "a client of another authority",
            replicas(order, Service::Order, &other.of("gateway")),
        ),
        (
            "a client without TLS",
            Replicas::new(&plain, Service::Order, None).unwrap(),
        ),
        (
            "a server with the certificate of another service",
            replicas(payment, Service::Order, &gateway),
        ),
    ] {
        let answer = get_order(replicas).await;
        // An answer of the server has no source.
        assert!(answer.source().is_some(), "{what}: {answer}");
    }
    for (urls, tls) in [
        (format!("https://{order}"), None),
        (plain.clone(), Some(&gateway)),
        (format!("https://{order},{plain}"), Some(&gateway)),
    ] {
        let error = Replicas::new(&urls, Service::Order, tls).unwrap_err();
        assert!(error.to_string().contains("TLS_DIR"), "{error}");
    }
}

/// The system takes connections for a process that has its listener and does not serve yet.
#[tokio::test]
async fn a_call_does_not_wait_for_a_replica_that_is_starting() {
    let authority = Authority::new();
    let starting = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let starting = format!("https://{}", starting.local_addr().unwrap());
    let (order, _stop) = serve(authority.of("order")).await;
    let urls = format!("{starting},https://{order},{starting}");
    let replicas = Replicas::new(&urls, Service::Order, Some(&authority.of("gateway"))).unwrap();
    for _ in 0..10 {
        let answer = get_order(replicas.clone()).await;
        assert_eq!(answer.code(), Code::Unimplemented, "{answer}");
    }
}

#[tokio::test]
async fn a_renewed_certificate_is_used_without_a_restart() {
    let authority = Authority::new();
    let tls = authority.of("order");
    let (order, _stop) = serve(tls.clone()).await;
    let gateway = authority.of("gateway");
    let shown = async || {
        let stream = TcpStream::connect(order).await.unwrap();
        let stream = gateway.connect("order", stream).await.unwrap();
        let (_, connection) = stream.get_ref();
        connection.peer_certificates().unwrap()[0].clone()
    };
    let before = shown().await;
    assert!(!tls.refresh().unwrap());
    Certificates::issue(authority.directory.path(), 0o600).unwrap();
    assert!(tls.refresh().unwrap());
    let renewed = shown().await;
    assert_ne!(before, renewed);

    let key = authority.certificates.of("order").join("tls.key");
    std::fs::write(key, "no key").unwrap();
    let error = format!("{:#}", tls.refresh().unwrap_err());
    assert!(error.starts_with("TLS_DIR: tls.key: expected"), "{error}");
    assert_eq!(shown().await, renewed, "the last good one stays");
}

#[test]
fn a_missing_file_is_named() {
    let authority = Authority::new();
    let directory = authority.certificates.of("order");
    std::fs::remove_file(directory.join("ca.crt")).unwrap();
    let error = format!("{:#}", Tls::load(directory).unwrap_err());
    assert!(error.contains("ca.crt"), "{error}");
}
