//! The answers of a healthy node, for tests to change.

use identity::NodeName;
use node_api::{BaseRow, HookUser, StateDiff, testing};

use crate::gather::{Answers, Heard, Peer};

pub(in crate::check) fn answers() -> Answers {
    Answers {
        status: testing::status(),
        base: Ok(Some(BaseRow {
            gateway: "10.200.1.1".parse().expect("samples are well-formed"),
            tunnel_port: 8472,
            mtu_bytes: 1_450,
            mode: "tunnel".to_owned(),
            host_routing: "bpf".to_owned(),
            masquerade: None,
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
            node: NodeName::new("n2").expect("samples are well-formed"),
            gateway: "10.200.2.1".parse().expect("samples are well-formed"),
            underlay: "172.30.1.2".to_owned(),
            heard: Heard { ping: true, full_size: true, clock_ahead_ms: Some(3) },
        }]),
    }
}
