//! An endpoint's devices: `wrn<id>` on the node's side, its peer inside the workload's namespace.
//!
//! Invariant: an endpoint is in both endpoint maps before its programs are attached, and its programs are attached before
//! its device is up. Deletion goes in the reverse order. A failure on the way undoes what was made.

use std::net::IpAddr;

use datapath_abi::EndpointEntry;
use datapath_plan::{Attachment, EndpointId, EndpointValue};
use ipnetwork::IpNetwork;
use rtnetlink::{
    LinkUnspec, LinkVeth, RouteMessageBuilder,
    packet_route::{
        link::{AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute},
        route::{RouteMessage, RouteScope},
    },
};

use crate::{
    descriptor::Maps,
    descriptor::{endpoint::EndpointKeys, v4},
    device::{check_ours, endpoint_device, veth},
    error::DatapathError,
    hook::Hooks,
    namespace::{self, Namespace},
    netlink::{Link, Netlink},
    route,
    sockets::Sockets,
    sysctl,
};

/// What endpoints need to know of their node's base.
pub(crate) struct PodNetwork {
    pub gateway: IpAddr,
    pub mtu_bytes: u32,
}

/// Makes, repairs and deletes endpoints.
pub(crate) struct EndpointAttacher<'a> {
    pub netlink: &'a Netlink,
    pub maps: &'a Maps,
    pub keys: &'a mut EndpointKeys,
    pub hooks: &'a mut Hooks,
    pub sockets: &'a mut Sockets,
}

impl EndpointAttacher<'_> {
    /// Makes an endpoint, or adopts it and repairs what differs. Repeating it changes nothing.
    pub(crate) async fn put(
        &mut self,
        id: EndpointId,
        value: &EndpointValue,
        network: &PodNetwork,
    ) -> Result<(), DatapathError> {
        let Some(Attachment::Netns { path, interface }) = &value.attachment else {
            return self.repair(id, value, network).await;
        };
        let namespace = Namespace::open(path)?;
        let inside = namespace.netlink()?;
        let name = endpoint_device(id);
        let place = Place { id, name: &name, interface, namespace: &namespace, inside: &inside };
        let made = match self.adopt_device(&place, value).await? {
            true => false,
            false => self.make_device(&place, value, network).await.map(|()| true)?,
        };
        let finished = self.finish(&place, value, network).await;
        if finished.is_err()
            && made
            && let Err(undo) = self.delete(id).await
        {
            tracing::warn!(%id, error = undo.chain(), "a half-made endpoint could not be undone");
        }
        finished
    }

    /// Repairs the node's side of an endpoint whose attachment is no longer known, because a former agent made it.
    async fn repair(
        &mut self,
        id: EndpointId,
        value: &EndpointValue,
        network: &PodNetwork,
    ) -> Result<(), DatapathError> {
        let name = endpoint_device(id);
        let Some(outer) = self.netlink.link(&name).await? else {
            return Err(DatapathError::Unattached(id));
        };
        check_ours(&outer)?;
        self.finish_outside(id, &name, value, network).await?;
        // Where the namespace is not found, sockets in it are not translated; packets are.
        self.sockets.forget(self.maps, id)?;
        if let Some(namespace) = self.namespace_of(&outer).await? {
            let inside = namespace.netlink()?;
            let links = inside.links().await?;
            if let Some(inner) =
                links.iter().find(|inner| inner.index == outer.peer && inner.peer == outer.index)
            {
                let place =
                    Place { id, name: &name, interface: &inner.name, namespace: &namespace, inside: &inside };
                place.prepare_inside(value, network).await?;
                self.sockets.put(self.maps, id, value.address, &namespace)?;
            }
        }
        self.raise(&outer).await
    }

    /// The namespace of a pair's other end, if a path leads there.
    async fn namespace_of(&self, outer: &Link) -> Result<Option<Namespace>, DatapathError> {
        let Some(number) = outer.peer_namespace else { return Ok(None) };
        for path in namespace::paths() {
            // It may have gone meanwhile, or be the node's own.
            let Ok(namespace) = Namespace::open(&path) else { continue };
            if self.netlink.namespace_number(namespace.fd()).await? == Some(number) {
                return Ok(Some(namespace));
            }
        }
        Ok(None)
    }

    /// Whether the right pair is there already. A device of ours whose peer is elsewhere is deleted.
    async fn adopt_device(&self, place: &Place<'_>, value: &EndpointValue) -> Result<bool, DatapathError> {
        let outer = self.netlink.link(place.name).await?;
        let inner = place.inside.link(place.interface).await?;
        if let Some(outer) = &outer {
            check_ours(outer)?;
        }
        match (outer, inner) {
            // Indexes alone may agree by chance: each namespace counts its own.
            (Some(outer), Some(inner))
                if outer.peer == inner.index && inner.peer == outer.index && inner.mac == Some(value.mac) =>
            {
                Ok(true)
            }
            (_, Some(_)) => Err(DatapathError::Conflict(format!(
                "interface {} is already in the namespace of endpoint {}: delete it, or give another name",
                place.interface, place.id
            ))),
            (Some(outer), None) => self.netlink.delete(&outer).await.map(|()| false),
            (None, None) => Ok(false),
        }
    }

    async fn make_device(
        &self,
        place: &Place<'_>,
        value: &EndpointValue,
        network: &PodNetwork,
    ) -> Result<(), DatapathError> {
        let message = veth(
            LinkUnspec::new_with_name(place.interface)
                .address(value.mac.0.to_vec())
                .mtu(network.mtu_bytes)
                .setns_by_fd(place.namespace.fd()),
            LinkVeth::new(place.name, place.interface)
                .address(value.host_mac.0.to_vec())
                .mtu(network.mtu_bytes),
        );
        self.netlink.create(place.name, message).await
    }

    async fn finish(
        &mut self,
        place: &Place<'_>,
        value: &EndpointValue,
        network: &PodNetwork,
    ) -> Result<(), DatapathError> {
        let outer = self.finish_outside(place.id, place.name, value, network).await?;
        place.prepare_inside(value, network).await?;
        self.sockets.put(self.maps, place.id, value.address, place.namespace)?;
        self.raise(&outer).await?;
        place.inside.wait_running(place.interface).await
    }

    /// Completes the node's side, but does not bring the device up.
    async fn finish_outside(
        &mut self,
        id: EndpointId,
        name: &str,
        value: &EndpointValue,
        network: &PodNetwork,
    ) -> Result<Link, DatapathError> {
        let outer = self.netlink.expect_link(name).await?;
        sysctl::prepare_device(name)?;
        if outer.mtu_bytes != network.mtu_bytes || outer.mac != Some(value.host_mac) {
            let mac = value.host_mac.0.to_vec();
            self.netlink.change(outer.index, |change| change.mtu(network.mtu_bytes).address(mac)).await?;
        }
        self.write_maps(id, &outer, value)?;
        self.hooks.attach(name)?;
        Ok(outer)
    }

    async fn raise(&self, outer: &Link) -> Result<(), DatapathError> {
        if !outer.up {
            self.netlink.change(outer.index, |change| change.up()).await?;
        }
        self.netlink.wait_running(&outer.name).await
    }

    fn write_maps(
        &mut self,
        id: EndpointId,
        outer: &Link,
        value: &EndpointValue,
    ) -> Result<(), DatapathError> {
        let entry = EndpointEntry {
            ifindex: outer.index,
            id: id.0,
            identity: value.identity.get(),
            address_v4: v4(value.address)?,
            mac: value.mac.0,
            host_mac: value.host_mac.0,
        };
        self.keys.put(self.maps, &entry)
    }

    /// Deletes what is left of an endpoint, also when its namespace is gone. Goes on past a failure and returns the first
    /// one.
    pub(crate) async fn delete(&mut self, id: EndpointId) -> Result<(), DatapathError> {
        let name = endpoint_device(id);
        let device = match self.netlink.link(&name).await {
            Ok(Some(link)) if link.is_ours() => self.netlink.delete(&link).await,
            Ok(_) => Ok(()),
            Err(error) => Err(error),
        };
        let sockets = self.sockets.forget(self.maps, id);
        device.and(self.hooks.detach(&name)).and(self.keys.clear(self.maps, id, None)).and(sockets)
    }
}

