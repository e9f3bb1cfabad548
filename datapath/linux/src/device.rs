//! The devices that a node has once: `warren_host`/`warren_net` and `warren_vxlan`. How our devices are told from those of
//! other owners.

use datapath_plan::{Base, EndpointId, Mac, Mode};
use rtnetlink::{
    LinkMessageBuilder, LinkUnspec, LinkVeth, LinkVxlan,
    packet_route::link::{InfoData, InfoVeth, LinkMessage},
};

use crate::{
    error::DatapathError,
    netlink::{Link, Netlink},
    sysctl,
};

/// The end of the pair on the side of the node's stack, with the gateway's address.
pub const HOST_DEVICE: &str = "warren_host";
/// The other end: packets sent out of it arrive at the stack by [`HOST_DEVICE`].
pub const NET_DEVICE: &str = "warren_net";
/// The tunnel.
pub const VXLAN_DEVICE: &str = "warren_vxlan";
/// The prefix of endpoints' devices; the endpoint's number follows.
pub const ENDPOINT_PREFIX: &str = "wrn";

/// The device group of all our devices (`ip link show group …`). The message that makes a device sets its group, where an
/// alias needs a second message: no crash leaves a device of ours unmarked.
pub const GROUP: u32 = 0x0077_726e;

impl Link {
    /// Whether the device is ours.
    pub(crate) fn is_ours(&self) -> bool {
        self.group == GROUP
    }

    /// The endpoint that the device belongs to.
    pub(crate) fn endpoint(&self) -> Option<EndpointId> {
        endpoint_of(&self.name).filter(|_| self.is_ours())
    }
}

/// The endpoint whose device has this name.
pub(crate) fn endpoint_of(device: &str) -> Option<EndpointId> {
    let number = device.strip_prefix(ENDPOINT_PREFIX)?.parse().ok()?;
    (number != 0).then_some(EndpointId(number))
}

/// Whether a device has one of our names.
pub(crate) fn is_named_as_ours(device: &str) -> bool {
    [HOST_DEVICE, NET_DEVICE, VXLAN_DEVICE].contains(&device) || endpoint_of(device).is_some()
}

/// Name of an endpoint's device: at most 13 of the 15 characters that a name may have.
pub(crate) fn endpoint_device(id: EndpointId) -> String {
    format!("{ENDPOINT_PREFIX}{id}")
}

/// Refuses a device with one of our names that we did not make.
pub(crate) fn check_ours(link: &Link) -> Result<(), DatapathError> {
    if link.is_ours() {
        return Ok(());
    }
    Err(DatapathError::Conflict(format!(
        "device {} is there and not ours (group {}): rename or delete it",
        link.name, link.group
    )))
}

/// The node's devices, as they are after [`prepare_base`].
#[derive(Debug, Clone)]
pub(crate) struct BaseDevices {
    pub host: Link,
    pub net: Link,
    /// Where there is a tunnel.
    pub vxlan: Option<Link>,
}

/// Names of the node's devices in a mode.
pub(crate) const fn names(mode: Mode) -> &'static [&'static str] {
    match mode {
        Mode::Tunnel => &[HOST_DEVICE, NET_DEVICE, VXLAN_DEVICE],
        Mode::Native => &[HOST_DEVICE, NET_DEVICE],
    }
}

