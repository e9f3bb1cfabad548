//! Which addresses and ports a service gets, and which no service may have.

use std::net::{IpAddr, Ipv4Addr};

use ipnetwork::{IpNetwork, Ipv4Network};
use kvstore_schema::service::{
    EVERY_NODE, NODE_PORTS, NodePort, NodePortGiven, ServiceClaim, ServicePort, ServiceProtocol,
    ServiceRecord, ServiceSpec, VirtualIp,
};

use super::ServiceWrite;
use crate::{ClaimError, Entry, FleetView, machine::mix};

impl ServiceWrite {
    /// The record of the service: addresses and ports that its spec names, else those that it has, else free ones.
    pub(super) fn resolve(
        &self,
        found: Option<&Entry<ServiceRecord>>,
        view: &FleetView,
    ) -> Result<ServiceRecord, ClaimError> {
        let mut record = ServiceRecord {
            spec: self.spec.clone(),
            virtual_ip: self.virtual_ip(found, view)?,
            node_ports: Vec::new(),
            unknown: Default::default(),
        };
        for backend in &self.spec.backends {
            if let Some(pool) = service_pools(view).iter().find(|pool| pool.contains(backend.address)) {
                return Err(ClaimError::BackendOfServices { address: backend.address, pool: *pool });
            }
        }
        let had = |port: &ServicePort| found.and_then(|there| there.record.node_port(port));
        for port in &self.spec.ports {
            let node_port = match port.node_port {
                None => continue,
                Some(NodePort::Number(number)) => number,
                Some(NodePort::Auto) => match had(port) {
                    Some(number) => number,
                    None => self.free_node_port(port, &record, view)?,
                },
            };
            record.node_ports.push(NodePortGiven { protocol: port.protocol, port: port.port, node_port });
        }
        let before = found.map(|there| there.record.claims()).unwrap_or_default();
        for claim in record.claims().into_iter().filter(|claim| !before.contains(claim)) {
            self.check_claim(claim, view)?;
        }
        Ok(record)
    }

    fn virtual_ip(
        &self,
        found: Option<&Entry<ServiceRecord>>,
        view: &FleetView,
    ) -> Result<IpAddr, ClaimError> {
        match (self.spec.virtual_ip, found) {
            (VirtualIp::Address(address), _) => Ok(address),
            (VirtualIp::Auto, Some(there)) => Ok(there.record.virtual_ip),
            (VirtualIp::Auto, None) => self.free_address(view),
        }
    }

    fn is_free(&self, claim: &ServiceClaim, view: &FleetView) -> bool {
        !self.taken.contains(claim)
            && view.service_claims().get(claim).is_none_or(|there| there.record.service == self.name)
    }

    /// A free address of the pools: the first one behind a place that the name decides, so that a service which is
    /// deleted and created again mostly gets the same address.
    fn free_address(&self, view: &FleetView) -> Result<IpAddr, ClaimError> {
        let pools = service_pools(view);
        let ranges: Vec<Ipv4Network> = pools
            .iter()
            .filter_map(|pool| match pool {
                IpNetwork::V4(pool) => Some(*pool),
                IpNetwork::V6(_) => None,
            })
            .collect();
        let total: u64 = ranges.iter().copied().map(usable).sum();
        let first = self.place(0);
        let free = (0..total)
            .map(|step| nth(&ranges, (first % total + step) % total))
            .find(|address| self.is_free(&ServiceClaim::VirtualIp(*address), view));
        free.ok_or_else(|| ClaimError::ServicePoolExhausted {
            pools: pools.to_vec(),
            used: view.services().len(),
        })
    }

    /// A free node port, found in the same way. Ports that the agents use are not free.
    fn free_node_port(
        &self,
        port: &ServicePort,
        chosen: &ServiceRecord,
        view: &FleetView,
    ) -> Result<u16, ClaimError> {
        let chosen = chosen.node_ports.iter().map(|it| (it.protocol, it.node_port));
        let wanted = self.spec.ports.iter().filter_map(|port| match port.node_port {
            Some(NodePort::Number(number)) => Some((port.protocol, number)),
            Some(NodePort::Auto) | None => None,
        });
        let own: Vec<(ServiceProtocol, u16)> = chosen.chain(wanted).collect();
        let total = u64::from(NODE_PORTS.end() - NODE_PORTS.start()) + 1;
        let first = self.place(u64::from(port.port));
        let mut numbers = (0..total).map(|step| {
            let number = u64::from(*NODE_PORTS.start()) + (first % total + step) % total;
            u16::try_from(number).expect("it lies between two ports")
        });
        let free = numbers.find(|number| {
            let claim = ServiceClaim::of_nodes(port.protocol, *number);
            !own.contains(&(port.protocol, *number))
                && self.is_free(&claim, view)
                && of_agents(port.protocol, *number, view).is_none()
        });
        free.ok_or(ClaimError::NodePortsExhausted { protocol: port.protocol })
    }

