//! Services on the real kernel: how they are applied and observed, and how clients use them.

mod apply;
pub mod echo;
mod traffic;

use std::net::Ipv4Addr;

use datapath_plan::{
    Algorithm, BackendId, BackendState, BackendValue, Entry, Frontend, FrontendKind, FrontendValue, Op,
    Protocol, ServiceId, ServiceMode, ServiceValue,
};

/// The service's frontend.
pub const VIP: Ipv4Addr = Ipv4Addr::new(10, 201, 0, 1);
pub const PORT: u16 = 80;
/// The port that the backends listen at.
pub const BACKEND_PORT: u16 = 8080;

/// A backend of the service port over TCP, which has id 1.
pub fn backend(id: u32, address: Ipv4Addr) -> (BackendId, BackendValue) {
    let value = BackendValue {
        service: ServiceId(1),
        address: address.into(),
        port: BACKEND_PORT,
        weight: 1,
        state: BackendState::Active,
    };
    (BackendId(id), value)
}

pub fn service(members: Vec<BackendId>) -> ServiceValue {
    ServiceValue {
        algorithm: Algorithm::Maglev,
        affinity_seconds: 0,
        mode: ServiceMode::Snat,
        source_ranges: Vec::new(),
        members,
    }
}

/// The operations that create a service port over TCP with these backends.
pub fn tcp_service(backends: &[(BackendId, BackendValue)]) -> Vec<Op> {
    service_over(ServiceId(1), Protocol::Tcp, backends)
}

/// As [`tcp_service`], and the same over UDP: with service id 2, and backend ids that are larger by 10.
pub fn both_protocols(backends: &[(BackendId, BackendValue)]) -> Vec<Op> {
    let over_udp = |(id, value): &(BackendId, BackendValue)| {
        (BackendId(id.0 + 10), BackendValue { service: ServiceId(2), ..*value })
    };
    let over_udp: Vec<_> = backends.iter().map(over_udp).collect();
    [tcp_service(backends), service_over(ServiceId(2), Protocol::Udp, &over_udp)].concat()
}

fn service_over(id: ServiceId, protocol: Protocol, backends: &[(BackendId, BackendValue)]) -> Vec<Op> {
    let takes_new = |(_, value): &&(BackendId, BackendValue)| value.state == BackendState::Active;
    let members = backends.iter().filter(takes_new).map(|(id, _)| *id).collect();
    let frontend = Frontend { address: VIP.into(), port: PORT, protocol };
    let mut ops: Vec<Op> = backends.iter().map(|(id, value)| Op::Put(Entry::Backend(*id, *value))).collect();
    ops.push(Op::Put(Entry::Service(id, service(members))));
    ops.push(Op::Put(Entry::Frontend(frontend, FrontendValue { service: id, kind: FrontendKind::Virtual })));
    ops
}
