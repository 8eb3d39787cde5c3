//! A system in a Kubernetes cluster: the overlay for development, through kubectl.

use std::{
    process::Stdio,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, ensure};
use devstack::{Endpoints, Ports, test::wait_for};
use tokio::{net::TcpStream, process::Command, task::JoinSet};

use crate::command::output;

const NAMESPACE: &str = "sagacity";
const OVERLAY: &str = "deploy/k8s/overlays/dev";
/// How long kubectl waits for a state, below the deadline of a command.
const TIMEOUT: &str = "--timeout=170s";
/// What keeps data; everything else is a Deployment.
const STATEFUL: [&str; 3] = ["postgres", "nats", "psp-sandbox"];
/// Between two attempts to forward a port to a pod that is away.
const FORWARD_AGAIN: Duration = Duration::from_millis(200);

/// How a scenario has left the cluster for the next one.
#[derive(Debug, Default)]
pub(crate) struct State {
    /// A scenario has begun and has not reported that the next one can use the system.
    is_tampered: AtomicBool,
    /// (service, variable) that differ from the manifests.
    changed: Mutex<Vec<(String, String)>>,
}

/// The system in the cluster. One scenario at a time uses it.
#[derive(Debug)]
pub struct Kubernetes {
    endpoints: Endpoints,
    state: Arc<State>,
    /// Lead the ports of this machine to the servers in the cluster; they end with it.
    _forwards: JoinSet<()>,
}

impl Kubernetes {
    /// Applies the manifests with these settings, (service, name, value), and forwards the ports of
    /// `docker-compose.e2e.yml` and that of `target`. With `fresh` no orders and no logs of earlier
    /// scenarios are left.
    pub(crate) async fn open(
        target: &str,
        state: Arc<State>,
        settings: &[(&str, &str, &str)],
        fresh: bool,
    ) -> anyhow::Result<Self> {
        let is_tampered = state.is_tampered.swap(true, Ordering::Relaxed);
        if is_tampered || fresh {
            ensure_development().await?;
            let delete = ["delete", "namespace", NAMESPACE, "--ignore-not-found"];
            kubectl(&[&delete[..], &["--wait", TIMEOUT]].concat()).await?;
            state.changed().clear();
        }
        // Before the manifests, which may have a value of their own.
        reset_settings(&state, settings).await?;
        kubectl(&["apply", "--server-side", "--force-conflicts", "-k", OVERLAY]).await?;
        for (service, name, value) in settings {
            set_variable(service, &format!("{name}={value}")).await?;
        }
        for service in devstack::services() {
            // The scenario before may have left it stopped.
            scale(service, 1).await?;
        }
        for name in ["postgres", "nats"].into_iter().chain(devstack::services()) {
            until_ready(name).await?;
        }
        Ok(Self {
            endpoints: Endpoints::for_target(target, None)?,
            state,
            _forwards: forward(target).await?,
        })
    }

    /// Lets the next scenario use this system.
    pub fn leave_clean(&self) {
        self.state.is_tampered.store(false, Ordering::Relaxed);
    }

    /// The addresses of all parts.
    pub fn endpoints(&self) -> &Endpoints {
        &self.endpoints
    }

    /// Starts a stopped service without waiting for it.
    pub async fn start(&self, service: &str) -> anyhow::Result<()> {
        scale(service, 1).await
    }

    /// Waits until a service is ready.
    pub async fn wait_until_ready(&self, service: &str) -> anyhow::Result<()> {
        until_ready(service).await
    }

    /// Kills a service, which does not come back by itself. The kubelet grants its pods two
    /// seconds, in which they still serve; there is no way to send SIGKILL first.
    pub async fn kill(&self, service: &str) -> anyhow::Result<()> {
        scale(service, 0).await?;
        delete_pods(service).await
    }

    /// Kills the broker in the same way; its StatefulSet starts it again.
    pub async fn restart_broker(&self) -> anyhow::Result<()> {
        delete_pods("nats").await
    }

    /// Stops a service and waits for the end of its pods.
    pub async fn stop(&self, service: &str) -> anyhow::Result<()> {
        scale(service, 0).await?;
        let selector = selector(service);
        wait_for("its pods are gone", async || {
            let pods = get(&["pods", "--selector", &selector]).await?;
            Ok(pods.is_empty().then_some(()))
        })
        .await
    }

    /// What the pods of a service have logged.
    pub async fn logs(&self, service: &str) -> anyhow::Result<String> {
        let selector = selector(service);
        let logs = [
            "logs",
            "--tail=-1",
            "--container=service",
            "--selector",
            &selector,
        ];
        in_namespace(&logs).await
    }
}

