//! Client affinity: a client keeps its backend for as long as the service says.

use datapath_abi::{AffinityEntry, AffinityKey, BackendEntry, ServiceEntry, backend_flags, map_name};
use datapath_linux::object::Program::FromEndpoint;

use super::{Backend, PORT, SERVICE, VIP, backend, install, service_entry, set_service, set_slots};
use crate::{
    clock::coarse_ns,
    frame::Frame,
    kernel::{Kernel, TC_ACT_REDIRECT},
    populated_kernel,
    world::{A, B, R, bump_epoch},
};

const AFFINITY_SECONDS: u32 = 60;

/// Switches the service to a table of these backends, with affinity.
fn set_slots_with_affinity(kernel: &mut Kernel, table: u32, backends: &[Backend]) {
    set_slots(kernel, table, backends);
    let entry = service_entry(table, backends.len());
    set_service(kernel, ServiceEntry { affinity_seconds: AFFINITY_SECONDS, ..entry });
}

/// The backend of A's flow from a port.
fn chosen(kernel: &mut Kernel, port: u16) -> u32 {
    let frame = Frame::udp(&A, &VIP, port, PORT);
    assert_eq!(kernel.run(FromEndpoint, &frame, None).code, TC_ACT_REDIRECT);
    kernel.flow(&frame.key()).expect("a flow").backend
}

const fn affinity_key() -> AffinityKey {
    AffinityKey { client: u32::from_be_bytes(A.address) as u64, service: SERVICE, pad: 0 }
}

#[test]
fn affinity_keeps_the_backend_of_a_client() {
    let mut kernel = populated_kernel!();
    let backends: Vec<Backend> = (1..=9).map(|id| Backend { id, at: B, port: 8000 + id as u16 }).collect();
    install(&mut kernel, &backends);
    set_slots_with_affinity(&mut kernel, 5, &backends);
    let first = chosen(&mut kernel, 2000);
    for port in 2001..2050 {
        assert_eq!(chosen(&mut kernel, port), first);
    }
    // A table without the backend changes nothing for this client.
    let others: Vec<Backend> = backends.iter().copied().filter(|backend| backend.id != first).collect();
    set_slots_with_affinity(&mut kernel, 6, &others);
    assert_eq!(chosen(&mut kernel, 2050), first);
    // Each new flow of the client renews its affinity.
    let entry: AffinityEntry = kernel.get(map_name::AFFINITY, &affinity_key()).expect("an entry");
    assert!(coarse_ns() - entry.last_seen_ns < u64::from(AFFINITY_SECONDS) * 1_000_000_000, "{entry:?}");
}

#[test]
fn affinity_ends_after_the_client_was_silent() {
    let mut kernel = populated_kernel!();
    let (b, r) = (backend(1, B), backend(2, R));
    install(&mut kernel, &[b, r]);
    set_slots_with_affinity(&mut kernel, 5, &[b]);
    assert_eq!(chosen(&mut kernel, 2000), b.id);
    set_slots_with_affinity(&mut kernel, 6, &[r]);
    // After a silence that was too long, the client keeps the backend that the new table gave it.
    for (silent_seconds, expected) in [(30, b.id), (61, r.id), (0, r.id)] {
        let entry: AffinityEntry = kernel.get(map_name::AFFINITY, &affinity_key()).expect("an entry");
        let last_seen_ns = entry.last_seen_ns - silent_seconds * 1_000_000_000;
        kernel.set(map_name::AFFINITY, &affinity_key(), &AffinityEntry { last_seen_ns, ..entry });
        assert_eq!(chosen(&mut kernel, 2001 + silent_seconds as u16), expected);
    }
}

#[test]
fn affinity_ends_when_the_backend_takes_no_new_flows() {
    for flags in [backend_flags::TERMINATING, backend_flags::UNHEALTHY] {
        let mut kernel = populated_kernel!();
        let (b, r) = (backend(1, B), backend(2, R));
        install(&mut kernel, &[b, r]);
        set_slots_with_affinity(&mut kernel, 5, &[b]);
        assert_eq!(chosen(&mut kernel, 2000), b.id);
        set_slots_with_affinity(&mut kernel, 6, &[r]);
        kernel.set(map_name::BACKENDS_V4, &b.id, &BackendEntry { flags, ..b.entry() });
        assert_eq!(chosen(&mut kernel, 2001), r.id);
        // An established flow keeps the backend.
        bump_epoch(&mut kernel, B.address);
        assert_eq!(chosen(&mut kernel, 2000), b.id);
        // The client's backend is gone, and its id belongs to another service.
        kernel.set(map_name::BACKENDS_V4, &r.id, &BackendEntry { service: SERVICE + 1, ..r.entry() });
        kernel.set(map_name::BACKENDS_V4, &b.id, &b.entry());
        set_slots_with_affinity(&mut kernel, 7, &[b]);
        assert_eq!(chosen(&mut kernel, 2002), b.id);
    }
}
