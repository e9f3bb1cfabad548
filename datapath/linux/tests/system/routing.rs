//! The base in each mode: with and without tunnel, masquerade, and the settings of the kernel's stack.

use std::collections::BTreeSet;

use datapath_plan::{
    Base, BaseUnderlay, Entry, HostRouting, Masquerade, Mode, NextHop, Op, RouteValue, Single, TableKey,
};

use crate::stage::{Cluster, Namespace, Stage, base, base_ops, gateway, must, node_with_endpoint};

fn underlay_index(stage: &Stage) -> u32 {
    let text = stage.node.run("ip", &["-o", "link", "show", "under0"]);
    text.split(':').next().expect("an index").parse().expect("a number")
}

fn masquerade(exclude: &[&str]) -> Option<Masquerade> {
    let exclude = exclude.iter().map(|prefix| prefix.parse().expect("a prefix")).collect();
    Some(Masquerade { first_port: 61_000, last_port: 61_999, exclude })
}

/// Every setting is observed as it was applied, and applying it again changes nothing.
#[test]
fn base_is_observed_as_applied() {
    let Some(cluster) = Cluster::new(1) else { return };
    let stage = cluster.node(1);
    stage.block_on(async || {
        let mut datapath = stage.open().await;
        let plain = Base {
            underlay: BaseUnderlay {
                ifindex: underlay_index(stage),
                address: Cluster::underlay(1).into(),
                mtu_bytes: 1500,
            },
            ..base(1)
        };
        let native = Base { mode: Mode::Native, mtu_bytes: 1500, ..plain.clone() };
        let devices = |stage: &Stage| -> BTreeSet<String> {
            let listed = stage.node.run("ip", &["-o", "link", "show"]);
            let names = listed
                .lines()
                .filter_map(|line| Some(line.split(": ").nth(1)?.split('@').next()?.to_owned()));
            names.filter(|name| name.starts_with("warren_")).collect()
        };
        for (base, tunnel) in [
            (plain.clone(), true),
            (Base { masquerade: masquerade(&["10.77.0.0/16", "172.16.0.0/12"]), ..plain.clone() }, true),
            (Base { masquerade: masquerade(&["10.77.0.0/16"]), ..native.clone() }, false),
            (Base { host_routing: HostRouting::Legacy, ..native }, false),
            (Base { host_routing: HostRouting::Legacy, ..plain.clone() }, true),
            (plain, true),
        ] {
            must(&mut datapath, vec![Op::Put(Entry::Base(Single, base.clone()))]).await;
            let before = stage.node.devices();
            let observed = datapath.observe().await.expect("observed");
            assert_eq!(observed.broken, [] as [String; 0], "{base}");
            assert_eq!(observed.tables.base.as_ref(), Some(&base));
            assert_eq!(devices(stage).contains("warren_vxlan"), tunnel, "{base}");
            must(&mut datapath, vec![Op::Put(Entry::Base(Single, base))]).await;
            assert_eq!(stage.node.devices(), before, "applied again, no device is created again");
        }
    });
}

#[test]
fn route_to_another_node_is_observed_as_applied() {
    let Some(cluster) = Cluster::new(2) else { return };
    let stage = cluster.node(1);
    stage.block_on(async || {
        let mut datapath = stage.open().await;
        must(&mut datapath, base_ops(1)).await;
        let cidr = "10.77.2.0/24".parse().expect("a network");
        let hop = |address: [u8; 4]| RouteValue {
            next_hop: Some(NextHop { address: address.into(), ifindex: underlay_index(stage) }),
            source: gateway(1).into(),
            mtu_bytes: 1500,
        };
        // The second next hop is on the same link, but not in the subnet of this node's address.
        let direct = RouteValue { next_hop: None, ..hop([0; 4]) };
        for value in [hop([192, 0, 2, 2]), hop([198, 51, 100, 2]), direct, hop([192, 0, 2, 2])] {
            must(&mut datapath, vec![Op::Put(Entry::Route(cidr, value))]).await;
            let observed = datapath.observe().await.expect("observed");
            assert_eq!(observed.tables.routes.get(&cidr), Some(&value));
            assert_eq!(observed.broken, [] as [String; 0]);
        }
        let shown = stage.node.run("ip", &["route", "show", "proto", "112"]);
        assert!(
            shown.contains("10.77.2.0/24 via 192.0.2.2 dev under0 src 10.77.1.1 onlink mtu 1500"),
            "{shown}"
        );
        must(&mut datapath, vec![Op::Delete(TableKey::Route(cidr))]).await;
        assert!(!stage.node.run("ip", &["route", "show"]).contains("10.77.2.0"));
    });
}

#[test]
fn masquerade_ports_are_added_to_the_reserved_ports() {
    let Some(stage) = Stage::new() else { return };
    let key = "net.ipv4.ip_local_reserved_ports";
    stage.block_on(async || {
        let mut datapath = stage.open().await;
        stage.node.run("sysctl", &["-q", "-w", &format!("{key}=8080,9000-9010")]);
        for _ in 0..2 {
            must(
                &mut datapath,
                vec![Op::Put(Entry::Base(Single, Base { masquerade: masquerade(&[]), ..base(1) }))],
            )
            .await;
            assert_eq!(stage.node.run("sysctl", &["-n", key]).trim(), "8080,9000-9010,61000-61999");
        }
    });
}

