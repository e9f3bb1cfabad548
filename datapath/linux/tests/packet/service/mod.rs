//! Services: an endpoint or the node connects to a frontend, and one of its backends gets the packets.

mod affinity;
mod backend_choice;
mod fragments;
mod hairpin;
mod icmp;
mod reject;
mod translation;

use datapath_abi::{
    BLOCK_SLOTS, BackendEntry, FlowAction, FlowEntry, FlowKey, FrontendEntry, FrontendKey, ServiceEntry,
    SlotBlock, SlotsKey, V4, flow_flags, frontend_kind, map_name, service_flags, service_port_bit,
};
use datapath_linux::object::Program::FromEndpoint;
use datapath_packet::{flow_hash, masquerade_port};

use crate::{
    check::check,
    expected::{Entry, Expected, pair},
    frame::{CLIENT_PORT, Frame, SERVER_PORT},
    kernel::Kernel,
    wire::{
        SCTP, TCP, UDP,
        tcp_flag::{ACK, SYN},
    },
    world::{A, B, CONFIG, INTERNET, Peer},
};

/// The frontend that most frames go to: only the map of frontends knows its address.
pub const VIP: Peer = Peer { address: [10, 201, 0, 1], ..INTERNET };
pub const SERVICE: u32 = 7;
/// Of all frontends here.
pub const PORT: u16 = SERVER_PORT;
/// The slot table that [`install`] makes.
const TABLE: u32 = 5;

/// A backend and its number.
#[derive(Clone, Copy)]
pub struct Backend {
    pub id: u32,
    pub at: Peer,
    pub port: u16,
}

pub const fn backend(id: u32, at: Peer) -> Backend {
    Backend { id, at, port: 8080 }
}

impl Backend {
    pub fn entry(&self) -> BackendEntry<V4> {
        BackendEntry {
            service: SERVICE,
            address: self.at.address,
            port_be: self.port.to_be_bytes(),
            weight: 1,
            ..BackendEntry::default()
        }
    }
}

/// Writes a service with a virtual IP: frontends, backends, and a table with one slot for each backend.
pub fn install(kernel: &mut Kernel, backends: &[Backend]) {
    for protocol in [TCP, UDP, SCTP] {
        add_frontend(kernel, VIP.address, protocol);
    }
    for backend in backends {
        kernel.set(map_name::BACKENDS_V4, &backend.id, &backend.entry());
    }
    set_slots(kernel, TABLE, backends);
}

/// Adds a frontend; that of address 0 is the port of each of the node's addresses.
pub fn add_frontend(kernel: &mut Kernel, address: V4, protocol: u8) {
    let key = FrontendKey { address, port_be: PORT.to_be_bytes(), protocol, pad: 0 };
    let kind = if address == [0; 4] { frontend_kind::NODE_PORT } else { frontend_kind::VIRTUAL };
    kernel.set(map_name::FRONTENDS_V4, &key, &FrontendEntry { service: SERVICE, kind });
    reserve_port(kernel, protocol, PORT);
}

/// Marks a port as one of a service.
pub fn reserve_port(kernel: &mut Kernel, protocol: u8, port: u16) {
    let (word, bit) = service_port_bit(protocol, port);
    kernel.set(map_name::SERVICE_PORTS, &word, &bit);
}

/// Switches the service to a table with one slot for each of these backends.
pub fn set_slots(kernel: &mut Kernel, table: u32, backends: &[Backend]) {
    for (block, backends) in (0..).zip(backends.chunks(BLOCK_SLOTS as usize)) {
        let mut slots = [0; BLOCK_SLOTS as usize];
        for (slot, backend) in slots.iter_mut().zip(backends) {
            *slot = backend.id;
        }
        kernel.set(map_name::SLOTS, &SlotsKey { table, block }, &SlotBlock { slots });
    }
    set_service(kernel, service_entry(table, backends.len()));
}

pub fn set_service(kernel: &mut Kernel, entry: ServiceEntry) {
    kernel.set(map_name::SERVICES, &SERVICE, &entry);
}

/// Gives the service further `service_flags`, and a table with one slot.
pub fn set_flags(kernel: &mut Kernel, flags: u32) {
    let entry = service_entry(TABLE, 1);
    set_service(kernel, ServiceEntry { flags: entry.flags | flags, ..entry });
}

fn service_entry(table: u32, slots: usize) -> ServiceEntry {
    let table = u64::from(table) << 32 | slots as u64;
    ServiceEntry { table, flags: service_flags::PRESENT, ..ServiceEntry::default() }
}

