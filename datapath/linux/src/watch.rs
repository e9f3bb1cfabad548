//! Hears what anybody changes in the node's network stack: whether the underlay must be chosen anew, and what of ours
//! somebody took away or changed.
//!
//! It says that something changed, never how it is now: whoever hears it looks. So nothing depends on the order of
//! messages, and messages that the kernel had to drop (`ENOBUFS`) cost one look at everything.
//!
//! What this agent does itself is heard too: making things says nothing, and deleting or changing them names a thing
//! that is no longer wanted, or as it is wanted.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use datapath_plan::TableKey;
use rtnetlink::{
    MulticastGroup,
    packet_core::{NetlinkBuffer, NetlinkMessage, NetlinkPayload},
    packet_route::{AddressFamily, RouteNetlinkMessage, route::RouteHeader},
    sys::{AsyncSocket, AsyncSocketExt, TokioSocket, protocols::NETLINK_ROUTE},
};
use tokio::time::{Instant, timeout_at};

use crate::{
    device::{HOST_DEVICE, NET_DEVICE, VXLAN_DEVICE},
    error::DatapathError,
    netlink::{Link, Netlink, parse},
};

/// What comes within this time of a first change is told with it: a device that is replaced, or an address that is
/// exchanged, is a handful of messages. Short beside what a moved node's flows wait for anyhow.
const SETTLE: Duration = Duration::from_millis(50);

/// What has changed since the last look.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// Links, addresses or routes that are not ours: the underlay may be another.
    pub underlay: bool,
    /// Entries whose part in the stack is gone, or not as it was.
    pub ours: BTreeSet<TableKey>,
    /// Messages were lost: anything may have changed.
    pub lost: bool,
}

impl Changes {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The watch over one namespace's stack. One per agent; needs a tokio runtime.
pub struct Watch {
    socket: TokioSocket,
    ours: Ours,
    /// What was heard and not told yet, and when it will be.
    heard: Changes,
    settled: Option<Instant>,
}

/// Devices of ours by index, as they were heard of last.
#[derive(Debug, Default)]
struct Ours {
    links: BTreeMap<u32, Link>,
    protocol: u8,
}

impl Watch {
    /// Begins to listen in the namespace of the calling thread. `protocol`: our routes' number.
    ///
    /// # Errors
    /// [`DatapathError::Netlink`] if the kernel gives no such socket, or cannot be read.
    pub async fn open(protocol: u8) -> Result<Self, DatapathError> {
        let fail =
            |source| DatapathError::Netlink { operation: "listen to changes of the stack".into(), source };
        let mut socket = TokioSocket::new(NETLINK_ROUTE).map_err(fail)?;
        socket.socket_mut().bind_auto().map_err(fail)?;
        for group in [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv4Route] {
            socket.socket_ref().add_membership(group as u32).map_err(fail)?;
        }
        // Subscribed first, listed after: nothing falls between.
        let ours = Ours { protocol, ..Ours::default() };
        let mut watch = Self { socket, ours, heard: Changes::default(), settled: None };
        watch.list().await?;
        Ok(watch)
    }

    async fn list(&mut self) -> Result<(), DatapathError> {
        let links = Netlink::here()?.links().await?;
        self.ours.links = links.into_iter().filter(Link::is_ours).map(|link| (link.index, link)).collect();
        Ok(())
    }

