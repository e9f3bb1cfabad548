//! Construction of the agent's parts from the configuration.

use std::{net::SocketAddr, sync::Arc};

use datapath_linux::{SocketConfig, Underlay, UnderlayChoice, XdpConfig, XdpMode, cgroup_root};
use datapath_plan::Masquerade;
use ipnetwork::IpNetwork;
use kvstore_etcd::EtcdStore;
use kvstore_store::Store;
use node_core::{DatapathConfig, NodeConfig, SavedEndpoint, Snapshot};
use node_gossip::{Gossip, GossipConfig, Keyring};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{
    check,
    config::{Config, DatapathSection, MasqueradeSection, StoreKind, XdpKind},
    endpoints::{self, EndpointKeeper},
    machine::Machine,
    recorder::Recorder,
    shell::{Core, GossipLink, known_underlay, memory},
    snapshot::{self, SnapshotKeeper},
};

/// Running parts, with their names.
pub type Tasks = JoinSet<(&'static str, anyhow::Result<()>)>;

/// Starts a part that ends by itself when the agent stops.
pub fn spawn(
    tasks: &mut Tasks,
    name: &'static str,
    task: impl Future<Output = anyhow::Result<()>> + Send + 'static,
) {
    tasks.spawn(async move { (name, task.await) });
}

/// Starts a part that may be dropped at any await when the agent stops.
pub fn spawn_until(
    stop: &CancellationToken,
    tasks: &mut Tasks,
    name: &'static str,
    task: impl Future<Output = anyhow::Result<()>> + Send + 'static,
) {
    let stop = stop.clone();
    spawn(tasks, name, async move { stop.run_until_cancelled(task).await.unwrap_or(Ok(())) });
}

/// How the node's underlay address is chosen.
pub fn underlay_choice(config: &Config) -> UnderlayChoice {
    let datapath = &config.datapath;
    match (&datapath.underlay_address, &datapath.underlay_interface) {
        (Some(address), _) => UnderlayChoice::Address(*address),
        (None, Some(interface)) => UnderlayChoice::Interface(interface.clone()),
        (None, None) => UnderlayChoice::Towards(check::literal_addresses(&config.etcd.endpoints)),
    }
}

/// Service translation at the socket, where it is configured and possible.
pub fn sockets(section: &DatapathSection) -> Option<SocketConfig> {
    if !section.socket_lb {
        return None;
    }
    let cgroup = section.cgroup.clone().or_else(cgroup_root);
    if cgroup.is_none() {
        warn!("cgroup2 is not mounted: services are translated packet by packet only");
    }
    cgroup.map(|cgroup| SocketConfig { cgroup, ends_tcp: section.socket_lb_ends_tcp })
}

/// The XDP program's configuration.
pub fn xdp(section: &DatapathSection) -> Option<XdpConfig> {
    let mode = match section.xdp {
        XdpKind::Off => return None,
        XdpKind::Native => XdpMode::Native,
        XdpKind::Generic => XdpMode::Generic,
    };
    let ipv4 = |network: &IpNetwork| match network {
        IpNetwork::V4(network) => Some(*network),
        IpNetwork::V6(_) => None,
    };
    Some(XdpConfig { mode, dropped: section.drop_cidrs.iter().filter_map(ipv4).collect() })
}

/// The store, and its tasks.
///
/// # Errors
/// An invalid configuration, or a file that cannot be read. An unreachable etcd is no error.
pub fn store(config: &Config, stop: &CancellationToken, tasks: &mut Tasks) -> anyhow::Result<Arc<dyn Store>> {
    Ok(match config.store {
        StoreKind::Etcd => Arc::new(EtcdStore::connect(check::etcd_config(&config.etcd)?)?),
        StoreKind::Memory => {
            let path = config.node.state_dir.join("store.json");
            let store = memory::open(&path)?;
            let client = Arc::new(store.client());
            let kept = memory::keep(client.clone(), path, stop.clone());
            spawn(tasks, "store file", async {
                kept.await;
                Ok(())
            });
            spawn_until(stop, tasks, "store clock", async {
                store.run_clock().await;
                Ok(())
            });
            client
        }
    })
}

/// The previous agent's snapshot, and the keeper of this one's; neither for a fleet of one node, whose store is a local
/// file.
pub fn snapshot(config: &Config, tasks: &mut Tasks) -> Option<(Option<Box<Snapshot>>, SnapshotKeeper)> {
    if config.store == StoreKind::Memory {
        return None;
    }
    let path = config.node.state_dir.join("snapshot");
    let former = snapshot::load(&path);
    let (keeper, write) = SnapshotKeeper::new(path);
    spawn(tasks, "snapshot file", async {
        write.await;
        Ok(())
    });
    Some((former, keeper))
}

/// The previous agent's endpoint files, and the keeper of this one's.
pub fn endpoints(config: &Config, tasks: &mut Tasks) -> (Vec<SavedEndpoint>, EndpointKeeper) {
    let folder = config.node.state_dir.join("endpoints");
    let former = endpoints::load(&folder);
    let (keeper, writers) = EndpointKeeper::new(folder, &former);
    for writer in writers {
        let written = tokio::task::spawn_blocking(|| writer.run());
        spawn(tasks, "endpoint files", async { Ok(written.await?) });
    }
    (former, keeper)
}

/// The log of events and its writer, unless it is switched off.
pub fn recorder(config: &Config, tasks: &mut Tasks) -> Option<Recorder> {
    let max_bytes = config.recorder.max_bytes;
    if max_bytes == 0 {
        return None;
    }
    let (recorder, write) = Recorder::new(config.node.state_dir.join("recorder"), max_bytes.into());
    let written = tokio::task::spawn_blocking(write);
    spawn(tasks, "recorder", async { Ok(written.await?) });
    Some(recorder)
}

/// Gossip and the task that receives its events; none for a fleet of one node.
///
/// # Errors
/// A key file that cannot be read, or an address that cannot be bound.
pub async fn gossip(
    config: &Config,
    machine: &Machine,
    underlay: &Underlay,
    core: &Core,
    stop: &CancellationToken,
    tasks: &mut Tasks,
) -> anyhow::Result<Option<GossipLink>> {
    if config.store == StoreKind::Memory {
        return Ok(None);
    }
    let address = SocketAddr::new(underlay.address, config.gossip.port);
    let (gossip, news) = Gossip::start(GossipConfig {
        fleet: config.fleet.name.clone(),
        fleet_id: None,
        node: machine.node.clone(),
        incarnation: machine.incarnation,
        bind: address,
        advertise: address,
        seeds: config.gossip.seeds.clone(),
        interval: config.gossip.interval,
        keyring: Keyring::load(&config.gossip.key_file)?,
    })
    .await?;
    let heard = GossipLink::listen(news, core.clone());
    spawn_until(stop, tasks, "gossip", async { Ok(heard.await?) });
    Ok(Some(GossipLink::new(gossip)))
}

fn datapath_config(config: &Config) -> DatapathConfig {
    let DatapathSection { mode, host_routing, native_routes, mtu_bytes, drop_cidrs, .. } = &config.datapath;
    let MasqueradeSection { enabled, ports, exclude } = &config.masquerade;
    DatapathConfig {
        mode: *mode,
        host_routing: *host_routing,
        native_routes: *native_routes,
        pod_mtu_bytes: mtu_bytes.map(u32::from),
        masquerade: enabled.then(|| Masquerade {
            first_port: ports.first,
            last_port: ports.last,
            exclude: exclude.iter().filter_map(without_host_bits).collect(),
        }),
        refused: drop_cidrs.clone(),
    }
}

/// 10.1.2.3/8 becomes 10.0.0.0/8.
fn without_host_bits(network: &IpNetwork) -> Option<IpNetwork> {
    IpNetwork::new(network.network(), network.prefix()).ok()
}

/// The configuration of node-core.
pub fn node_config(config: &Config, machine: &Machine, underlay: &Underlay) -> NodeConfig {
    NodeConfig {
        fleet: config.fleet.name.clone(),
        node: machine.node.clone(),
        node_labels: config.node.labels.clone(),
        underlay: known_underlay(underlay),
        pools: config.fleet.pools.clone(),
        service_pools: config.fleet.service_pools(),
        block_prefix_v4: config.fleet.block_prefix_v4,
        block_prefix_v6: config.fleet.block_prefix_v6,
        tunnel_port: config.fleet.tunnel_port,
        datapath: datapath_config(config),
        gossip_port: config.gossip.port,
        identity_labels: config.identity.labels.clone(),
        incarnation: machine.incarnation,
        machine_id: machine.machine_id.clone(),
        boot_id: machine.boot_id.clone(),
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        seed: [rand::random(), rand::random()],
        quarantine: config.fleet.quarantine,
        address_cooldown: config.fleet.address_cooldown,
        address_reserve: config.node.address_reserve,
        audit_interval: config.datapath.audit_interval,
        collect_interval: config.fleet.collect_interval,
    }
}
