//! Ten agents that start at the same moment on an empty etcd agree on everything.

use std::{
    collections::{BTreeMap, BTreeSet},
    thread,
};

use anyhow::ensure;
use chaos_lab::{Endpoint, Lab, ask, wait};
use ipnetwork::IpNetwork;

use crate::support::{SOON, TestLab};

const NODES: u8 = 10;
const ENDPOINTS_PER_NODE: usize = 10;

#[test]
fn claims_of_ten_simultaneous_agents_agree() {
    let Some(lab) = TestLab::up("ten", NODES, 1) else { return };
    let cidrs = claimed_cidrs(&lab);
    for (index, one) in cidrs.iter().enumerate() {
        for other in &cidrs[index + 1..] {
            assert!(!one.contains(other.network()) && !other.contains(one.network()), "{one} and {other}");
        }
    }

    // Every node has the ten label sets in another order, at the same moment: this is how two identities for one set
    // would arise.
    let endpoints: Vec<Endpoint> = thread::scope(|scope| {
        let lab: &Lab = &lab;
        let threads: Vec<_> = lab
            .spec()
            .node_names()
            .enumerate()
            .map(|(number, node)| {
                scope.spawn(move || {
                    (0..ENDPOINTS_PER_NODE)
                        .map(|index| {
                            let labels = format!("app=app-{}", (number + index) % ENDPOINTS_PER_NODE);
                            lab.add_endpoint(&node, &format!("w{index}"), &labels.parse().unwrap()).unwrap()
                        })
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(endpoints.len(), usize::from(NODES) * ENDPOINTS_PER_NODE);
    let addresses: BTreeSet<_> = endpoints.iter().map(|endpoint| endpoint.address).collect();
    assert_eq!(addresses.len(), endpoints.len(), "an address was given out twice");
    let mut identities: BTreeMap<&str, BTreeSet<u32>> = BTreeMap::new();
    for endpoint in &endpoints {
        assert!(
            cidrs.iter().any(|cidr| cidr.contains(endpoint.address)),
            "{} is in no block",
            endpoint.address
        );
        identities.entry(&endpoint.labels).or_default().insert(endpoint.identity);
    }
    assert_eq!(identities.len(), ENDPOINTS_PER_NODE);
    assert!(identities.values().all(|numbers| numbers.len() == 1), "{identities:?}");
    let numbers: BTreeSet<u32> = identities.values().flatten().copied().collect();
    assert_eq!(numbers.len(), ENDPOINTS_PER_NODE, "two label sets share a number: {identities:?}");

    lab.wait_in_ipcache("n10", &endpoints);
    // Gossip may be faster than etcd, and dependent records are written later.
    wait::until("etcd to have it all", SOON, || {
        let kinds = recorded_kinds(&lab);
        ensure!(kinds == expected_kinds(), "it has {kinds:?}");
        Ok(())
    })
    .unwrap();
}

fn expected_kinds() -> BTreeMap<String, usize> {
    let nodes = usize::from(NODES);
    let kinds = [
        ("alive", nodes),
        ("cidrs", nodes),
        ("endpoints", nodes * ENDPOINTS_PER_NODE),
        ("fleet", 1),
        ("identities/id", ENDPOINTS_PER_NODE),
        ("identities/labels", ENDPOINTS_PER_NODE),
        ("identities/refs", nodes * ENDPOINTS_PER_NODE),
        ("nodes", nodes),
    ];
    kinds.map(|(kind, count)| (kind.to_owned(), count)).into()
}

/// The blocks of all nodes, as reported by each node's own agent.
fn claimed_cidrs(lab: &TestLab) -> Vec<IpNetwork> {
    let of = |node: String| ask(lab.api(&node).status()).unwrap().cidrs;
    let cidrs: Vec<IpNetwork> = lab.spec().node_names().flat_map(of).map(|status| status.cidr).collect();
    assert!(cidrs.len() >= usize::from(NODES), "{cidrs:?}");
    cidrs
}

/// The records of `etcdctl get --prefix`, counted by kind: the keys of DESIGN section 4, each value JSON with a
/// version.
fn recorded_kinds(lab: &TestLab) -> BTreeMap<String, usize> {
    let fleet = lab.name().as_str();
    let prefix = format!("/warren/v1/{fleet}/");
    let mut command = lab.command("e1", "etcdctl").unwrap();
    command.env("ETCDCTL_API", "3").args(["get", "--prefix", "/warren/"]);
    let (code, text, stderr) = crate::support::finish(&mut command);
    assert_eq!(code, 0, "{stderr}");
    let lines: Vec<&str> = text.lines().collect();
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    for record in lines.chunks(2) {
        let [key, value] = record else { panic!("a record of more than one line: {record:?}") };
        let value: serde_json::Value = serde_json::from_str(value).unwrap();
        assert!(value["v"].is_u64(), "{key} has no version: {value}");
        let rest = key.strip_prefix(&prefix).unwrap_or_else(|| panic!("{key} is not below {prefix}"));
        let kind = match rest.strip_prefix("identities/") {
            Some(rest) => format!("identities/{}", rest.split('/').next().unwrap()),
            None => rest.split('/').next().unwrap().to_owned(),
        };
        *kinds.entry(kind).or_default() += 1;
    }
    // The store's mark is written 10 to 20 s after the first record, whether or not the fleet is done by then.
    kinds.remove("mark");
    kinds
}
