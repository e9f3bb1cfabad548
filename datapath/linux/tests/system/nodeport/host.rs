//! The node itself is a backend, beside an endpoint.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    sync::atomic::AtomicBool,
    thread,
};

use datapath_linux::LinuxConfig;
use datapath_plan::{Entry, HostRouting, IpcacheValue, NodeIndex, Op};
use identity::Identity;

use super::{CLIENT, Topology, clients_seen, frontends, snat};
use crate::{
    services::{
        backend,
        echo::{StopOnDrop, connect, request, request_by_udp, serve_echo},
    },
    stage::{Cluster, address},
};

#[track_caller]
fn check(host_routing: HostRouting) {
    let Some(topology) = Topology::new(host_routing, LinuxConfig::default()) else { return };
    let own = IpcacheValue { identity: Identity::HOST, node: NodeIndex::SELF };
    topology.apply(1, vec![Op::Put(Entry::Ipcache(IpAddr::from(Cluster::underlay(1)).into(), own))]);
    let backends = [backend(1, Cluster::underlay(1)), backend(2, address(1, 1))];
    topology.serve(&backends, &snat());
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let _guard = StopOnDrop(&stop);
        serve_echo(scope, &topology.cluster.node(1).node, Cluster::underlay(1), &stop);
        serve_echo(scope, &topology.workloads[0], address(1, 1), &stop);
        let subnet_address = Ipv4Addr::new(10, 77, 1, 0);
        let expected: BTreeMap<IpAddr, IpAddr> =
            [(Cluster::underlay(1).into(), subnet_address.into()), (address(1, 1).into(), CLIENT.into())]
                .into();
        topology.client.enter(|| {
            for (frontend, _) in frontends().into_iter().filter(|(_, node)| *node == 1) {
                assert_eq!(clients_seen(|| request(&mut connect(frontend))), expected, "tcp {frontend}");
                assert_eq!(clients_seen(|| request_by_udp(frontend)), expected, "udp {frontend}");
            }
        });
    });
}

#[test]
fn nodeport_host_backend_serves_external_clients() {
    check(HostRouting::Bpf);
}

#[test]
fn nodeport_host_backend_serves_external_clients_with_legacy_host_routing() {
    check(HostRouting::Legacy);
}
