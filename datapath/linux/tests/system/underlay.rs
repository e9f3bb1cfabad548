//! How the underlay interface is chosen, and the reason that is reported for it.

use std::net::IpAddr;

use datapath_linux::{Underlay, UnderlayChoice, underlay};

use crate::stage::Stage;

/// A node with two uplinks, `first` and `second`; no default route.
pub fn two_uplinks() -> Option<Stage> {
    let stage = Stage::new()?;
    let node = &stage.node;
    for (device, peer, address) in
        [("first", "peer1", "192.0.2.1/24"), ("second", "peer2", "198.51.100.1/24")]
    {
        node.run("ip", &["link", "add", device, "type", "veth", "peer", "name", peer]);
        node.run("ip", &["addr", "add", address, "dev", device]);
        node.run("ip", &["link", "set", device, "up"]);
        node.run("ip", &["link", "set", peer, "up"]);
    }
    Some(stage)
}

async fn choose(choice: UnderlayChoice) -> Result<Underlay, String> {
    underlay(&choice, None).await.map_err(|error| error.to_string())
}

#[test]
fn underlay_is_chosen_with_a_reason() {
    let Some(stage) = two_uplinks() else { return };
    let node = &stage.node;
    stage.block_on(async || {
        let none = choose(UnderlayChoice::Automatic).await.expect_err("there is no default route");
        assert!(
            none.contains("datapath.underlay_interface") && none.contains("first a veth device"),
            "{none}"
        );

        node.run("ip", &["route", "add", "default", "via", "192.0.2.254"]);
        let check = async |choice, interface: &str, reason: &str| {
            let found = choose(choice).await.expect("a choice");
            assert_eq!((found.interface.as_str(), found.reason.as_str()), (interface, reason));
            let others: Vec<&str> = found.passed_over.iter().map(|other| other.interface.as_str()).collect();
            assert_eq!(others, [if interface == "first" { "second" } else { "first" }]);
        };
        check(UnderlayChoice::Automatic, "first", "the default route").await;
        check(UnderlayChoice::Interface("second".into()), "second", "the configured interface").await;
        check(UnderlayChoice::Address([198, 51, 100, 1].into()), "second", "the configured address").await;
        let towards = |address: [u8; 4]| UnderlayChoice::Towards(vec![[127, 0, 0, 1].into(), address.into()]);
        check(towards([198, 51, 100, 9]), "second", "the route to 198.51.100.9").await;
        check(towards([198, 51, 100, 1]), "first", "the default route").await;
        // The default route with the lower metric decides.
        node.run("ip", &["route", "add", "default", "via", "198.51.100.254", "metric", "5"]);
        check(UnderlayChoice::Automatic, "first", "the default route").await;
        node.run("ip", &["route", "add", "default", "via", "192.0.2.254", "metric", "7"]);
        node.run("ip", &["route", "del", "default", "via", "192.0.2.254", "metric", "0"]);
        check(UnderlayChoice::Automatic, "second", "the default route").await;

        let found = choose(UnderlayChoice::Interface("first".into())).await.expect("a choice");
        let expected: (IpAddr, _, _) =
            ([192, 0, 2, 1].into(), "192.0.2.1/24".parse().expect("a network"), 1500);
        assert_eq!((found.address, found.network, found.mtu_bytes), expected);
    });
}
