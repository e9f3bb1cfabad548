//! Sample answers of an agent, for the tests of other crates.

use identity::{FleetName, NodeName};

use crate::{
    ApplyStatus, AuditStatus, CidrStatus, EtcdMember, GossipStatus, MapFill, PassedOver, PeerStatus,
    ProgramStatus, Status, StoreStatus, UnderlayStatus,
};

fn parse<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
    text.parse().expect("samples are well-formed")
}

fn node_name(text: &str) -> NodeName {
    NodeName::new(text).expect("samples are well-formed")
}

fn member(number: u8, leader: bool) -> EtcdMember {
    EtcdMember {
        endpoint: format!("https://172.30.2.{number}:2379"),
        healthy: true,
        version: Some("3.5.33".to_owned()),
        leader: Some(leader),
        db_bytes: Some(24_576),
        error: None,
    }
}

fn peer(number: u8, alive: bool) -> PeerStatus {
    PeerStatus { node: node_name(&format!("n{number}")), address: format!("172.30.1.{number}:7950"), alive }
}

/// The status of a healthy node n1, with two endpoints, in a fleet of three nodes and three etcd members.
pub fn status() -> Status {
    Status {
        node: node_name("n1"),
        fleet: FleetName::new("demo").expect("samples are well-formed"),
        fleet_id: Some("5b0c1f0e9d2a4b7c".to_owned()),
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
            members: vec![member(1, false), member(2, true), member(3, false)],
            rejected: Vec::new(),
        },
        gossip: GossipStatus {
            enabled: true,
            peers: vec![peer(2, true), peer(3, true)],
            refused_datagrams: 0,
        },
        cidrs: vec![CidrStatus { cidr: parse("10.200.7.0/24"), epoch: 12, used: 3, cooling: 0, free: 251 }],
        endpoints: 2,
        nodes: 3,
        identities: 2,
        maps: vec![
            MapFill { name: "WARREN_EP_V4".to_owned(), entries: 2, max_entries: 16_384 },
            MapFill { name: "WARREN_IPC_V4".to_owned(), entries: 10, max_entries: 524_288 },
        ],
        programs: vec![ProgramStatus {
            name: "from_endpoint".to_owned(),
            devices: vec!["wrn1".to_owned(), "wrn2".to_owned()],
            hook: "tcx".to_owned(),
        }],
        apply: ApplyStatus {
            wanted_generation: 9,
            applied_generation: 9,
            pending: 0,
            failing: Vec::new(),
            full: Vec::new(),
        },
        audit: AuditStatus { unix_ms: Some(1_700_000_000_123), differences: Vec::new(), repaired_total: 0 },
        underlay: UnderlayStatus {
            interface: "eth0".to_owned(),
            address: parse("172.30.1.1"),
            mtu_bytes: 1_500,
            pod_mtu_bytes: 1_450,
            reason: "the configured address".to_owned(),
            problem: None,
            passed_over: vec![PassedOver {
                interface: "docker0".to_owned(),
                reason: "a bridge device: must be named to be used".to_owned(),
            }],
        },
        last_error: None,
    }
}
