//! Real values, encoded by the current code.

use datapath_plan::{Attachment, EndpointId, Mac};
use identity::{EndpointName, Identity, Labels, NodeName};
use ipnetwork::IpNetwork;
use kvstore_schema::{
    Revision, StoreIdentity,
    record::{
        AliveRecord, CidrRecord, ClaimState, EndpointRecord, FleetRecord, IdentityIdRecord,
        IdentityLabelsRecord, IdentityRefRecord, NodeRecord,
    },
    service::{NodePortGiven, ServiceClaimRecord, ServiceProtocol, ServiceRecord, ServiceSpec},
};
use node_core::{SavedCidr, SavedEndpoint, SavedIdentity, SavedNode, SavedRecord, Snapshot};
use node_facts::{CidrFact, NodeFacts, NodeHealth, PendingEndpoint, PendingOp, Unwell};

pub fn node(name: &str) -> NodeName {
    name.parse().expect("a name")
}

pub fn endpoint_name(name: &str) -> EndpointName {
    name.parse().expect("a name")
}

pub fn labels(text: &str) -> Labels {
    text.parse().expect("labels")
}

pub fn network(text: &str) -> IpNetwork {
    text.parse().expect("a network")
}

pub fn fleet_record() -> FleetRecord {
    FleetRecord {
        fleet_id: "f00".to_owned(),
        pools: vec![network("10.0.0.0/16")],
        service_pools: vec![network("10.201.0.0/16")],
        block_prefix_v4: 24,
        block_prefix_v6: 112,
        tunnel_port: 8472,
        life: Default::default(),
        unknown: Default::default(),
    }
}

pub fn node_record() -> NodeRecord {
    NodeRecord {
        underlay: vec!["192.0.2.2".parse().expect("an address")],
        moves: 1,
        datapath_mode: Some("tunnel".to_owned()),
        cidrs: vec![network("10.0.1.0/24")],
        gateway: "10.0.1.1".parse().ok(),
        gossip_port: 7946,
        labels: labels("rack=r1"),
        boot_id: "boot".to_owned(),
        machine_id: "machine-2".to_owned(),
        incarnation: 3,
        agent_version: "0.1.0".to_owned(),
        unknown: Default::default(),
    }
}

pub fn alive_record() -> AliveRecord {
    AliveRecord { incarnation: 3, machine_id: "machine-2".to_owned(), unknown: Default::default() }
}

pub fn cidr_record() -> CidrRecord {
    CidrRecord {
        node: node("n2"),
        state: ClaimState::Live,
        token: "machine-2/3/1".to_owned(),
        since: None,
        unknown: Default::default(),
    }
}

pub fn identity_labels_record() -> IdentityLabelsRecord {
    IdentityLabelsRecord { id: Identity::FLEET_MIN, labels: labels("app=web"), unknown: Default::default() }
}

pub fn identity_id_record() -> IdentityIdRecord {
    IdentityIdRecord {
        labels: labels("app=web"),
        state: ClaimState::Quarantined,
        unknown: Default::default(),
    }
}

pub fn identity_ref_record() -> IdentityRefRecord {
    IdentityRefRecord { incarnation: 3, unknown: Default::default() }
}

pub fn endpoint_record() -> EndpointRecord {
    EndpointRecord {
        name: endpoint_name("web-1"),
        identity: Identity::FLEET_MIN,
        labels_digest: labels("app=web").digest(),
        labels: labels("app=web,version=2"),
        terminating: false,
        unknown: Default::default(),
    }
}

pub fn service_spec() -> ServiceSpec {
    let json = r#"{"ports":[{"name":"http","port":80,"targetPort":8080,"nodePort":"auto","hostPort":8080},{"name":"dns","protocol":"udp","port":53}],
        "externalIps":["198.51.100.7"],"affinity":{"timeoutSeconds":60},"sourceRanges":["203.0.113.0/24"],"trafficPolicy":"local","mode":"dsr","topology":"zone",
        "selector":{"matchLabels":{"app":"web"},"matchExpressions":[{"key":"version","operator":"In","values":["1","2"]}]}}"#;
    serde_json::from_str::<ServiceSpec>(json).expect("a spec").normalised()
}

