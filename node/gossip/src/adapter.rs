//! Conversion to chitchat's types: its configuration, and its state as sightings.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use chitchat::{Chitchat, ChitchatConfig, ChitchatId, FailureDetectorConfig, ProtocolVersion};
use identity::{FleetName, NodeName};

use crate::{
    config::{DEAD_NODE_GRACE, PHI_THRESHOLD, TOMBSTONE_GRACE},
    table::{PeerTable, Sighting},
};

/// The identity and timing of this node's gossip.
pub(crate) struct Membership {
    pub fleet: FleetName,
    pub node: NodeName,
    pub advertise: SocketAddr,
    pub seeds: Vec<String>,
    pub interval: Duration,
}

/// chitchat's configuration for one run of its task.
pub(crate) fn chitchat_config(membership: &Membership, generation: u64) -> ChitchatConfig {
    let Membership { fleet, node, advertise, seeds, interval } = membership;
    ChitchatConfig {
        chitchat_id: ChitchatId::new(node.as_str(), generation, *advertise),
        cluster_id: fleet.as_str().to_owned(),
        gossip_interval: *interval,
        listen_addr: *advertise,
        seed_nodes: seeds.clone(),
        failure_detector_config: FailureDetectorConfig {
            phi_threshold: PHI_THRESHOLD,
            // chitchat's default of 5 s would delay the detection of a young node's death.
            initial_interval: *interval,
            max_interval: *interval * 10,
            dead_node_grace_period: DEAD_NODE_GRACE,
            ..FailureDetectorConfig::default()
        },
        marked_for_deletion_grace_period: TOMBSTONE_GRACE,
        catchup_callback: None,
        extra_liveness_predicate: None,
        protocol_version: ProtocolVersion::V1,
    }
}

/// Every incarnation of other nodes that chitchat knows; values are copied only if they are new, as chitchat's mutex
/// is held meanwhile.
pub(crate) fn sightings(chitchat: &Chitchat, table: &PeerTable) -> Vec<Sighting> {
    let alive: BTreeSet<&ChitchatId> = chitchat.live_nodes().collect();
    let sighting = |(id, state): (&ChitchatId, &chitchat::NodeState)| {
        let version = state.max_version();
        let current = table.is_current(&id.node_id, id.generation_id, version);
        let copy = || state.key_values().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        Sighting {
            name: id.node_id.clone(),
            generation: id.generation_id,
            address: id.gossip_advertise_addr,
            alive: alive.contains(id),
            heartbeat: state.heartbeat().into(),
            version,
            values: (!current).then(copy),
        }
    };
    chitchat.node_states().iter().filter(|(id, _)| *id != chitchat.self_chitchat_id()).map(sighting).collect()
}
