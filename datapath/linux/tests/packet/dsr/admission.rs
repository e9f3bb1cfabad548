//! For whom direct server return is used, and what the backend's node accepts.

use datapath_abi::{
    DropReason, EndpointEntry, FlowEntry, IpcacheEntry, NodeConfig, SourceKind, V4, flow_flags, map_name,
    node_flags::NATIVE,
};
use datapath_linux::object::Program::{FromNetdev, FromTunnel};

use super::{CLIENT_OF_NODE_5, TUNNEL, backend_node_entries, install, open_at_backend_node, tunnelled};
use crate::{
    check::check,
    expected::Expected,
    frame::{CLIENT_PORT, Frame},
    kernel::{Kernel, Tunnel},
    nodeport::CLIENT,
    populated_kernel,
    service::{PORT, VIP, backend, dnat, set_flags},
    wire::tcp_flag::SYN,
    world::{
        A, AT_6, B, CONFIG, GATEWAY, NODE_5, PARTNER, Peer, R, REMOTE_NODE, UNDERLAY, UNMANAGED, bump_epoch,
        configure,
    },
};

#[test]
fn dsr_is_not_used_for_nodes_local_backends_or_without_tunnel() {
    let mut kernel = populated_kernel!();
    install(&mut kernel, &[backend(1, R)]);
    let check_source = |kernel: &mut Kernel, request: Frame, source: V4| {
        let request = request.on_underlay();
        kernel.run(FromNetdev, &request, None);
        let entry = kernel.flow(&request.key()).expect("a flow");
        let full_nat = flow_flags::REWRITE_SRC | flow_flags::REWRITE_DST;
        assert_eq!((entry.flags, entry.rewrite_src), (full_nat, source));
    };
    check_source(&mut kernel, Frame::syn(&NODE_5, &VIP), GATEWAY.address);
    configure(&mut kernel, NodeConfig { flags: NATIVE, vxlan_ifindex: 0, ..CONFIG });
    check_source(&mut kernel, Frame::syn(&CLIENT, &VIP), UNDERLAY.address);
    // A local backend's responses pass this node anyway.
    install(&mut kernel, &[backend(2, A)]);
    let request = Frame::udp(&CLIENT, &VIP, 5000, PORT).on_underlay();
    kernel.run(FromNetdev, &request, None);
    assert_eq!(kernel.flow(&request.key()).expect("a flow").flags, flow_flags::REWRITE_DST);
}

#[test]
fn dsr_backend_node_accepts_external_clients_of_services_from_nodes_only() {
    let mut kernel = populated_kernel!();
    let a = backend(1, A);
    install(&mut kernel, &[a]);
    let node_6 = Peer { address: [192, 0, 2, 6], ..NODE_5 };
    let entry = IpcacheEntry { identity: REMOTE_NODE, node: 6 };
    kernel.set(map_name::IPCACHE_V4, &node_6.address, &entry);
    let check_dropped = |kernel: &mut Kernel, frame: Frame, tunnel: Tunnel, reason: DropReason| {
        let expected = Expected::dropped(&frame, reason).identities(tunnel.identity, 0).tunnel(tunnel);
        check(kernel, FromTunnel, &frame, expected);
    };
    let request = Frame::syn(&CLIENT, &VIP);
    let unknown_node = Tunnel { underlay: [192, 0, 2, 99], ..TUNNEL };
    check_dropped(&mut kernel, tunnelled(&request, &a), unknown_node, DropReason::UnknownNode);
    for vni in [REMOTE_NODE, R.identity, UNMANAGED] {
        let tunnel = Tunnel { identity: vni, ..TUNNEL };
        check_dropped(&mut kernel, tunnelled(&request, &a), tunnel, DropReason::ForgedIdentity);
    }
    // The client has an address of the fleet, or of another node.
    for client in [&R, &B, &NODE_5, &UNDERLAY, &AT_6] {
        let frame = tunnelled(&Frame::syn(client, &VIP), &a);
        check_dropped(&mut kernel, frame, TUNNEL, DropReason::InnerSource);
    }
    // No frontend: another port, other addresses, a port of a node other than the sending one.
    for frame in [
        Frame::tcp(&CLIENT, &VIP, CLIENT_PORT, 81, SYN),
        Frame::syn(&CLIENT, &PARTNER),
        Frame::syn(&CLIENT, &A),
        Frame::syn(&CLIENT, &node_6),
        Frame::syn(&CLIENT, &UNDERLAY),
    ] {
        check_dropped(&mut kernel, tunnelled(&frame, &a), TUNNEL, DropReason::InnerSource);
    }
    // The backend is not on this node.
    let to_remote = tunnelled(&request, &backend(1, R));
    check_dropped(&mut kernel, to_remote, TUNNEL, DropReason::UnknownDestination);
    // Without the backend's marks an external source is forged, also if such a flow is known.
    let [original, _] = open_at_backend_node(&mut kernel, &request, &a);
    let unmarked = request.clone().macs(R.dst_mac, R.src_mac);
    check_dropped(&mut kernel, unmarked, TUNNEL, DropReason::InnerSource);
    // Another node takes the flow over.
    let client_of_node_6 = Peer { source: (SourceKind::Node, 6), ..CLIENT_OF_NODE_5 };
    let [(key, moved), _] = backend_node_entries(&request, &client_of_node_6, &a);
    let twice = FlowEntry { packets: 2, bytes: 2 * original.1.bytes, ..moved };
    let expected = Expected::redirected(&dnat(&request, &a).towards(&A).ttl(63))
        .entry((key, twice))
        .tunnel(Tunnel { underlay: node_6.address, ..TUNNEL });
    check(&mut kernel, FromTunnel, &tunnelled(&request, &a), expected);
    // The service does not use direct server return.
    kernel.remove_flow(&key);
    set_flags(&mut kernel, 0);
    check_dropped(&mut kernel, tunnelled(&request, &a), TUNNEL, DropReason::InnerSource);
}

#[test]
fn dsr_drops_requests_to_a_deleted_endpoint() {
    let mut kernel = populated_kernel!();
    let a = backend(1, A);
    install(&mut kernel, &[a]);
    let request = Frame::udp(&CLIENT, &VIP, 5000, PORT);
    open_at_backend_node(&mut kernel, &request, &a);
    kernel.remove::<V4, EndpointEntry>(map_name::ENDPOINTS_V4, &A.address);
    bump_epoch(&mut kernel, A.address);
    let frame = tunnelled(&request, &a);
    let expected = Expected::dropped(&frame, DropReason::UnknownDestination)
        .identities(TUNNEL.identity, 0)
        .tunnel(TUNNEL);
    check(&mut kernel, FromTunnel, &frame, expected);
}
