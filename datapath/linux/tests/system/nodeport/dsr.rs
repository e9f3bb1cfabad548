//! Direct server return: backends respond to external clients without the node that the requests came to.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    sync::atomic::AtomicBool,
    thread,
};

use datapath_linux::LinuxConfig;
use datapath_plan::{EpochScope, HostRouting, Op, ServiceMode, ServiceValue};

use super::{CLIENT, EXTERNAL, PORT, Topology, clients_seen, frontends, snat};
use crate::{
    services::{
        backend,
        echo::{StopOnDrop, connect, request, request_by_udp, serve_echo},
    },
    stage::address,
};

/// Captures the frames that come in at the devices of the calling thread's namespace.
struct Capture(OwnedFd);

impl Capture {
    fn begin() -> Self {
        // SAFETY: no memory is passed; the descriptor is ours.
        unsafe {
            let protocol = i32::from((libc::ETH_P_IP as u16).to_be());
            let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_NONBLOCK, protocol);
            assert!(fd >= 0, "{}", std::io::Error::last_os_error());
            Self(OwnedFd::from_raw_fd(fd))
        }
    }

    /// The source Ethernet addresses of the captured frames from an IP address.
    fn senders_of(&self, source: Ipv4Addr) -> BTreeSet<[u8; 6]> {
        let mut frame = [0; 2048];
        let mut senders = BTreeSet::new();
        loop {
            // SAFETY: the buffer has the size given.
            let read = unsafe { libc::recv(self.0.as_raw_fd(), frame.as_mut_ptr().cast(), frame.len(), 0) };
            if read < 0 {
                return senders;
            }
            if frame[26..30] == source.octets() {
                senders.insert(frame[6..12].try_into().expect("six bytes"));
            }
        }
    }
}

/// Backends see the client, and the node that the requests come to sees no response.
#[track_caller]
fn check(host_routing: HostRouting) {
    let Some(topology) = Topology::new(host_routing, LinuxConfig::default()) else { return };
    let backends = [backend(1, address(1, 1)), backend(2, address(2, 1))];
    let value = ServiceValue { mode: ServiceMode::Dsr, ..snat() };
    topology.serve(&backends, &value);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let _guard = StopOnDrop(&stop);
        serve_echo(scope, &topology.workloads[0], address(1, 1), &stop);
        serve_echo(scope, &topology.workloads[1], address(2, 1), &stop);
        let expected: BTreeMap<IpAddr, IpAddr> =
            [(address(1, 1).into(), CLIENT.into()), (address(2, 1).into(), CLIENT.into())].into();
        topology.client.enter(|| {
            for (frontend, _) in frontends() {
                assert_eq!(clients_seen(|| request(&mut connect(frontend))), expected, "tcp {frontend}");
                assert_eq!(clients_seen(|| request_by_udp(frontend)), expected, "udp {frontend}");
            }
        });
        // The only backend is on the other node: all responses come from that node.
        topology.serve(&backends[1..], &value);
        let link = topology.cluster.node(2).node.run("ip", &["-o", "link", "show", "under0"]);
        let (_, mac) = link.split_once("link/ether ").expect("an Ethernet address");
        let mac: Vec<u8> =
            mac[..17].split(':').map(|byte| u8::from_str_radix(byte, 16).expect("a byte")).collect();
        topology.client.enter(|| {
            let capture = Capture::begin();
            let mut stream = connect((EXTERNAL, PORT).into());
            for _ in 0..100 {
                assert_eq!(request(&mut stream).1.ip(), IpAddr::from(CLIENT));
                request_by_udp((EXTERNAL, PORT).into());
            }
            let senders: Vec<Vec<u8>> =
                capture.senders_of(EXTERNAL).into_iter().map(|sender| sender.to_vec()).collect();
            assert_eq!(senders, std::slice::from_ref(&mac));

            // The connection goes on after both nodes have decided again.
            for node in [1, 2] {
                topology.apply(node, vec![Op::BumpEpochs(EpochScope::All)]);
            }
            assert_eq!(request(&mut stream).1.ip(), IpAddr::from(CLIENT));
        });
    });
}

#[test]
fn dsr_serves_external_clients() {
    check(HostRouting::Bpf);
}

#[test]
fn dsr_serves_external_clients_with_legacy_host_routing() {
    check(HostRouting::Legacy);
}