/// Makes the node's devices, or adopts them and repairs what differs. Repeating it changes nothing.
///
/// # Errors
/// [`DatapathError::Conflict`] for a device with one of the names that is not ours, or another tunnel on the
/// port.
pub(crate) async fn prepare_base(netlink: &Netlink, base: &Base) -> Result<BaseDevices, DatapathError> {
    sysctl::prepare_node(base.masquerade.as_ref())?;
    prepare_pair(netlink, base).await?;
    if base.mode == Mode::Tunnel {
        prepare_vxlan(netlink, base).await?;
    }
    for name in names(base.mode).iter().copied() {
        let link = netlink.expect_link(name).await?;
        sysctl::prepare_device(name)?;
        // The pair needs no ARP: the programs write the addresses.
        let noarp = name != VXLAN_DEVICE;
        if !link.up || link.mtu_bytes != base.mtu_bytes || (noarp && !link.noarp) {
            netlink
                .change(link.index, |change| {
                    let change = change.mtu(base.mtu_bytes).up();
                    if noarp { change.arp(false) } else { change }
                })
                .await?;
        }
    }
    for name in [HOST_DEVICE, NET_DEVICE] {
        netlink.wait_running(name).await?;
    }
    let host = netlink.expect_link(HOST_DEVICE).await?;
    netlink.set_address(&host, base.gateway).await?;
    Ok(BaseDevices {
        host,
        net: netlink.expect_link(NET_DEVICE).await?,
        vxlan: match base.mode {
            Mode::Tunnel => Some(netlink.expect_link(VXLAN_DEVICE).await?),
            Mode::Native => None,
        },
    })
}

/// Deletes the tunnel's device.
pub(crate) async fn remove_vxlan(netlink: &Netlink) -> Result<(), DatapathError> {
    match netlink.link(VXLAN_DEVICE).await? {
        Some(link) if link.is_ours() => netlink.delete(&link).await,
        _ => Ok(()),
    }
}

async fn prepare_pair(netlink: &Netlink, base: &Base) -> Result<(), DatapathError> {
    let host = netlink.link(HOST_DEVICE).await?;
    let net = netlink.link(NET_DEVICE).await?;
    for link in host.iter().chain(&net) {
        check_ours(link)?;
    }
    match (&host, &net) {
        (Some(host), Some(net)) if host.peer == net.index && net.peer == host.index => return Ok(()),
        // One end is elsewhere: the pair is made again.
        (Some(link), _) | (_, Some(link)) => netlink.delete(link).await?,
        (None, None) => {}
    }
    if let (Some(_), Some(net)) = (&host, &net) {
        netlink.delete(net).await?;
    }
    let message = veth(
        LinkUnspec::new_with_name(NET_DEVICE).address(random_mac().0.to_vec()).mtu(base.mtu_bytes),
        LinkVeth::new(HOST_DEVICE, NET_DEVICE).address(random_mac().0.to_vec()).mtu(base.mtu_bytes),
    );
    netlink.create(HOST_DEVICE, message).await
}

/// The message that makes both ends of a pair, marked as ours.
pub(crate) fn veth(peer: LinkMessageBuilder<LinkUnspec>, here: LinkMessageBuilder<LinkVeth>) -> LinkMessage {
    let peer = peer.link_group(GROUP).build();
    here.link_group(GROUP).set_info_data(InfoData::Veth(InfoVeth::Peer(peer))).build()
}

async fn prepare_vxlan(netlink: &Netlink, base: &Base) -> Result<(), DatapathError> {
    if let Some(link) = netlink.link(VXLAN_DEVICE).await? {
        check_ours(&link)?;
        if link.kind == "vxlan" && link.external && link.port == base.tunnel_port {
            return Ok(());
        }
        // The kernel cannot change a device's port.
        netlink.delete(&link).await?;
    }
    let message = LinkVxlan::new(VXLAN_DEVICE, 0)
        .collect_metadata(true)
        .learning(false)
        .port(base.tunnel_port)
        // Checksum offload of tunnel packets stalls on some network cards (calico#3145, flannel#2152); the
        // inner packet has its own.
        .udp_csum(false)
        .link_group(GROUP)
        .mtu(base.mtu_bytes)
        .build();
    match netlink.create(VXLAN_DEVICE, message).await {
        Err(DatapathError::Netlink { source, .. }) if source.raw_os_error() == Some(libc::EEXIST) => {
            Err(DatapathError::Conflict(format!(
                "another VXLAN device uses UDP port {}: delete it, or set another tunnel port",
                base.tunnel_port
            )))
        }
        other => other,
    }
}

/// A random address: unicast, locally administered.
fn random_mac() -> Mac {
    let mut bytes: [u8; 6] = rand::random();
    bytes[0] = (bytes[0] & 0xfe) | 0x02;
    Mac(bytes)
}
