//! For `chaos-fuzz` alone: what reads the kernel's bytes, without a kernel.

use std::collections::BTreeMap;

use datapath_abi::{AbiBytes, EndpointEntry, Event, FlowEntry, FlowKey, IpcacheEntry, V4};
use datapath_plan::{EndpointId, Mac};
use rtnetlink::{
    packet_core::{NetlinkMessage, NetlinkPayload},
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        link::{InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkInfo, LinkMessage},
        route::{RouteAddress, RouteAttribute, RouteMessage, RouteMetric},
    },
};

use crate::{
    descriptor::{endpoint::EntriesOfBothMaps, ipcache},
    dump::ShownValue,
    events, flows,
    netlink::{Link, parse},
    sock_diag,
};

/// An item of the event ring.
pub fn event(bytes: &[u8]) -> Option<Event> {
    events::decode(bytes)
}

/// Messages of netlink, one behind the other, as a socket gives them. Returns how many were links or routes.
pub fn netlink(mut bytes: &[u8]) -> usize {
    let mut understood = 0;
    while let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes) {
        match &message.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => {
                parse::link(link).endpoint();
                understood += 1;
            }
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route)) => {
                understood += usize::from(parse::route(route).is_some());
            }
            _ => {}
        }
        // Messages begin at multiples of 4.
        let length = (message.header.length as usize).next_multiple_of(4);
        match bytes.get(length..) {
            Some(rest) if length > 0 => bytes = rest,
            _ => break,
        }
    }
    understood
}

/// A link and a route of ours, as the kernel would tell them.
pub fn netlink_samples() -> Vec<Vec<u8>> {
    let mut link = LinkMessage::default();
    link.header.index = 7;
    link.attributes = vec![
        LinkAttribute::IfName("warren_vxlan".to_owned()),
        LinkAttribute::Mtu(1450),
        LinkAttribute::Address(vec![2, 0, 0, 0, 0, 1]),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Vxlan),
            LinkInfo::Data(InfoData::Vxlan(vec![InfoVxlan::CollectMetadata(true), InfoVxlan::Port(8472)])),
        ]),
    ];
    let mut route = RouteMessage::default();
    route.header.address_family = AddressFamily::Inet;
    route.header.destination_prefix_length = 24;
    route.attributes = vec![
        RouteAttribute::Destination(RouteAddress::Inet([10, 0, 1, 0].into())),
        RouteAttribute::PrefSource(RouteAddress::Inet([10, 0, 0, 1].into())),
        RouteAttribute::Oif(7),
        RouteAttribute::Metrics(vec![RouteMetric::Mtu(1450)]),
    ];
    [RouteNetlinkMessage::NewLink(link), RouteNetlinkMessage::NewRoute(route)]
        .into_iter()
        .map(|message| {
            let mut message = NetlinkMessage::from(message);
            message.finalize();
            let mut bytes = vec![0; message.buffer_len()];
            message.serialize(&mut bytes);
            bytes
        })
        .collect()
}

/// A part of an answer about sockets; the cookies of those that it names.
pub fn sockets(bytes: &[u8]) -> Vec<u64> {
    let mut cookies = Vec::new();
    // What is wrong is an error, after what was right before.
    let _ = sock_diag::part(bytes, &mut |id| cookies.push(sock_diag::cookie(id)));
    cookies
}

/// An answer that names one socket, and its end.
pub fn sockets_sample() -> Vec<u8> {
    let header = |bytes: u32, kind: u16| {
        let [kind, flags] = [kind, 2].map(u16::to_ne_bytes);
        [&bytes.to_ne_bytes()[..], &kind, &flags, &[0; 8]].concat()
    };
    let mut answer = header(16 + 72, 20);
    answer.extend([2, 1, 0, 0]);
    answer.extend(1..=68);
    answer.extend(header(16, 3));
    answer
}

/// Values of the maps as they are read back: flows, endpoints, ipcache entries.
pub fn map_values(bytes: &[u8]) {
    let mut rest = bytes;
    if let (Some(key), Some(entry)) = (take::<FlowKey<V4>>(&mut rest), take::<FlowEntry>(&mut rest)) {
        let flow = flows::flow(&key, &entry, &[1, 2, 3], 1 << 40);
        flow.key();
        serde_json::to_string(&flow).expect("a flow is JSON");
    }
    if let Some(entry) = take::<IpcacheEntry>(&mut rest) {
        ipcache::decode(&entry);
        entry.show(&());
    }
    let mut entries = Vec::new();
    while let Some(entry) = take::<EndpointEntry>(&mut rest) {
        entry.show(&());
        entries.push(entry);
    }
    let by_ifindex: BTreeMap<u32, EndpointEntry> =
        entries.iter().map(|entry| (entry.ifindex, *entry)).collect();
    let by_address: BTreeMap<V4, EndpointEntry> =
        entries.iter().rev().map(|entry| (entry.address_v4, *entry)).collect();
    let maps = EntriesOfBothMaps { by_ifindex, by_address };
    for entry in entries {
        let link = Link { index: entry.ifindex, up: true, mac: Some(Mac(entry.host_mac)), ..Link::default() };
        let mut broken = Vec::new();
        maps.check(EndpointId(entry.id), &link, &mut broken);
    }
}

fn take<T: AbiBytes>(rest: &mut &[u8]) -> Option<T> {
    let (bytes, behind) = rest.split_at_checked(size_of::<T>())?;
    *rest = behind;
    // SAFETY: there are as many bytes, and every bit pattern is a `T` (`AbiBytes`); they need not be aligned.
    Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}