    /// A hash of the service's name and `number`.
    fn place(&self, number: u64) -> u64 {
        self.name.as_str().bytes().fold(mix(number), |sum, byte| mix(sum ^ u64::from(byte)))
    }

    /// Whether the service may have a claim, as far as the view knows. The transaction finds what the view misses.
    fn check_claim(&self, claim: ServiceClaim, view: &FleetView) -> Result<(), ClaimError> {
        if let Some(there) = view.service_claims().get(&claim)
            && there.record.service != self.name
        {
            return Err(ClaimError::Taken { claim, owner: there.record.service.clone() });
        }
        match claim {
            ServiceClaim::VirtualIp(address) => {
                let mut parts = view.service_claims().range(ServiceClaim::frontends_of(address));
                if let Some((part, there)) = parts.next() {
                    return Err(ClaimError::Taken { claim: *part, owner: there.record.service.clone() });
                }
                check_address(address, view)
            }
            ServiceClaim::Frontend { address: EVERY_NODE, protocol, port } => {
                let what = of_agents(protocol, port, view);
                what.map_or(Ok(()), |what| Err(ClaimError::PortOfAgents { claim, what }))
            }
            ServiceClaim::Frontend { address, .. } => {
                let whole = ServiceClaim::VirtualIp(address);
                if let Some(there) = view.service_claims().get(&whole) {
                    return Err(ClaimError::Taken { claim: whole, owner: there.record.service.clone() });
                }
                if let Some(pool) = service_pools(view).iter().find(|pool| pool.contains(address)) {
                    return Err(ClaimError::AddressOfServices { address, pool: *pool });
                }
                check_address(address, view)
            }
        }
    }
}

/// Whether a spec names this port number or external address.
pub(super) fn names_frontend(spec: &ServiceSpec, claim: &ServiceClaim) -> bool {
    let ServiceClaim::Frontend { address, protocol, port } = *claim else { return false };
    let of_nodes = |it: &ServicePort| {
        it.protocol == protocol
            && (it.node_port == Some(NodePort::Number(port)) || it.host_port == Some(port))
    };
    if address == EVERY_NODE { spec.ports.iter().any(of_nodes) } else { spec.external_ips.contains(&address) }
}

fn service_pools(view: &FleetView) -> &[IpNetwork] {
    view.fleet().map(|fleet| fleet.record.service_pools.as_slice()).unwrap_or_default()
}

/// The use that the agents themselves have for a port of the nodes.
fn of_agents(protocol: ServiceProtocol, port: u16, view: &FleetView) -> Option<&'static str> {
    if protocol != ServiceProtocol::Udp {
        return None;
    }
    if view.fleet().is_some_and(|fleet| fleet.record.tunnel_port == port) {
        return Some("the tunnel");
    }
    view.nodes().values().any(|node| node.record.gossip_port == port).then_some("gossip")
}

/// An address of a service belongs to no endpoint pool and to no node.
fn check_address(address: IpAddr, view: &FleetView) -> Result<(), ClaimError> {
    let pools = view.fleet().into_iter().flat_map(|fleet| &fleet.record.pools);
    if let Some(pool) = pools.into_iter().find(|pool| pool.contains(address)) {
        return Err(ClaimError::AddressOfEndpoints { address, pool: *pool });
    }
    let node = view.nodes().iter().find(|(_, node)| node.record.underlay.contains(&address));
    node.map_or(Ok(()), |(node, _)| Err(ClaimError::AddressOfNode { address, node: node.clone() }))
}

/// How many addresses of a pool can be given out: all but the network and the broadcast address.
fn usable(pool: Ipv4Network) -> u64 {
    let size = 1_u64 << (32 - u32::from(pool.prefix()));
    if has_edges(pool) { size - 2 } else { size }
}

/// Whether the first and the last address of a pool are reserved (they are not in a /31: RFC 3021).
fn has_edges(pool: Ipv4Network) -> bool {
    pool.prefix() <= 30
}

/// The address with this number, counted through all pools. The number is below the sum of [`usable`].
fn nth(pools: &[Ipv4Network], mut number: u64) -> IpAddr {
    for pool in pools {
        let here = usable(*pool);
        if number < here {
            let bits = u64::from(u32::from(pool.network())) + number + u64::from(has_edges(*pool));
            return Ipv4Addr::from(u32::try_from(bits).expect("a pool lies in the family's range")).into();
        }
        number -= here;
    }
    unreachable!("the number is below the sum of all pools")
}
