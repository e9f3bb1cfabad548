//! The answers of a node where all is well, for the tests to spoil.

use identity::{FleetName, NodeName};
use node_api::{
    ApplyStatus, AuditStatus, BaseRow, GossipStatus, HookUser, MapFill, PeerStatus, StateDiff, Status,
    StoreStatus, UnderlayStatus,
};

use crate::gather::{Answers, Heard, Peer};

fn node(name: &str) -> NodeName {
    NodeName::new(name).expect("samples are well-formed")
}

pub(in crate::check) fn answers() -> Answers {
    Answers {
        status: status(),
        base: Ok(Some(BaseRow {
            gateway: "10.200.1.1".parse().expect("samples are well-formed"),
            tunnel_port: 8472,
            mtu_bytes: 1_450,
        })),
        diff: Ok(StateDiff { differences: Vec::new(), repaired: false }),
        underlay_mtu_bytes: Some(1_500),
        hooks: Ok(vec![HookUser {
            device: "wrn1".to_owned(),
            direction: "ingress".to_owned(),
            hook: "tcx".to_owned(),
            name: "from_endpoint".to_owned(),
            program_id: Some(17),
            ours: true,
        }]),
        peers: Ok(vec![Peer {
            node: node("n2"),
            gateway: "10.200.2.1".parse().expect("samples are well-formed"),
            underlay: "192.0.2.2".to_owned(),
            heard: Heard { ping: true, clock_ahead_ms: Some(3) },
        }]),
    }
}

pub(in crate::check) fn status() -> Status {
    Status {
        node: node("n1"),
        fleet: FleetName::new("demo").expect("samples are well-formed"),
        fleet_id: None,
        agent_version: "0.1.0".to_owned(),
        uptime_ms: 184_000,
        incarnation: 1_700_000_000_123,
        ready: true,
        halted: None,
        warnings: Vec::new(),
        store: StoreStatus {
            kind: "etcd".to_owned(),
            connected: true,
            error: None,
            revision: Some(42),
            silent_ms: Some(700),
            lease_held: true,
            lease_error: None,
            requests_in_flight: 0,
            members: vec![node_api::EtcdMember {
                endpoint: "http://192.0.2.1:2379".to_owned(),
                healthy: true,
                version: Some("3.5.33".to_owned()),
                leader: Some(true),
                db_bytes: None,
                error: None,
            }],
            rejected: Vec::new(),
        },
        gossip: GossipStatus {
            enabled: true,
            peers: vec![
                PeerStatus { node: node("n2"), address: "192.0.2.2:8473".to_owned(), alive: true },
                PeerStatus { node: node("n3"), address: "192.0.2.3:8473".to_owned(), alive: true },
            ],
            refused_datagrams: 0,
        },
        cidrs: Vec::new(),
        endpoints: 2,
        nodes: 3,
        identities: 2,
        maps: vec![MapFill { name: "WARREN_EP_V4".to_owned(), entries: 2, max_entries: 100 }],
        programs: Vec::new(),
        apply: ApplyStatus {
            wanted_generation: 9,
            applied_generation: 9,
            pending: 0,
            failing: Vec::new(),
            full: Vec::new(),
        },
        audit: AuditStatus { unix_ms: None, differences: Vec::new(), repaired_total: 0 },
        underlay: UnderlayStatus {
            interface: "eth0".to_owned(),
            address: "192.0.2.1".parse().expect("samples are well-formed"),
            mtu_bytes: 1_500,
            pod_mtu_bytes: 1_450,
            reason: "the default route".to_owned(),
            problem: None,
            passed_over: Vec::new(),
        },
        last_error: None,
    }
}