    /// Waits until something has changed that may matter to us, and says what. The future may be dropped and asked for
    /// again: nothing is forgotten.
    ///
    /// # Errors
    /// [`DatapathError::Netlink`] if the socket is broken: open another, and look at everything.
    pub async fn next(&mut self) -> Result<Changes, DatapathError> {
        loop {
            let received = match self.settled {
                None => self.socket.recv_from_full().await,
                Some(at) => match timeout_at(at, self.socket.recv_from_full()).await {
                    Ok(received) => received,
                    Err(_) => break,
                },
            };
            match received {
                Ok((datagram, _)) => read(&datagram, |message| self.ours.hear(message, &mut self.heard)),
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => self.heard.lost = true,
                Err(source) => {
                    return Err(DatapathError::Netlink {
                        operation: "hear changes of the stack".into(),
                        source,
                    });
                }
            }
            if self.settled.is_none() && !self.heard.is_empty() {
                self.settled = Some(Instant::now() + SETTLE);
            }
        }
        if self.heard.lost {
            self.list().await?;
        }
        self.settled = None;
        Ok(std::mem::take(&mut self.heard))
    }
}

/// The messages of a datagram. One that cannot be read is of a kind that we do not care about.
fn read(datagram: &[u8], mut hear: impl FnMut(RouteNetlinkMessage)) {
    let mut rest = datagram;
    while let Ok(buffer) = NetlinkBuffer::new_checked(&rest) {
        let length = buffer.length() as usize;
        if length == 0 || length > rest.len() {
            return;
        }
        if let Ok(NetlinkMessage { payload: NetlinkPayload::InnerMessage(message), .. }) =
            NetlinkMessage::<RouteNetlinkMessage>::deserialize(&rest[..length])
        {
            hear(message);
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
}

impl Ours {
    fn hear(&mut self, message: RouteNetlinkMessage, changes: &mut Changes) {
        match message {
            // Said again of ports of bridges, without what makes a link ours.
            RouteNetlinkMessage::NewLink(message) | RouteNetlinkMessage::DelLink(message)
                if message.header.interface_family == AddressFamily::Bridge => {}
            RouteNetlinkMessage::NewLink(message) => self.new_link(parse::link(&message), changes),
            RouteNetlinkMessage::DelLink(message) => {
                let link = parse::link(&message);
                match self.links.remove(&link.index) {
                    Some(link) => changes.ours.extend(key_of(&link)),
                    None => changes.underlay |= !link.is_ours(),
                }
            }
            RouteNetlinkMessage::NewAddress(message) => {
                changes.underlay |= !self.links.contains_key(&message.header.index);
            }
            RouteNetlinkMessage::DelAddress(message) => match self.links.get(&message.header.index) {
                Some(link) => changes.ours.extend(key_of(link)),
                None => changes.underlay = true,
            },
            RouteNetlinkMessage::NewRoute(message) => {
                changes.underlay |=
                    parse::route(&message).is_some_and(|route| self.concerns_underlay(&route));
            }
            RouteNetlinkMessage::DelRoute(message) => {
                let Some(route) = parse::route(&message) else { return };
                if route.protocol == self.protocol && route.table == u32::from(RouteHeader::RT_TABLE_MAIN) {
                    changes.ours.insert(TableKey::Route(route.destination));
                }
                changes.underlay |= self.concerns_underlay(&route);
            }
            _ => {}
        }
    }

    fn new_link(&mut self, link: Link, changes: &mut Changes) {
        if !link.is_ours() {
            // One of ours that somebody took out of our group.
            match self.links.remove(&link.index) {
                Some(before) => changes.ours.extend(key_of(&before)),
                None => changes.underlay = true,
            }
            return;
        }
        let as_it_was = |before: &Link| {
            (before.mtu_bytes, before.mac, &before.name) == (link.mtu_bytes, link.mac, &link.name)
                && (link.up || !before.up)
        };
        if let Some(before) = self.links.get(&link.index).filter(|before| !as_it_was(before)) {
            changes.ours.extend(key_of(before));
        }
        self.links.insert(link.index, link);
    }

    /// Routes to single networks come and go by the hundreds on some machines (BGP); of those only the ones that lead to
    /// etcd matter, and they are looked at when links, addresses or the default route change.
    fn concerns_underlay(&self, route: &crate::netlink::Route) -> bool {
        route.destination.prefix() == 0
            && route.table == u32::from(RouteHeader::RT_TABLE_MAIN)
            && !self.links.contains_key(&route.device)
    }
}

/// The entry that a device of ours is a part of.
fn key_of(link: &Link) -> Option<TableKey> {
    match link.name.as_str() {
        HOST_DEVICE | NET_DEVICE | VXLAN_DEVICE => Some(TableKey::BASE),
        _ => link.endpoint().map(TableKey::Endpoint),
    }
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").field("ours", &self.ours).finish_non_exhaustive()
    }
}