impl State {
    fn changed(&self) -> std::sync::MutexGuard<'_, Vec<(String, String)>> {
        self.changed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Only the overlay for development has the sandbox: its data may be deleted.
async fn ensure_development() -> anyhow::Result<()> {
    let exists = !get(&["namespace", NAMESPACE]).await?.is_empty();
    let has_sandbox = !get(&["statefulset", "psp-sandbox"]).await?.is_empty();
    ensure!(
        !exists || has_sandbox,
        "the namespace {NAMESPACE} of this cluster was not made by {OVERLAY}: it is not deleted"
    );
    Ok(())
}

/// The names of what `kubectl get` finds.
async fn get(what: &[&str]) -> anyhow::Result<String> {
    let find = ["get", "--ignore-not-found", "--output=name"];
    in_namespace(&[&find[..], what].concat()).await
}

/// Takes back what the scenario before has set.
async fn reset_settings(state: &State, settings: &[(&str, &str, &str)]) -> anyhow::Result<()> {
    let own = settings
        .iter()
        .map(|(service, name, _)| (service.to_string(), name.to_string()));
    let before = std::mem::replace(&mut *state.changed(), own.collect());
    for (service, name) in before {
        set_variable(&service, &format!("{name}-")).await?;
    }
    Ok(())
}

async fn set_variable(service: &str, change: &str) -> anyhow::Result<()> {
    let done = in_namespace(&[
        "set",
        "env",
        &workload(service),
        "--containers=service",
        change,
    ])
    .await;
    done.map(drop)
}

async fn scale(service: &str, replicas: usize) -> anyhow::Result<()> {
    let done = in_namespace(&[
        "scale",
        &workload(service),
        &format!("--replicas={replicas}"),
    ])
    .await;
    done.map(drop)
}

async fn until_ready(name: &str) -> anyhow::Result<()> {
    let done = in_namespace(&["rollout", "status", &workload(name), TIMEOUT]).await;
    done.map(drop)
}

async fn delete_pods(name: &str) -> anyhow::Result<()> {
    let delete = ["delete", "pod", "--grace-period=0", "--force", "--selector"];
    let done = in_namespace(&[&delete[..], &[&selector(name)]].concat()).await;
    done.map(drop)
}

fn workload(name: &str) -> String {
    let kind = if STATEFUL.contains(&name) {
        "statefulset"
    } else {
        "deployment"
    };
    format!("{kind}/{name}")
}

fn selector(name: &str) -> String {
    format!("app.kubernetes.io/name={name}")
}

/// Forwards the ports that tests use, each again when its pod has ended, and waits until they
/// answer.
async fn forward(target: &str) -> anyhow::Result<JoinSet<()>> {
    let ports = Ports::default();
    let gateway: http::Uri = target.parse().context("SAGACITY_TARGET")?;
    let mut wanted = vec![
        ("service/postgres", ports.postgres, 5432),
        ("service/nats", ports.nats, 4222),
        ("service/psp-sandbox", ports.get("psp-sandbox")?.api, 8080),
    ];
    // An Ingress or a LoadBalancer has an address of its own.
    if matches!(gateway.host(), Some("localhost" | "127.0.0.1")) {
        wanted.push(("service/gateway", gateway.port_u16().unwrap_or(80), 8080));
    }
    let mut forwards = JoinSet::new();
    for (service, here, there) in &wanted {
        forwards.spawn(keep_forwarding(service, format!("{here}:{there}")));
    }
    wait_for("the ports of the cluster are forwarded", async || {
        for (_, here, _) in &wanted {
            if TcpStream::connect(("127.0.0.1", *here)).await.is_err() {
                return Ok(None);
            }
        }
        Ok(Some(()))
    })
    .await?;
    Ok(forwards)
}

async fn keep_forwarding(service: &'static str, ports: String) {
    loop {
        let mut forward = Command::new("kubectl");
        forward.args(["--namespace", NAMESPACE, "port-forward", service, &ports]);
        forward
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        // It ends with its pod, sometimes not before the next connection.
        let _ended = forward.kill_on_drop(true).status().await;
        tokio::time::sleep(FORWARD_AGAIN).await;
    }
}

async fn in_namespace(arguments: &[&str]) -> anyhow::Result<String> {
    kubectl(&[&["--namespace", NAMESPACE], arguments].concat()).await
}

async fn kubectl(arguments: &[&str]) -> anyhow::Result<String> {
    let mut kubectl = Command::new("kubectl");
    kubectl.current_dir(devstack::workspace()).args(arguments);
    output(kubectl, &format!("kubectl {arguments:?}")).await
}
