//! Links, addresses and routes by netlink: a thin layer over rtnetlink that speaks in our types and names
//! what failed.
//!
//! A netlink socket belongs to the network namespace in which it was made, whatever thread uses it later;
//! see [`crate::namespace`].

pub(crate) mod parse;

use std::{
    collections::BTreeMap,
    io,
    net::IpAddr,
    time::{Duration, Instant},
};

use datapath_plan::Mac;
use futures::{StreamExt, TryStreamExt};
use ipnetwork::IpNetwork;
use rtnetlink::{
    Handle, LinkMessageBuilder, LinkUnspec, RouteMessageBuilder,
    packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload},
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        link::LinkMessage,
        nsid::{NsidAttribute, NsidMessage},
        route::RouteMessage,
    },
    sys::{AsyncSocket, TokioSocket},
};
use tokio::task::JoinHandle;

use crate::error::DatapathError;

/// The kernel's worker runs at least once a second.
const RUNNING_TIMEOUT: Duration = Duration::from_secs(3);
/// Asked again after; since 6.8 the first question makes the kernel do it at once.
const RUNNING_POLL: Duration = Duration::from_millis(1);

/// A connection to the network stack of one namespace. Needs a tokio runtime; ends with its owner.
#[derive(Debug)]
pub(crate) struct Netlink {
    pub handle: Handle,
    driver: JoinHandle<()>,
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// The properties of a network device that we use.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Link {
    pub index: u32,
    pub name: String,
    /// `veth`, `vxlan`, …; empty for a plain device.
    pub kind: String,
    pub mac: Option<Mac>,
    pub mtu_bytes: u32,
    /// The device group: see [`crate::device::GROUP`].
    pub group: u32,
    pub up: bool,
    /// Whether the device passes packets: it is up, and so is its other end.
    pub running: bool,
    pub noarp: bool,
    pub loopback: bool,
    /// Index of the other end of a veth pair, in the other end's namespace.
    pub peer: u32,
    /// This namespace's number for the other end's namespace.
    pub peer_namespace: Option<i32>,
    /// UDP port of a vxlan device.
    pub port: u16,
    /// A vxlan device that takes its tunnel keys from the programs (`external`).
    pub external: bool,
}

/// The properties of a route that we use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Route {
    pub destination: IpNetwork,
    /// The gateway; of several next hops the first.
    pub device: u32,
    pub gateway: Option<IpAddr>,
    pub source: Option<IpAddr>,
    /// The metric: of several routes to one destination the lowest wins.
    pub priority: u32,
    pub mtu_bytes: Option<u32>,
    pub protocol: u8,
    pub table: u32,
}

impl Netlink {
    /// Connects in the namespace of the calling thread.
    pub(crate) fn here() -> Result<Self, DatapathError> {
        Self::over(
            TokioSocket::new(rtnetlink::sys::protocols::NETLINK_ROUTE)
                .map_err(|source| fail("open netlink", source))?,
        )
    }

    pub(crate) fn over(socket: TokioSocket) -> Result<Self, DatapathError> {
        let (connection, handle, _) = rtnetlink::from_socket(socket);
        Ok(Self { handle, driver: tokio::spawn(connection) })
    }

    /// A device by name.
    pub(crate) async fn link(&self, name: &str) -> Result<Option<Link>, DatapathError> {
        let answer = self.handle.link().get().match_name(name.to_owned()).execute().try_next().await;
        match answer {
            Ok(message) => Ok(message.as_ref().map(parse::link)),
            Err(error) if errno(&error) == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(failed(format!("look for device {name}"), error)),
        }
    }

    /// A device by index.
    pub(crate) async fn link_at(&self, index: u32) -> Result<Option<Link>, DatapathError> {
        Ok(self.links().await?.into_iter().find(|link| link.index == index))
    }

