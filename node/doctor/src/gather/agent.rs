//! What the agent says of itself.

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

/// The longest that one answer may take: the status asks every etcd member with a deadline of 5 s by default,
/// and an agent that needs three times that is no agent to wait for.
const ANSWER_LIMIT: Duration = Duration::from_secs(15);

/// The agent, as far as it answers.
#[derive(Debug)]
pub(crate) enum Agent {
    /// Nobody listens.
    Absent(String),
    /// Somebody listens, but not for us.
    Forbidden(String),
    /// It listens, and does not answer as it should.
    Broken(String),
    /// It answers.
    Answers(Box<Answers>),
}

/// Its answers.
#[derive(Debug)]
pub(crate) struct Answers {
    pub(crate) status: Status,
    /// What it wants of its devices; `None` until the node has a pod CIDR.
    pub(crate) base: Result<Option<BaseRow>, String>,
    pub(crate) diff: Result<StateDiff, String>,
    /// MTU of the underlay's device now; the agent tells that of its start.
    pub(crate) underlay_mtu_bytes: Option<u32>,
    /// What is at the hooks of our devices and the underlay's.
    pub(crate) hooks: Result<Vec<HookUser>, String>,
    /// The other nodes that gossip hears, and what they answered through the overlay.
    pub(crate) peers: Result<Vec<Peer>, String>,
}

/// Another node, asked through the overlay.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    pub(crate) node: NodeName,
    /// Its own address in the pod network: whom we asked.
    pub(crate) gateway: Ipv4Addr,
    /// Where the tunnel to it leads.
    pub(crate) underlay: String,
    pub(crate) heard: Heard,
}

/// Asks for all that the checks need; changes nothing.
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
        // Without a gateway of our own no answer finds its way back.
        Ok(Some(base)) => {
            let nodes = within_limit(client.nodes()).await.map(|listing| listing.items);
            ask_peers(nodes, base).await
        }
        Ok(None) => Err("the node has no pod CIDR yet".to_owned()),
        Err(error) => Err(error.clone()),
    };
    Agent::Answers(Box::new(Answers { status, base, diff, underlay_mtu_bytes, hooks, peers }))
}

/// Asks those whom gossip hears: of the others nobody would know whether the tunnel is to blame.
async fn ask_peers(nodes: Result<Vec<Node>, String>, base: &BaseRow) -> Result<Vec<Peer>, String> {
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
    // Without a tunnel routes lead straight to the other nodes.
    let device = tunnels(base).then_some(peers::HOST_DEVICE);
    let heard = tokio::task::spawn_blocking(move || peers::ask(&gateways, device, mtu_bytes))
        .await
        .map_err(|error| format!("asking other nodes: {error}"))?
        .map_err(|error| format!("other nodes cannot be asked from here: {error}"))?;
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