/// Strict reverse path filtering for all devices, as some distributions set it.
#[test]
fn rp_filter_in_strict_mode_does_not_affect_endpoints() {
    let Some(stage) = Stage::new() else { return };
    let (workload, world) = (Namespace::new("one"), Namespace::new("world"));
    let node = &stage.node;
    node.run("ip", &["link", "add", "up0", "type", "veth", "peer", "name", "down0", "netns", &world.name]);
    node.run("ip", &["addr", "add", "198.51.100.1/24", "dev", "up0"]);
    node.run("ip", &["link", "set", "up0", "up"]);
    node.run("sysctl", &["-q", "-w", "net.ipv4.conf.all.rp_filter=1"]);
    world.run("ip", &["addr", "add", "198.51.100.9/24", "dev", "down0"]);
    world.run("ip", &["link", "set", "down0", "up"]);
    world.run("ip", &["route", "add", "10.77.0.0/16", "via", "198.51.100.1"]);
    stage.block_on(async || {
        let mut datapath = stage.open().await;
        must(&mut datapath, node_with_endpoint(&workload)).await;
        assert!(workload.pings([198, 51, 100, 9].into()));
        let setting = |device: &str| {
            node.run("sysctl", &["-n", &format!("net.ipv4.conf.{device}.rp_filter")]).trim().to_owned()
        };
        let devices = ["all", "default", "up0", "warren_host", "wrn1"].map(setting);
        assert_eq!(devices, ["0", "1", "1", "0", "0"], "foreign devices stay strict");

        node.run("sysctl", &["-q", "-w", "net.ipv4.conf.all.rp_filter=2"]);
        let observed = datapath.observe().await.expect("observed");
        assert_eq!(observed.tables.base, None, "{:?}", observed.broken);
        must(&mut datapath, vec![Op::Put(Entry::Base(Single, base(1)))]).await;
        assert_eq!(["all", "up0", "wrn1"].map(setting), ["0", "2", "0"]);
    });
}

/// The underlay programs move with the underlay interface, and other interfaces have none.
fn check_underlay_programs(force_clsact: bool) {
    let Some(cluster) = Cluster::new(1) else { return };
    let stage = cluster.node(1);
    let ip = |arguments: &str| drop(stage.node.run("ip", &arguments.split(' ').collect::<Vec<_>>()));
    ip("link add other0 type veth peer name other1");
    ip("link set other0 up");
    let index = |device: &str| -> u32 {
        let text = stage.node.run("ip", &["-o", "link", "show", device]);
        text.split(':').next().expect("an index").parse().expect("a number")
    };
    stage.block_on(async || {
        let config = datapath_linux::LinuxConfig { force_clsact, ..stage.config() };
        let mut datapath = stage.open_with(config.clone()).await;
        let at = |device: &str| {
            let underlay = BaseUnderlay {
                ifindex: index(device),
                address: Cluster::underlay(1).into(),
                mtu_bytes: 1500,
            };
            Base { underlay, ..base(1) }
        };
        let check = async |datapath: &mut datapath_linux::Datapath, device: &str| {
            let programs = datapath.programs().await.expect("listed");
            for name in ["from_netdev", "to_netdev"] {
                let found = programs.iter().find(|program| program.name == name).expect("a program of ours");
                assert_eq!(found.devices, [device], "{name}");
            }
            let observed = datapath.observe().await.expect("observed");
            assert_eq!(observed.broken, [] as [String; 0]);
            // No other device has them, whatever the datapath reports.
            for other in ["under0", "other0", "uplink0"].iter().filter(|other| **other != device) {
                let shown = stage.node.run("bpftool", &["net", "show"]);
                assert!(
                    !shown.lines().any(|line| line.starts_with(other) && line.contains("_netdev")),
                    "{shown}"
                );
            }
        };
        for device in ["under0", "other0", "under0"] {
            must(&mut datapath, vec![Op::Put(Entry::Base(Single, at(device)))]).await;
            check(&mut datapath, device).await;
        }
        drop(datapath);
        let mut datapath = stage.open_with(config).await;
        check(&mut datapath, "under0").await;

        // The same device with another name, then another device with the same name.
        ip("link set under0 down");
        ip("link set under0 name uplink0");
        ip("link set uplink0 up");
        must(&mut datapath, vec![Op::Put(Entry::Base(Single, at("uplink0")))]).await;
        check(&mut datapath, "uplink0").await;
        ip("link del uplink0");
        ip("link add uplink0 type veth peer name uplink1");
        ip("link set uplink0 up");
        must(&mut datapath, vec![Op::Put(Entry::Base(Single, at("uplink0")))]).await;
        check(&mut datapath, "uplink0").await;
    });
}

#[test]
fn underlay_programs_follow_the_interface() {
    check_underlay_programs(false);
}

#[test]
fn underlay_programs_follow_the_interface_with_clsact() {
    check_underlay_programs(true);
}
