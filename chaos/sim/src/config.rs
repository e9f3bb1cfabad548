//! The words that stories are told in: nodes, endpoints, answers.

use std::{net::IpAddr, time::Duration};

use datapath_plan::Attachment;
use identity::{EndpointName, Identity, Labels};
use node_core::{CallError, EndpointSpec, NodeConfig, Reply, Underlay};

/// The configuration of node number `n` (from 1).
pub fn config(n: u8) -> NodeConfig {
    NodeConfig {
        fleet: "test".parse().expect("a name"),
        node: format!("n{n}").parse().expect("a name"),
        node_labels: Labels::default(),
        underlay: Underlay {
            addresses: vec![[192, 0, 2, n].into()],
            network: "192.0.2.0/24".parse().expect("a network"),
            ifindex: 2,
            mtu_bytes: 1500,
        },
        pools: vec!["10.0.0.0/16".parse().expect("a pool")],
        service_pools: vec!["10.201.0.0/16".parse().expect("a pool")],
        block_prefix_v4: 24,
        block_prefix_v6: 112,
        tunnel_port: 8472,
        datapath: Default::default(),
        gossip_port: 7946,
        identity_labels: Vec::new(),
        incarnation: 1,
        machine_id: format!("machine-{n}"),
        boot_id: "boot".to_owned(),
        agent_version: "test".to_owned(),
        seed: [u64::from(n), 7],
        quarantine: Duration::from_secs(900),
        address_cooldown: Duration::from_secs(60),
        address_reserve: 0,
        audit_interval: Duration::from_secs(300),
        collect_interval: Duration::from_secs(10),
    }
}

/// A name of an endpoint.
pub fn name(text: &str) -> EndpointName {
    text.parse().expect("a name")
}

/// An endpoint as a caller asks for it.
pub fn spec(endpoint: &str, labels: &str) -> EndpointSpec {
    EndpointSpec {
        name: name(endpoint),
        labels: labels.parse().expect("labels"),
        attachment: Attachment::Netns {
            path: format!("/run/netns/{endpoint}").into(),
            interface: "eth0".to_owned(),
        },
        address: None,
    }
}

/// The address and identity of an endpoint that was to be added.
pub fn added(reply: Result<Reply, CallError>) -> (IpAddr, Identity) {
    match reply {
        Ok(Reply::EndpointAdded { address, identity, .. }) => (address, identity),
        other => panic!("not added: {other:?}"),
    }
}
