//! How the programs are attached, repaired, adopted and detached.

use std::fs;

use aya::{
    maps::{HashMap, Map, MapData},
    programs::{CgroupAttachMode, CgroupSockAddr},
};
use datapath_abi::{NamespaceEntry, map_name};
use datapath_linux::{LinuxConfig, SocketConfig, cleanup};
use datapath_plan::EndpointValue;
use nix::errno::Errno;

use super::{Topology, are_attached, connect, refusals};
use crate::{
    cgroup::Cgroup,
    services::{PORT, VIP, both_protocols},
    stage::{base_ops, endpoint, endpoint_ops, must, node_with_endpoint},
};

#[test]
fn repair_of_socket_programs_and_namespaces() {
    let Some(topology) = Topology::new() else { return };
    topology.stage.block_on(async || {
        let mut datapath = topology.open().await;
        must(&mut datapath, both_protocols(&[])).await;
        let whole = datapath.observe().await.expect("observe");
        assert_eq!(whole.broken, [""; 0]);
        fs::remove_file(topology.stage.pin_root.join("links/cgroup-sock_sendmsg4")).expect("remove a link");
        let map = MapData::from_pin(topology.stage.pin_root.join("maps").join(map_name::NAMESPACES));
        let map = Map::from_map_data(map.expect("the pinned map")).expect("a map");
        let mut map: HashMap<_, u64, [u8; size_of::<NamespaceEntry>()]> = map.try_into().expect("a table");
        let cookies: Vec<u64> = map.keys().map(|cookie| cookie.expect("a cookie")).collect();
        assert_eq!(cookies.len(), 4, "the node and three endpoints");
        cookies.iter().for_each(|cookie| map.remove(cookie).expect("remove it"));

        let damaged = datapath.observe().await.expect("observe");
        let cgroup = topology.cgroup.path.display();
        let mut expected = vec![
            format!("{cgroup}: program sock_sendmsg4 is not attached"),
            "the node's network namespace is not in the maps".to_owned(),
        ];
        expected.extend((1..=3).map(|id| format!("endpoint {id}: its network namespace is not in the maps")));
        assert_eq!(damaged.broken, expected);

        // Without attachments in the plan, the existing devices lead to the namespaces.
        let mut ops = base_ops(1);
        for (id, workload) in [(1, &topology.client), (2, &topology.one), (3, &topology.two)] {
            let (id, value) = endpoint(1, id, &workload.path());
            ops.extend(endpoint_ops(id, &EndpointValue { attachment: None, ..value }));
        }
        must(&mut datapath, ops).await;
        assert_eq!(datapath.observe().await.expect("observe"), whole);
        assert!(are_attached(&datapath).await);
        assert_eq!(topology.tcp(&topology.client, (VIP, PORT)).err(), Some(Errno::ECONNREFUSED));
        assert_eq!(refusals(&datapath), 1);
    });
}

/// A foreign program at the same hook works beside ours and stays attached.
#[test]
fn socket_programs_leave_foreign_programs_attached() {
    let Some(topology) = Topology::new() else { return };
    let mut other = aya::Ebpf::load(datapath_linux::object::OBJECT).expect("load the object");
    let program: &mut CgroupSockAddr =
        other.program_mut("sock_connect4").expect("in the object").try_into().expect("of that kind");
    program.load().expect("load");
    let id = program.info().expect("it is loaded").id();
    let cgroup = fs::File::open(&topology.cgroup.path).expect("open");
    program.attach(&cgroup, CgroupAttachMode::Single).expect("attach");
    topology.stage.block_on(async || {
        let mut datapath = topology.open().await;
        must(&mut datapath, both_protocols(&[])).await;
        assert_eq!(topology.tcp(&topology.client, (VIP, PORT)).err(), Some(Errno::ECONNREFUSED));
        assert_eq!(refusals(&datapath), 1);
        drop(datapath);
        cleanup(&topology.stage.config(), false).await.expect("clean up");
    });
    assert!(topology.cgroup.programs().expect("send a request").contains(&id));
}

#[test]
fn socket_programs_are_adopted_moved_and_detached() {
    let Some(topology) = Topology::new() else { return };
    let elsewhere = Cgroup::new(&format!("{}-other", topology.stage.node.name)).expect("another");
    topology.stage.block_on(async || {
        let pin = |name: &str| topology.stage.pin_root.join("links").join(name);
        let mut first = topology.stage.open_with(topology.config()).await;
        assert!(are_attached(&first).await);
        must(&mut first, node_with_endpoint(&topology.client)).await;
        must(&mut first, both_protocols(&[])).await;
        // Translation by packets would refuse only after a packet was sent.
        let refused = || connect(&topology.udp(&topology.client), (VIP, PORT)) == Err(Errno::ECONNREFUSED);
        assert!(refused());
        let before = fs::read_dir(topology.stage.pin_root.join("links")).expect("links").count();
        drop(first);
        assert!(refused(), "the programs outlive the agent");

        let second = topology.stage.open_with(topology.config()).await;
        assert!(are_attached(&second).await, "the next agent's own programs");
        assert_eq!(fs::read_dir(topology.stage.pin_root.join("links")).expect("links").count(), before);
        assert!(refused());
        drop(second);

        // The configuration names another cgroup.
        let sockets = SocketConfig { cgroup: elsewhere.path.clone(), ends_tcp: false };
        let config = LinuxConfig { sockets: Some(sockets), ..topology.stage.config() };
        let third = topology.stage.open_with(config).await;
        assert!(are_attached(&third).await);
        drop(third);

        // The cgroup does not exist: services are translated by packets only, and nothing fails.
        let sockets = SocketConfig { cgroup: "/nonexistent".into(), ends_tcp: false };
        let config = LinuxConfig { sockets: Some(sockets), ..topology.stage.config() };
        let fourth = topology.stage.open_with(config).await;
        assert!(!are_attached(&fourth).await);
        assert!(!pin("cgroup-sock_connect4").exists());
        drop(fourth);

        drop(topology.stage.open_with(topology.config()).await);
        assert!(pin("cgroup-sock_connect4").exists());
        drop(topology.stage.open().await);
        assert!(!pin("cgroup-sock_connect4").exists(), "socket translation is off");

        drop(topology.stage.open_with(topology.config()).await);
        let did = cleanup(&topology.stage.config(), false).await.expect("clean up");
        let taken = pin("cgroup-sock_connect4").display().to_string();
        assert!(did.iter().any(|step| step.done && step.what == format!("pin {taken}")), "{did:#?}");
    });
}
