//! The agent's answers.

use std::{
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use identity::NodeName;
use node_api::{BaseRow, Client, ClientError, DiffQuery, HookUser, Node, StateDiff, Status};

use super::{
    device,
    peers::{self, Heard},
};

/// The time to wait for one answer: three times the default deadline of the agent's own request to each etcd member.
const ANSWER_LIMIT: Duration = Duration::from_secs(15);

/// The state of the agent.
#[derive(Debug)]
pub(crate) enum Agent {
    /// No process listens on the socket.
    Absent(String),
    /// The caller may not use the socket.
    Forbidden(String),
    /// The agent listens, but does not answer as expected.
    Broken(String),
    /// The agent answers.
    Answers(Box<Answers>),
}

/// The answers of the agent.
#[derive(Debug)]
pub(crate) struct Answers {
    pub(crate) status: Status,
    /// The desired base; `None` until the node has a pod CIDR.
    pub(crate) base: Result<Option<BaseRow>, String>,
    pub(crate) diff: Result<StateDiff, String>,
    /// The present MTU of the underlay device.
    pub(crate) underlay_mtu_bytes: Option<u32>,
    /// The users of the hooks of Warren's devices and of the underlay device.
    pub(crate) hooks: Result<Vec<HookUser>, String>,
    /// The other nodes that are alive in gossip, with their answers on the pods' path.
    pub(crate) peers: Result<Vec<Peer>, String>,
}

/// Another node, probed on the pods' path.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    pub(crate) node: NodeName,
    /// The node's own address in the pod network, which is probed.
    pub(crate) gateway: Ipv4Addr,
    /// The node's underlay address.
    pub(crate) underlay: String,
    pub(crate) heard: Heard,
}

/// Requests all that the checks need. Changes nothing.
pub(crate) async fn agent(client: &Client) -> Agent {
    let status = match tokio::time::timeout(ANSWER_LIMIT, client.status()).await {
        Err(_) => return Agent::Broken(silence()),
        Ok(Err(error @ ClientError::Connect { .. })) => return Agent::Absent(error.to_string()),
        Ok(Err(error @ ClientError::Permission { .. })) => return Agent::Forbidden(error.to_string()),
        Ok(Err(error)) => return Agent::Broken(error.to_string()),
        Ok(Ok(status)) => status,
    };
    let base = within_limit(client.state()).await.map(|state| state.base());
    let diff = within_limit(client.state_diff(&DiffQuery { repair: false })).await;
    let underlay_mtu_bytes = device::mtu_bytes(&status.underlay.interface);
    let hooks = within_limit(client.hooks()).await.map(|listing| listing.items);
    let peers = match &base {
        // Without a gateway of this node no answer finds its way back.
        Ok(Some(base)) => {
            let nodes = within_limit(client.nodes()).await.map(|listing| listing.items);
            probe_peers(nodes, base).await
        }
        Ok(None) => Err("the node has no pod CIDR yet".to_owned()),
        Err(error) => Err(error.clone()),
    };
    Agent::Answers(Box::new(Answers { status, base, diff, underlay_mtu_bytes, hooks, peers }))
}

/// Probes the nodes that are alive in gossip: another node may be down, which would say nothing about the tunnel.
async fn probe_peers(nodes: Result<Vec<Node>, String>, base: &BaseRow) -> Result<Vec<Peer>, String> {
    let peer = |node: Node| match node.gateway? {
        IpAddr::V4(gateway) if !node.this_node && node.alive_in_gossip == Some(true) => Some(Peer {
            node: node.name,
            gateway,
            underlay: node.underlay.first().map_or_else(|| "no address".to_owned(), IpAddr::to_string),
            heard: Heard::default(),
        }),
        _ => None,
    };
    let mut found: Vec<Peer> = nodes?.into_iter().filter_map(peer).collect();
    let gateways: Vec<Ipv4Addr> = found.iter().map(|peer| peer.gateway).collect();
    let mtu_bytes = base.mtu_bytes;
    // Without a tunnel, routes lead to the other nodes directly.
    let device = tunnels(base).then_some(peers::HOST_DEVICE);
    let heard = tokio::task::spawn_blocking(move || peers::ask(&gateways, device, mtu_bytes))
        .await
        .map_err(|error| format!("probe other nodes: {error}"))?
        .map_err(|error| format!("other nodes cannot be probed: {error}"))?;
    for peer in &mut found {
        peer.heard = heard.get(&peer.gateway).copied().unwrap_or_default();
    }
    Ok(found)
}

/// Whether packets to other nodes go through a tunnel.
pub(crate) fn tunnels(base: &BaseRow) -> bool {
    base.mode == "tunnel"
}

async fn within_limit<T>(answer: impl Future<Output = Result<T, ClientError>>) -> Result<T, String> {
    match tokio::time::timeout(ANSWER_LIMIT, answer).await {
        Err(_) => Err(silence()),
        Ok(answer) => answer.map_err(|error| error.to_string()),
    }
}

fn silence() -> String {
    format!("the agent gave no answer within {} s", ANSWER_LIMIT.as_secs())
}