/// The two sides of an endpoint.
struct Place<'a> {
    id: EndpointId,
    name: &'a str,
    interface: &'a str,
    namespace: &'a Namespace,
    inside: &'a Netlink,
}

impl Place<'_> {
    /// The workload's side: loopback up, no IPv6 chatter, the one address, routes by the gateway.
    async fn prepare_inside(&self, value: &EndpointValue, network: &PodNetwork) -> Result<(), DatapathError> {
        if let Some(loopback) = self.inside.link("lo").await?.filter(|link| !link.up) {
            self.inside.change(loopback.index, |change| change.up()).await?;
        }
        let link = self.inside.expect_link(self.interface).await?;
        if !link.up {
            // Before it is up: a link-local address would be made, and solicitations sent, which the programs can only
            // drop. In a message of its own: the kernel applies flags before families.
            let quiet = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
            let attribute = LinkAttribute::AfSpecUnspec(vec![quiet]);
            self.inside.change(link.index, |change| change.append_extra_attribute(attribute)).await?;
        }
        if !link.up || link.mtu_bytes != network.mtu_bytes {
            self.inside.change(link.index, |change| change.mtu(network.mtu_bytes).up()).await?;
        }
        self.inside.set_address(&link, value.address).await?;
        let gateway = IpNetwork::from(network.gateway);
        let to_gateway = route::message(gateway, link.index)?.scope(RouteScope::Link).build();
        self.inside.put_route(to_gateway, gateway).await?;
        self.inside.put_route(default_route(network.gateway, link.index)?, "default").await
    }
}

fn default_route(gateway: IpAddr, device: u32) -> Result<RouteMessage, DatapathError> {
    let everywhere = if gateway.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
    RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(everywhere, 0)
        .and_then(|builder| builder.gateway(gateway))
        .map(|builder| builder.output_interface(device).build())
        .map_err(|error| DatapathError::Unsupported(error.to_string()))
}
