//! What makes a [`Stack`] highly available: three servers of each kind and two replicas of each
//! service.

use std::collections::BTreeMap;

use anyhow::Context as _;

use crate::{
    Balancer, MEMBERS, MemberPorts, NatsCluster, Options, PostgresCluster, Reaper,
    endpoints::service_url, free_port, members, postgres,
};

/// The servers behind a highly available system.
#[derive(Debug)]
pub struct Cluster {
    pub nats: NatsCluster,
    pub postgres: PostgresCluster,
    /// Leads to the replicas of the gateway.
    pub(crate) gateways: Balancer,
    /// The ports of `gateway` and `gateway-replica`.
    gateway_ports: [u16; 2],
    /// Ports of the second process of each service.
    pub(crate) second: BTreeMap<&'static str, MemberPorts>,
}

impl Cluster {
    /// Starts the servers, and changes `options` so that the services use them and call all
    /// replicas of each other. `options.state` must be new.
    pub(crate) async fn start(options: &mut Options, reaper: &Reaper) -> anyhow::Result<Self> {
        let logs = options.server_logs.clone();
        let certificates = options.certificates.as_ref();
        let nats = options.state.join("nats");
        let nats = NatsCluster::start(&nats, certificates, &logs, reaper).await?;
        let directory = postgres::cluster_directory(&options.state)?;
        std::fs::create_dir_all(&directory)
            .with_context(|| format!("create {}", directory.display()))?;
        let (port, durability) = (options.ports.postgres, options.durability);
        let postgres =
            PostgresCluster::start(&directory, port, durability, certificates, &logs, reaper);
        let postgres = postgres.await?;
        // The provider is another company's.
        let mut second = BTreeMap::new();
        for member in MEMBERS.iter().filter(|member| !member.stand_in) {
            let (api, admin) = (free_port()?, free_port()?);
            second.insert(member.name, MemberPorts { api, admin });
        }
        let both = |name: &str| {
            let second = second.get(name).context("it has a second process")?;
            anyhow::Ok([options.ports.get(name)?.api, second.api])
        };
        let mut settings = Vec::new();
        for member in members::with_database() {
            let mut set = |service: &str, name: &str, value: &str| {
                settings.push((service.to_owned(), name.to_owned(), value.to_owned()));
            };
            set(member.name, "STREAM_REPLICAS", "3");
            let urls = both(member.name)?.map(|port| service_url(certificates, port));
            let urls = urls.join(",");
            for caller in ["gateway", "order"] {
                set(caller, &member.url_setting(), &urls);
            }
        }
        let gateway_ports = both("gateway")?;
        let gateways = Balancer::start(free_port()?, gateway_ports.to_vec()).await?;
        // What the caller sets comes last and wins.
        settings.append(&mut options.settings);
        options.settings = settings;
        options.database = Some(postgres.admin_url());
        options.nats = Some(nats.url());
        Ok(Self {
            nats,
            postgres,
            gateways,
            gateway_ports,
            second,
        })
    }

    /// Leads new connections of customers to the other gateway, if `process` is one.
    pub(crate) fn lead_away_from(&self, process: &str) {
        let [first, second] = self.gateway_ports;
        match process {
            "gateway" => self.gateways.lead_to(&[second]),
            "gateway-replica" => self.gateways.lead_to(&[first]),
            _ => {}
        }
    }

    pub(crate) fn lead_to_all_gateways(&self) {
        self.gateways.lead_to(&self.gateway_ports);
    }

    /// Replaces servers that have ended, as an orchestrator does, and describes what was done.
    pub(crate) async fn heal(&mut self) -> anyhow::Result<Vec<String>> {
        let mut done = Vec::new();
        if let Some(primary) = self.postgres.fail_over().await? {
            done.push(format!(
                "the primary of PostgreSQL has ended; {primary} is the primary now"
            ));
        }
        for server in self.nats.restart_ended().await? {
            done.push(format!("{server} had ended; it is restarted"));
        }
        for standby in self.postgres.replace_ended().await? {
            done.push(format!(
                "{standby} had ended; it is a standby with a new copy of the data"
            ));
        }
        Ok(done)
    }

    /// The process ids of the servers, by name.
    pub(crate) fn pids(&self) -> impl Iterator<Item = (String, u32)> {
        self.nats.pids().chain(self.postgres.pids())
    }

    pub(crate) async fn stop(self) -> anyhow::Result<()> {
        self.nats.stop().await?;
        self.postgres.stop().await
    }
}
