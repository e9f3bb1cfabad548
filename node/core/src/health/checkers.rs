//! Which nodes check an external backend: a few, which all nodes choose alike (rendezvous hashing: Thaler, Ravishankar,
//! "Using Name-Based Mappings to Increase Hit Rates", 1998).

use std::net::Ipv4Addr;

use identity::NodeName;

/// How many nodes check an external backend. Three: a node that cannot reach the backend is outvoted, and the death of one
/// node changes nothing.
const CHECKERS: usize = 3;

/// The nodes that check an address and port, of those that seem alive. The order of `nodes` does not matter; each node
/// occurs once.
pub(super) fn choose<'a>(
    nodes: impl Iterator<Item = &'a NodeName>,
    address: Ipv4Addr,
    port: u16,
) -> Vec<NodeName> {
    let mut best: Vec<(u64, &NodeName)> = Vec::with_capacity(CHECKERS + 1);
    for node in nodes {
        let entry = (score(node, address, port), node);
        let at = best.partition_point(|other| *other > entry);
        if at < CHECKERS {
            best.insert(at, entry);
            best.truncate(CHECKERS);
        }
    }
    best.into_iter().map(|(_, node)| node.clone()).collect()
}

/// Whether `votes` of the checkers are enough to decide.
pub(super) const fn is_majority(votes: usize, checkers: usize) -> bool {
    votes * 2 > checkers
}

/// Must never change: nodes of two builds would choose differently. FNV-1a over the name, then the step of SplitMix64.
fn score(node: &NodeName, address: Ipv4Addr, port: u16) -> u64 {
    let name = node.as_str().bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    mix(mix(name) ^ (u64::from(address.to_bits()) << 16 | u64::from(port)))
}

const fn mix(value: u64) -> u64 {
    let mut value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn fleet(count: usize) -> Vec<NodeName> {
        (0..count).map(|n| format!("n{n}").parse().unwrap()).collect()
    }

    #[test]
    fn checkers_are_chosen_alike_whatever_the_order_of_nodes() {
        let mut nodes = fleet(20);
        let address = Ipv4Addr::new(192, 0, 2, 1);
        let chosen = choose(nodes.iter(), address, 80);
        assert_eq!(chosen.len(), 3);
        nodes.reverse();
        assert_eq!(choose(nodes.iter(), address, 80), chosen);
        assert_eq!(choose(nodes[..2].iter(), address, 80).len(), 2);
    }

    #[test]
    fn checkers_of_other_nodes_stay_when_a_node_goes() {
        let nodes = fleet(20);
        let mut load: BTreeMap<NodeName, u32> = BTreeMap::new();
        for last in 0..=255 {
            let address = Ipv4Addr::new(192, 0, 2, last);
            let before = choose(nodes.iter(), address, 80);
            let after = choose(nodes[1..].iter(), address, 80);
            if before.contains(&nodes[0]) {
                assert_eq!(before.iter().filter(|node| !after.contains(node)).count(), 1);
            } else {
                assert_eq!(before, after);
            }
            before.into_iter().for_each(|node| *load.entry(node).or_default() += 1);
        }
        // 256 addresses, three checkers each, 20 nodes: some 38 a node.
        assert!(load.len() == 20 && load.values().all(|load| (15..=70).contains(load)), "{load:?}");
    }

    #[test]
    fn majority_is_more_than_half() {
        for (votes, checkers, counts) in [
            (0, 0, false),
            (0, 1, false),
            (1, 1, true),
            (1, 2, false),
            (2, 2, true),
            (1, 3, false),
            (2, 3, true),
        ] {
            assert_eq!(is_majority(votes, checkers), counts, "{votes} of {checkers}");
        }
    }
}
