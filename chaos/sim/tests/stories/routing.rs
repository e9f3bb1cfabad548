//! The ways of packets: tunnel or routes, MTU, masquerade, and what an operator is told.

use std::{net::IpAddr, time::Duration};

use datapath_plan::{Masquerade, Mode, NextHop, RouteValue};
use ipnetwork::IpNetwork;
use node_core::{Event, NativeRoutes, NodeConfig};

use chaos_sim::{Sim, added, check, config};

fn native(n: u8) -> NodeConfig {
    let mut config = config(n);
    config.datapath.mode = Mode::Native;
    config
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// The routes of node 1: the one to its own block, and the others.
fn routes(sim: &Sim) -> (RouteValue, Vec<RouteValue>) {
    let own = sim.node(1).status().cidrs[0].cidr;
    let mut routes = sim.node(1).wanted().routes.clone();
    let own = routes.remove(&own).expect("a route to its own block");
    (own, routes.into_values().collect())
}

#[test]
fn native_routing_adds_routes_to_other_nodes() {
    let mut sim = Sim::with(31, vec![native(1), native(2)]);
    sim.settle();
    let base = sim.node(1).wanted().base.clone().expect("a base");
    assert_eq!((base.mode, base.mtu_bytes), (Mode::Native, 1500), "all that the underlay carries");
    let (own, others) = routes(&sim);
    assert_eq!(own.next_hop, None);
    let hop = |text| Some(NextHop { address: address(text), ifindex: 2 });
    assert_eq!(others.iter().map(|route| route.next_hop).collect::<Vec<_>>(), [hop("192.0.2.2")]);
    check::converged(&sim);

    // The other node moves, then this one gets another interface.
    sim.readdress(2, address("192.0.2.22"));
    sim.settle();
    assert_eq!(routes(&sim).1[0].next_hop, hop("192.0.2.22"));
    let mut underlay = sim.agent(1).config.underlay.clone();
    underlay.ifindex = 9;
    sim.agent(1).config.underlay = underlay.clone();
    sim.agent(1).push(Event::Underlay(underlay));
    sim.settle();
    assert_eq!(routes(&sim).1[0].next_hop, Some(NextHop { address: address("192.0.2.22"), ifindex: 9 }));
    assert_eq!(sim.node(1).status().warnings, [] as [String; 0]);
    check::converged(&sim);
}

#[test]
fn native_routing_warns_about_a_node_behind_a_router() {
    let mut far = native(2);
    far.underlay.addresses = vec![address("198.51.100.2")];
    far.underlay.network = "198.51.100.0/24".parse().expect("a network");
    let mut sim = Sim::with(32, vec![native(1), far]);
    sim.settle();
    assert_eq!(routes(&sim).1, []);
    let warnings = sim.node(1).status().warnings;
    assert!(
        warnings.len() == 1 && warnings[0].contains("node n2 at 198.51.100.2 is behind a router"),
        "{warnings:?}"
    );

    // The operator routes the network; the node removes its routes.
    let mut external = native(1);
    external.datapath.native_routes = NativeRoutes::External;
    let mut sim = Sim::with(33, vec![native(1), native(2)]);
    sim.settle();
    assert_eq!(routes(&sim).1.len(), 1);
    sim.reconfigure(1, external);
    sim.settle();
    sim.advance(Duration::from_secs(5));
    assert_eq!((routes(&sim).1, sim.node(1).status().warnings), (Vec::new(), Vec::new()));
    assert_eq!(sim.agents[0].kernel.tables().routes.len(), 1, "its own");
}

#[test]
fn refused_network_that_contains_a_node_is_reported() {
    let mut refusing = config(1);
    refusing.datapath.refused = ["203.0.113.0/24", "192.0.2.0/24"].map(|text| text.parse().unwrap()).into();
    let mut sim = Sim::with(38, vec![refusing, config(2)]);
    sim.settle();
    let warnings = sim.node(1).status().warnings;
    let expected = "datapath.drop_cidrs has 192.0.2.0/24, and node n2 is at 192.0.2.2: ";
    assert!(warnings.len() == 1 && warnings[0].starts_with(expected), "{warnings:?}");
}

#[test]
fn mode_mismatch_is_reported_during_a_gradual_change() {
    let mut sim = Sim::with(34, vec![config(1), config(2)]);
    sim.settle();
    added(sim.add(1, "a", "app=a"));
    let warnings = |sim: &Sim, n| sim.node(n).status().warnings;
    assert_eq!(warnings(&sim, 1), [] as [String; 0]);
    for (n, differ) in [(1, true), (2, false)] {
        sim.agent(n).config.datapath.mode = Mode::Native;
        sim.restart(n);
        sim.settle();
        sim.advance(Duration::from_secs(5));
        for n in 1..=2 {
            let warnings = warnings(&sim, n);
            assert_eq!(warnings.len(), usize::from(differ), "{warnings:?}");
            assert!(warnings.iter().all(|text| text.contains("datapath.mode")), "{warnings:?}");
        }
    }
    assert_eq!(routes(&sim).1.len(), 1);
    assert!(sim.node(1).endpoints().len() == 1, "endpoints stay");
    check::converged(&sim);
}

#[test]
fn mtu_setting_is_limited_by_the_underlay() {
    let check = |wanted: u32, underlay: u32, expected: u32, warned: bool| {
        let mut config = config(1);
        config.datapath.pod_mtu_bytes = Some(wanted);
        config.underlay.mtu_bytes = underlay;
        let mut sim = Sim::with(35, vec![config]);
        sim.settle();
        let status = sim.node(1).status();
        assert_eq!(status.pod_mtu_bytes, expected);
        assert_eq!(!status.warnings.is_empty(), warned, "{:?}", status.warnings);
        assert_eq!(sim.node(1).wanted().base.as_ref().expect("a base").mtu_bytes, expected);
    };
    check(1400, 1500, 1400, false);
    check(1450, 1500, 1450, false);
    check(1451, 1500, 1450, true);
    check(8950, 1500, 1450, true);
}

#[test]
fn masquerade_excludes_the_pools() {
    let mut config = config(1);
    let prefix = |text: &str| text.parse::<IpNetwork>().expect("a prefix");
    let exclude = [prefix("172.16.0.0/12")].into();
    config.datapath.masquerade = Some(Masquerade { first_port: 61_000, last_port: 65_535, exclude });
    let mut sim = Sim::with(36, vec![config]);
    sim.settle();
    let base = sim.node(1).wanted().base.clone().expect("a base");
    let exclude = base.masquerade.expect("wanted").exclude;
    assert_eq!(exclude.into_iter().collect::<Vec<_>>(), [prefix("10.0.0.0/16"), prefix("172.16.0.0/12")]);
    assert_eq!((base.underlay.address, base.underlay.ifindex), (address("192.0.2.1"), 2));
}

/// The programs know IPv4 only; an operation that always fails would be retried for ever.
#[test]
fn ipv6_address_of_another_node_is_ignored() {
    let mut dual = config(2);
    dual.underlay.addresses.push(address("2001:db8::2"));
    let mut sim = Sim::with(37, vec![config(1), dual]);
    sim.settle();
    assert!(sim.node(1).wanted().ipcache.keys().all(IpNetwork::is_ipv4));
    assert!(sim.node(1).wanted().nodes.len() == 1);
    check::converged(&sim);
}