fn remove_backend(kernel: &mut Kernel, backend: &Backend) {
    kernel.set(map_name::BACKENDS_V4, &backend.id, &BackendEntry::<V4>::default());
}

/// A frame to the frontend, after destination NAT.
pub fn dnat(frame: &Frame, backend: &Backend) -> Frame {
    frame.clone().destination(backend.at.address).destination_port(backend.port)
}

/// A backend's response, after the destination NAT was reversed.
fn reverse_dnat(response: &Frame) -> Frame {
    response.clone().source(VIP.address).source_port(PORT)
}

/// What A sends to the frontend, as the backend gets it.
fn delivered(frame: &Frame, backend: &Backend) -> Frame {
    let out = dnat(frame, backend).towards(&backend.at);
    if backend.at.action.0 == FlowAction::Local { out.ttl(63) } else { out }
}

/// The entries of a flow with destination NAT, after its first packet.
pub fn dnat_entries(request: &Frame, client: &Peer, backend: &Backend) -> [Entry; 2] {
    let [(_, original), (reply_key, reply)] = pair(&dnat(request, backend), client, &backend.at);
    let key = request.key();
    let original = FlowEntry {
        flags: flow_flags::REWRITE_DST,
        rewrite_dst: backend.at.address,
        rewrite_dst_port_be: backend.port.to_be_bytes(),
        backend: backend.id,
        ..original
    };
    let reply = FlowEntry {
        flags: flow_flags::REPLY | flow_flags::REWRITE_SRC,
        rewrite_src: key.dst,
        rewrite_src_port_be: key.dst_port_be,
        backend: backend.id,
        ..reply
    };
    [(key, original), (reply_key, reply)]
}

/// The entries of a flow with NAT of both ends: its backend sees `source` and `port` instead of the client.
pub fn full_nat_entries(
    request: &Frame,
    client: &Peer,
    backend: &Backend,
    source: V4,
    port: u16,
) -> [Entry; 2] {
    let [(key, original), (_, reply)] = dnat_entries(request, client, backend);
    let original = FlowEntry {
        flags: original.flags | flow_flags::REWRITE_SRC,
        rewrite_src: source,
        rewrite_src_port_be: port.to_be_bytes(),
        ..original
    };
    let reply = FlowEntry {
        flags: reply.flags | flow_flags::REWRITE_DST,
        rewrite_dst: key.src,
        rewrite_dst_port_be: key.src_port_be,
        ..reply
    };
    [(key, original), (original.reverse_key(&key), reply)]
}

/// The source port that the flow gets at the `attempt`-th try.
pub fn nat_port(request: &Frame, backend: &Backend, attempt: u32) -> u16 {
    let hash = flow_hash(&dnat(request, backend).key());
    masquerade_port(hash, CONFIG.masquerade_port_min, CONFIG.masquerade_port_max, attempt)
}

/// A's first packet to the frontend: it opens a flow to this backend.
#[track_caller]
fn open(kernel: &mut Kernel, frame: &Frame, backend: &Backend) -> [Entry; 2] {
    let entries = dnat_entries(frame, &A, backend);
    let expected = Expected::redirected(&delivered(frame, backend)).opens(frame, entries);
    check(kernel, FromEndpoint, frame, expected);
    entries
}

/// First requests of A to the frontend, and what the backend responds to each.
fn conversations(backend: &Backend) -> Vec<(Frame, Frame)> {
    let (at, port) = (&backend.at, backend.port);
    vec![
        (Frame::syn(&A, &VIP), Frame::tcp(at, &A, port, CLIENT_PORT, SYN | ACK)),
        (Frame::udp(&A, &VIP, 5000, PORT), Frame::udp(at, &A, port, 5000)),
        (Frame::udp(&A, &VIP, 5001, PORT).checksummed(), Frame::udp(at, &A, port, 5001).checksummed()),
    ]
}

/// Makes the full flow table evict an entry: fills the table with unrelated flows until the entry is gone.
#[track_caller]
pub fn evict(kernel: &mut Kernel, key: &FlowKey<V4>) {
    for port in 10_000..40_000 {
        kernel.run(FromEndpoint, &Frame::udp(&A, &B, port, 7), None);
        if port % 100 == 0 && kernel.flow(key).is_none() {
            kernel.events();
            return;
        }
    }
    panic!("the table evicts nothing");
}

/// Keeps the thread on one CPU: a CPU does not evict what another one has just added.
pub fn pin_to_one_cpu() {
    let cpu = nix::sched::sched_getcpu().expect("the current CPU");
    let mut set = nix::sched::CpuSet::new();
    set.set(cpu).expect("the set has room for every CPU");
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set).expect("pin the thread");
}