pub fn service_record() -> ServiceRecord {
    ServiceRecord {
        spec: service_spec(),
        virtual_ip: "10.201.0.5".parse().expect("an address"),
        node_ports: vec![NodePortGiven { protocol: ServiceProtocol::Tcp, port: 80, node_port: 30_080 }],
        unknown: Default::default(),
    }
}

pub fn service_claim_record() -> ServiceClaimRecord {
    ServiceClaimRecord { service: "web".parse().expect("a name"), unknown: Default::default() }
}

pub fn facts() -> NodeFacts {
    let change = |host: u8, op, sequence| PendingEndpoint {
        ip: [10, 0, 1, host].into(),
        identity: Identity::FLEET_MIN,
        labels_digest: labels("app=web").digest(),
        labels: labels("app=web,version=2"),
        name: endpoint_name("web-1"),
        terminating: sequence == 1,
        op,
        sequence,
        recorded: (sequence == 0).then_some(11),
    };
    NodeFacts {
        fleet_id: "f00".to_owned(),
        node: node("n2"),
        incarnation: 3,
        underlay: vec![[192, 0, 2, 2].into()],
        moves: 1,
        gateway: Some([10, 0, 1, 1].into()),
        cidrs: vec![CidrFact { cidr: network("10.0.1.0/24"), life: 0, epoch: 7 }],
        applied_generation: 12,
        recorded_life: 0,
        cut_off: true,
        recorded_revision: 12,
        health: NodeHealth::degraded("etcd is away"),
        unwell: vec![Unwell {
            service: "web".parse().expect("a name"),
            address: [10, 0, 1, 2].into(),
            port: 8080,
            why: "connection refused".to_owned(),
        }],
        pending: vec![
            change(5, PendingOp::Added, 1),
            change(6, PendingOp::Removed, 2),
            change(7, PendingOp::Added, 0),
        ],
    }
}

/// An endpoint of node `n1`.
pub fn saved_endpoint() -> SavedEndpoint {
    SavedEndpoint {
        id: EndpointId(1),
        name: endpoint_name("web-1"),
        labels: labels("app=web"),
        attachment: Some(Attachment::Netns { path: "/run/netns/web".into(), interface: "eth0".to_owned() }),
        address: [10, 0, 0, 2].into(),
        mac: Mac([2, 0, 0, 0, 0, 1]),
        host_mac: Mac([2, 0, 0, 0, 0, 2]),
        ready: true,
        terminating: false,
    }
}

/// What node `n1` on machine `machine-1` saves of the fleet.
pub fn snapshot() -> Snapshot {
    let saved = |name: &str, last: u8| SavedNode {
        name: node(name),
        underlay: vec![[192, 0, 2, last].into()],
        gateway: Some([10, 0, last - 1, 1].into()),
        gossip_port: 7946,
        labels: labels("rack=r1"),
        machine_id: format!("machine-{last}"),
        incarnation: 3,
        agent_version: "0.1.0".to_owned(),
    };
    let block = |name: &str, cidr: &str| SavedCidr {
        cidr: network(cidr),
        node: node(name),
        state: ClaimState::Live,
        since: None,
        epoch: Revision(5),
    };
    let record = |address: [u8; 4]| SavedRecord {
        address: address.into(),
        identity: Identity::FLEET_MIN,
        name: endpoint_name("web-1"),
        terminating: false,
    };
    Snapshot {
        fleet: "test".parse().expect("a name"),
        fleet_id: "f00".to_owned(),
        node: node("n1"),
        machine_id: "machine-1".to_owned(),
        store: StoreIdentity(1),
        life: Default::default(),
        revision: Revision(42),
        mark: None,
        heard_at: std::time::Duration::from_secs(1_700_000_000),
        nodes: vec![saved("n1", 1), saved("n2", 2)],
        cidrs: vec![block("n1", "10.0.0.0/24"), block("n2", "10.0.1.0/24")],
        identities: vec![SavedIdentity {
            id: Identity::FLEET_MIN,
            labels: labels("app=web"),
            referenced: true,
        }],
        records: vec![(node("n1"), vec![record([10, 0, 0, 2])]), (node("n2"), vec![record([10, 0, 1, 5])])],
        services: vec![("web".parse().expect("a name"), std::sync::Arc::new(service_record()))],
    }
}