    /// This namespace's number for another namespace, as in [`Link::peer_namespace`]; `None` if it has none.
    pub(crate) async fn namespace_number(&self, fd: i32) -> Result<Option<i32>, DatapathError> {
        let fail = |error| failed("ask for the number of a network namespace".into(), error);
        let fd = u32::try_from(fd).map_err(|_| DatapathError::NotReady("a namespace is closed".into()))?;
        let mut question = NsidMessage::default();
        question.attributes.push(NsidAttribute::Fd(fd));
        let mut message = NetlinkMessage::from(RouteNetlinkMessage::GetNsId(question));
        message.header.flags = NLM_F_REQUEST;
        let mut answers = self.handle.clone().request(message).map_err(fail)?;
        match answers.next().await.map(|answer| answer.payload) {
            Some(NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNsId(answer))) => {
                let number = answer.attributes.iter().find_map(|attribute| match attribute {
                    NsidAttribute::Id(number) => Some(*number),
                    _ => None,
                });
                Ok(number.filter(|number| *number >= 0))
            }
            Some(NetlinkPayload::Error(error)) => Err(fail(rtnetlink::Error::NetlinkError(error))),
            _ => Ok(None),
        }
    }

    /// A device by name that must be there.
    pub(crate) async fn expect_link(&self, name: &str) -> Result<Link, DatapathError> {
        self.link(name).await?.ok_or_else(|| DatapathError::NotReady(format!("device {name} is not there")))
    }

    /// Waits until a device that is up passes packets. After both ends of a pair are up the kernel starts their
    /// queues from a worker of its own (linkwatch); what is sent before that is dropped.
    pub(crate) async fn wait_running(&self, name: &str) -> Result<(), DatapathError> {
        let deadline = Instant::now() + RUNNING_TIMEOUT;
        while !self.expect_link(name).await?.running {
            if Instant::now() > deadline {
                let text =
                    format!("device {name} does not come up within {} ms", RUNNING_TIMEOUT.as_millis());
                return Err(DatapathError::NotReady(text));
            }
            tokio::time::sleep(RUNNING_POLL).await;
        }
        Ok(())
    }

    /// All devices.
    pub(crate) async fn links(&self) -> Result<Vec<Link>, DatapathError> {
        let messages: Vec<_> = self
            .handle
            .link()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(|error| failed("list devices".into(), error))?;
        Ok(messages.iter().map(parse::link).collect())
    }

    /// Makes a device; an existing device is an error.
    pub(crate) async fn create(&self, name: &str, message: LinkMessage) -> Result<(), DatapathError> {
        self.handle
            .link()
            .add(message)
            .execute()
            .await
            .map_err(|error| failed(format!("make device {name}"), error))
    }

    /// Changes a device by index: what `change` adds to an empty message.
    pub(crate) async fn change(
        &self,
        index: u32,
        change: impl FnOnce(LinkMessageBuilder<LinkUnspec>) -> LinkMessageBuilder<LinkUnspec>,
    ) -> Result<(), DatapathError> {
        let message = change(LinkUnspec::new_with_index(index)).build();
        let what = format!("change device {index}");
        self.handle.link().change(message).execute().await.map_err(|error| failed(what, error))
    }

    /// Deletes a device; a device that is not there counts as deleted.
    pub(crate) async fn delete(&self, link: &Link) -> Result<(), DatapathError> {
        match self.handle.link().del(link.index).execute().await {
            Err(error) if errno(&error) != Some(libc::ENODEV) => {
                Err(failed(format!("delete device {}", link.name), error))
            }
            _ => Ok(()),
        }
    }

    /// IPv4 and IPv6 addresses of a device, without link-local ones.
    pub(crate) async fn addresses(&self, index: u32) -> Result<Vec<IpNetwork>, DatapathError> {
        let request = self.handle.address().get().set_link_index_filter(index).execute();
        let messages: Vec<_> =
            request.try_collect().await.map_err(|error| failed("list addresses".into(), error))?;
        Ok(messages.iter().filter_map(parse::address).map(|(_, address)| address).collect())
    }

    /// The same of all devices, by index.
    pub(crate) async fn all_addresses(&self) -> Result<BTreeMap<u32, Vec<IpNetwork>>, DatapathError> {
        let messages: Vec<_> = self
            .handle
            .address()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(|error| failed("list addresses".into(), error))?;
        let mut addresses: BTreeMap<u32, Vec<IpNetwork>> = BTreeMap::new();
        for (index, address) in messages.iter().filter_map(parse::address) {
            addresses.entry(index).or_default().push(address);
        }
        Ok(addresses)
    }

    /// Makes `wanted` the one address of a device, as a host address.
    pub(crate) async fn set_address(&self, link: &Link, wanted: IpAddr) -> Result<(), DatapathError> {
        let wanted = IpNetwork::from(wanted);
        let present = self.addresses(link.index).await?;
        if !present.contains(&wanted) {
            let request = self.handle.address().add(link.index, wanted.ip(), wanted.prefix()).replace();
            let what = format!("give {wanted} to {}", link.name);
            request.execute().await.map_err(|error| failed(what, error))?;
        }
        for other in present.into_iter().filter(|address| *address != wanted) {
            let mut request = self
                .handle
                .address()
                .get()
                .set_link_index_filter(link.index)
                .set_address_filter(other.ip())
                .execute();
            let what = format!("take {other} from {}", link.name);
            if let Some(message) = request.try_next().await.map_err(|error| failed(what.clone(), error))? {
                self.handle.address().del(message).execute().await.map_err(|error| failed(what, error))?;
            }
        }
        Ok(())
    }

    /// Makes or changes a route of the main table.
    pub(crate) async fn put_route(
        &self,
        message: RouteMessage,
        what: impl std::fmt::Display,
    ) -> Result<(), DatapathError> {
        let request = self.handle.route().add(message).replace();
        request.execute().await.map_err(|error| failed(format!("make route {what}"), error))
    }

    /// Deletes a route; a route that is not there counts as deleted.
    pub(crate) async fn delete_route(
        &self,
        message: RouteMessage,
        what: impl std::fmt::Display,
    ) -> Result<(), DatapathError> {
        match self.handle.route().del(message).execute().await {
            Err(error) if errno(&error) != Some(libc::ESRCH) => {
                Err(failed(format!("delete route {what}"), error))
            }
            _ => Ok(()),
        }
    }

    /// All unicast routes of one family.
    pub(crate) async fn routes(&self, family: AddressFamily) -> Result<Vec<Route>, DatapathError> {
        let mut filter = RouteMessage::default();
        filter.header.address_family = family;
        let messages: Vec<_> = self
            .handle
            .route()
            .get(filter)
            .execute()
            .try_collect()
            .await
            .map_err(|error| failed("list routes".into(), error))?;
        Ok(messages.iter().filter_map(parse::route).collect())
    }

    /// The route that the kernel takes to an address.
    pub(crate) async fn route_to(&self, address: IpAddr) -> Result<Option<Route>, DatapathError> {
        let message = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(address, IpNetwork::from(address).prefix())
            .map_err(|error| DatapathError::Unsupported(error.to_string()))?
            .build();
        match self.handle.route().get(message).execute().try_next().await {
            Ok(message) => Ok(message.as_ref().and_then(parse::route)),
            Err(error) if errno(&error) == Some(libc::ENETUNREACH) => Ok(None),
            Err(error) => Err(failed(format!("find the route to {address}"), error)),
        }
    }
}

fn errno(error: &rtnetlink::Error) -> Option<i32> {
    match error {
        rtnetlink::Error::NetlinkError(message) => Some(message.raw_code().abs()),
        _ => None,
    }
}

fn fail(operation: impl Into<String>, source: io::Error) -> DatapathError {
    DatapathError::Netlink { operation: operation.into(), source }
}

pub(crate) fn failed(operation: String, error: rtnetlink::Error) -> DatapathError {
    let source = match &error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        _ => io::Error::other(error.to_string()),
    };
    fail(operation, source)
}
