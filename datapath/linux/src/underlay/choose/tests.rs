//! What is chosen of which stack, and why.

use super::*;
use crate::netlink::Link;

/// A stack in lines: `NAME [KIND] [down] ADDRESS…`, and `default NAME` or `way TARGET NAME` for routes.
fn stack(lines: &str) -> Stack {
    let mut stack = Stack::default();
    for (number, line) in (1..).zip(lines.lines()) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let index_of = |stack: &Stack, name: &str| {
            stack.devices.iter().find(|device| device.link.name == name).map_or(0, |device| device.link.index)
        };
        match words[..] {
            ["default", name] => {
                let device = index_of(&stack, name);
                stack.defaults.push(route(device));
            }
            ["way", target, name] => {
                let device = index_of(&stack, name);
                stack.ways.push((target.parse().unwrap(), route(device)));
            }
            [name, ref rest @ ..] => {
                let mut link =
                    Link { index: number, name: name.into(), up: true, mtu_bytes: 1500, ..Link::default() };
                let mut addresses = Vec::new();
                for word in rest {
                    match word.parse() {
                        Ok(address) => addresses.push(address),
                        Err(_) if *word == "down" => link.up = false,
                        Err(_) => link.kind = (*word).into(),
                    }
                }
                stack.devices.push(Device { link, addresses });
            }
            [] => {}
        }
    }
    stack
}

fn route(device: u32) -> Route {
    let destination = "0.0.0.0/0".parse().unwrap();
    Route {
        destination,
        device,
        gateway: None,
        source: None,
        priority: 0,
        mtu_bytes: None,
        protocol: 0,
        table: 254,
    }
}

fn towards() -> UnderlayChoice {
    UnderlayChoice::Towards(Vec::new())
}

fn summary(chosen: Result<Underlay, DatapathError>) -> String {
    match chosen {
        Ok(found) => {
            let others: Vec<String> = found
                .passed_over
                .iter()
                .map(|other| format!("; {} {}", other.interface, other.reason))
                .collect();
            format!("{} {} by {}{}", found.interface, found.address, found.reason, others.concat())
        }
        Err(error) => error.to_string(),
    }
}

fn check(choice: UnderlayChoice, lines: &str, expected: &str) {
    assert_eq!(summary(choose(&choice, &stack(lines), None)), expected, "{choice:?} of\n{lines}");
}

const TWO: &str = "eth0 192.0.2.1/24\neth1 198.51.100.1/24 198.51.100.2/24";

#[test]
fn what_is_configured_goes_first() {
    let routed = format!("{TWO}\ndefault eth0");
    check(
        UnderlayChoice::Interface("eth1".into()),
        &routed,
        "eth1 198.51.100.1 by the configured interface; eth0 another one is configured",
    );
    check(
        UnderlayChoice::Address("198.51.100.2".parse().unwrap()),
        &routed,
        "eth1 198.51.100.2 by the configured address; eth0 has another address",
    );
    check(
        UnderlayChoice::Interface("br0".into()),
        "br0 bridge 10.1.1.1/24\neth0 192.0.2.1/24\ndefault eth0",
        "br0 10.1.1.1 by the configured interface; eth0 another one is configured",
    );
}

#[test]
fn then_the_way_to_etcd_then_the_default_route() {
    check(
        towards(),
        &format!("{TWO}\nway 198.51.100.9 eth1\ndefault eth0"),
        "eth1 198.51.100.1 by the route to 198.51.100.9; eth0 is not the route to 198.51.100.9's",
    );
    check(
        towards(),
        &format!("{TWO}\ndefault eth1\ndefault eth0"),
        "eth1 198.51.100.1 by the default route; eth0 is not the default route's",
    );
    // A machine whose uplink is a port of a bridge.
    check(
        towards(),
        "eth0\nbr0 bridge 192.0.2.1/24\ndefault br0",
        "br0 192.0.2.1 by the default route; eth0 has no IPv4 address",
    );
}

#[test]
fn then_the_only_one_that_can_be_it() {
    check(
        towards(),
        "eth0 192.0.2.1/24\neth1 down 198.51.100.1/24\ndocker0 bridge 172.17.0.1/16\nveth1 veth\nbond0 bond",
        "eth0 192.0.2.1 by the only candidate; eth1 is down; docker0 a bridge device: must be named to be used; \
         bond0 has no IPv4 address",
    );
    check(
        towards(),
        TWO,
        "no default route tells which address other nodes reach this one by, and there are several: set \
         datapath.underlay_interface or datapath.underlay_address; eth0 could be it; eth1 could be it",
    );
    check(
        towards(),
        "veth1 veth 10.1.1.1/24",
        "no default route tells which address other nodes reach this one by: set datapath.underlay_interface or \
         datapath.underlay_address; veth1 a veth device: must be named to be used",
    );
}

#[test]
fn what_cannot_be_is_said() {
    check(
        UnderlayChoice::Interface("eth9".into()),
        "eth0 192.0.2.1/24",
        "underlay interface eth9 is not there, or is not one that can be used: configure another; eth0 could be it",
    );
    check(
        UnderlayChoice::Interface("eth0".into()),
        "eth0 2001:db8::1/64",
        "underlay interface eth0 has no IPv4 address; eth0 has no IPv4 address",
    );
    check(
        UnderlayChoice::Address("203.0.113.1".parse().unwrap()),
        "eth0 192.0.2.1/24",
        "underlay address 203.0.113.1 is on no interface of this node: give it to one, or configure another; eth0 could be it",
    );
    check(
        UnderlayChoice::Address("2001:db8::1".parse().unwrap()),
        "eth0 2001:db8::1/64",
        "underlay address 2001:db8::1 is of IPv6, which this version cannot use between nodes; eth0 has no IPv4 address",
    );
}

/// What is chosen when the stack was `before` and is `after`.
fn check_change(choice: UnderlayChoice, before: &str, after: &str, expected: &str) {
    let former = choose(&choice, &stack(before), None).unwrap();
    let mut now = choose(&choice, &stack(after), Some(&former));
    if let Ok(now) = &mut now {
        now.passed_over.clear();
    }
    assert_eq!(summary(now), expected, "{choice:?}\n{before}\n->\n{after}");
}

#[test]
fn what_is_in_use_stays_while_it_is_there_and_nothing_points_elsewhere() {
    let routed = |device: &str| format!("{TWO}\ndefault {device}");
    check_change(towards(), &routed("eth0"), &routed("eth1"), "eth1 198.51.100.1 by the default route");
    check_change(towards(), &routed("eth0"), TWO, "eth0 192.0.2.1 by the default route");
    check_change(
        towards(),
        &routed("eth0"),
        "eth0 192.0.2.7/24\ndefault eth0",
        "eth0 192.0.2.7 by the default route",
    );
    check_change(
        towards(),
        &routed("eth0"),
        "uplink 192.0.2.1/24\ndefault uplink",
        "uplink 192.0.2.1 by the default route",
    );
    // A second address, listed first, moves nobody.
    let both = "eth0 192.0.2.9/24 192.0.2.1/24\ndefault eth0";
    check_change(towards(), &routed("eth0"), both, "eth0 192.0.2.1 by the default route");
    let named = || UnderlayChoice::Interface("eth0".into());
    check_change(named(), TWO, both, "eth0 192.0.2.1 by the configured interface");
    check_change(named(), TWO, "eth0 192.0.2.9/24", "eth0 192.0.2.9 by the configured interface");
    check_change(
        named(),
        TWO,
        "eth1 198.51.100.1/24",
        "underlay interface eth0 is not there, or is not one that can be used: configure another; eth1 could be it",
    );
}
