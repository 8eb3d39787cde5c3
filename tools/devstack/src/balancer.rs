//! A TCP address that leads to one of several servers: what a Service is in Kubernetes.

use std::net::Ipv4Addr;

use anyhow::Context as _;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{JoinHandle, JoinSet},
};

/// Listens until it is dropped.
#[derive(Debug)]
pub struct Balancer {
    port: u16,
    targets: watch::Sender<Vec<u16>>,
    /// Changes when all connections are to be cut.
    cuts: watch::Sender<u64>,
    accepting: JoinHandle<()>,
}

impl Balancer {
    /// Listens on `port` and leads to `targets`, ports of this machine, in turn.
    pub async fn start(port: u16, targets: Vec<u16>) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await;
        let listener = listener.with_context(|| format!("listen on port {port}"))?;
        let (targets, wanted) = watch::channel(targets);
        let (cuts, cut) = watch::channel(0);
        let accepting = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            for turn in 0.. {
                let Ok((client, _)) = listener.accept().await else {
                    continue;
                };
                let targets = wanted.borrow().clone();
                connections.spawn(forward(client, targets, turn, cut.clone()));
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Self {
            port,
            targets,
            cuts,
            accepting,
        })
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Leads new connections to these ports in turn.
    pub fn lead_to(&self, targets: &[u16]) {
        self.targets.send_replace(targets.to_vec());
    }

    /// Leads all connections to this port: those that there are end.
    pub fn switch_to(&self, target: u16) {
        self.lead_to(&[target]);
        self.cuts.send_modify(|cuts| *cuts += 1);
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Connects to the first target that answers, and copies until one side ends.
async fn forward(
    mut client: TcpStream,
    targets: Vec<u16>,
    turn: usize,
    mut cut: watch::Receiver<u64>,
) {
    cut.mark_unchanged();
    let first = turn.checked_rem(targets.len()).unwrap_or_default();
    let (before, after) = targets.split_at(first);
    for port in after.iter().chain(before) {
        let Ok(mut server) = TcpStream::connect((Ipv4Addr::LOCALHOST, *port)).await else {
            continue;
        };
        // Only latency depends on it.
        let _ignored = (client.set_nodelay(true), server.set_nodelay(true));
        tokio::select! {
            _ended = copy_bidirectional(&mut client, &mut server) => {}
            _ = cut.changed() => {}
        }
        return;
    }
}
