//! Changes of the kernel's stack by others are reported: those of the underlay, and those of our objects.

use std::{collections::BTreeSet, time::Duration};

use datapath_linux::{Changes, Underlay, UnderlayChoice, WARREN_ROUTE_PROTOCOL, Watch, underlay};
use datapath_plan::{EndpointId, TableKey};

use crate::{
    stage::{Namespace, Stage, must, node_with_endpoint},
    underlay::two_uplinks,
};

/// Longer than a netlink message takes under any load.
const DEADLINE: Duration = Duration::from_secs(10);

async fn open() -> Watch {
    Watch::open(WARREN_ROUTE_PROTOCOL).await.unwrap_or_else(|error| panic!("{}", error.chain()))
}

/// Waits for reported changes of the underlay until it is as expected.
async fn until(watch: &mut Watch, former: &Underlay, as_expected: impl Fn(&Underlay) -> bool) -> Underlay {
    let look = async {
        loop {
            let changes = watch.next().await.expect("the socket works");
            if changes.underlay
                && let Ok(now) = underlay(&UnderlayChoice::Automatic, Some(former)).await
                && as_expected(&now)
            {
                return now;
            }
        }
    };
    tokio::time::timeout(DEADLINE, look).await.expect("the change is reported")
}

#[test]
fn watch_reports_changes_of_the_underlay() {
    let Some(stage) = two_uplinks() else { return };
    let node = &stage.node;
    let ip = |arguments: &str| drop(node.run("ip", &arguments.split(' ').collect::<Vec<_>>()));
    stage.block_on(async || {
        ip("route add default via 192.0.2.254");
        let mut watch = open().await;
        let first = underlay(&UnderlayChoice::Automatic, None).await.expect("a choice");

        ip("link set first mtu 1400");
        let smaller = until(&mut watch, &first, |now| now.mtu_bytes == 1400).await;

        ip("addr add 192.0.2.2/24 dev first");
        ip("addr del 192.0.2.1/24 dev first");
        // The kernel removes the default route with the network; only some systems promote the next address.
        ip("addr replace 192.0.2.2/24 dev first");
        ip("route replace default via 192.0.2.254");
        let moved = until(&mut watch, &smaller, |now| now.address.to_string() == "192.0.2.2").await;

        ip("route replace default via 198.51.100.254");
        let other = until(&mut watch, &moved, |now| now.interface == "second").await;
        assert_eq!(other.reason, "the default route");

        ip("link set second down");
        ip("link set second name uplink");
        ip("link set uplink up");
        ip("route replace default via 198.51.100.254");
        let renamed = until(&mut watch, &other, |now| now.interface == "uplink").await;
        assert_eq!(renamed.ifindex, other.ifindex);

        ip("link del uplink");
        ip("link add uplink type veth peer name peer2");
        ip("link set peer2 up");
        ip("link set uplink up");
        ip("addr add 198.51.100.7/24 dev uplink");
        ip("route replace default via 198.51.100.254");
        let replaced = until(&mut watch, &renamed, |now| now.ifindex != renamed.ifindex).await;
        assert_eq!(
            (replaced.interface.as_str(), replaced.address.to_string().as_str()),
            ("uplink", "198.51.100.7")
        );
    });
}

/// Checks which of our objects are reported after some damage.
fn check_damage(damage: &str, expected: &[TableKey]) {
    let Some(stage) = Stage::new() else { return };
    let workload = Namespace::new("one");
    stage.block_on(async || {
        let mut datapath = stage.open().await;
        let ops = node_with_endpoint(&workload);
        must(&mut datapath, ops.clone()).await;
        let mut watch = open().await;
        stage.node.run("ip", &damage.split(' ').collect::<Vec<_>>());
        let expected: BTreeSet<TableKey> = expected.iter().copied().collect();
        let mut reported = BTreeSet::new();
        let look = async {
            while reported != expected {
                let Changes { ours, underlay, .. } = watch.next().await.expect("the socket works");
                assert!(!underlay, "{damage}: our objects are not the underlay");
                reported.extend(ours);
            }
        };
        let in_time = tokio::time::timeout(DEADLINE, look).await;
        assert!(in_time.is_ok(), "{damage}: {reported:?}");
    });
}

#[test]
fn watch_reports_damage_to_our_objects() {
    let route = TableKey::Route("10.77.1.0/24".parse().expect("a network"));
    check_damage("link del warren_vxlan", &[TableKey::BASE]);
    check_damage("link set warren_host down", &[TableKey::BASE]);
    check_damage("link set warren_vxlan mtu 1300", &[TableKey::BASE]);
    // The kernel removes the routes that have the address as their source.
    check_damage("addr del 10.77.1.1/32 dev warren_host", &[TableKey::BASE, route]);
    check_damage("link del wrn1", &[TableKey::Endpoint(EndpointId(1))]);
    check_damage("link set wrn1 down", &[TableKey::Endpoint(EndpointId(1))]);
    check_damage("link set wrn1 group 0", &[TableKey::Endpoint(EndpointId(1))]);
    check_damage("route del 10.77.1.0/24 proto 112", &[route]);
}

/// The agent's own changes must not make it observe everything each time.
#[test]
fn watch_ignores_our_own_changes() {
    let Some(stage) = Stage::new() else { return };
    let workload = Namespace::new("one");
    stage.block_on(async || {
        let mut datapath = stage.open().await;
        let mut watch = open().await;
        let ops = node_with_endpoint(&workload);
        must(&mut datapath, ops.clone()).await;
        must(&mut datapath, ops).await;
        // A change that is reported after all of these.
        stage.node.run("ip", &["link", "add", "mark0", "type", "bridge"]);
        let mut reported = Changes::default();
        let look = async {
            while !reported.underlay {
                let Changes { underlay, ours, lost } = watch.next().await.expect("the socket works");
                reported.ours.extend(ours);
                reported.underlay |= underlay;
                reported.lost |= lost;
            }
        };
        tokio::time::timeout(DEADLINE, look).await.expect("the last change is reported");
        assert_eq!(reported, Changes { underlay: true, ..Changes::default() });
    });
}
