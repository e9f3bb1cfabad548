//! The flow table, seen from user space: listing, and collecting flows that are over.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use datapath_abi::{BACKEND_ELSEWHERE, FlowAction, FlowEntry, FlowKey, SourceKind, V4, flow_flags};
use datapath_packet::{has_expired, lifetime};
use serde::Serialize;

use crate::{datapath::Datapath, error::DatapathError, rows::BATCH_ENTRIES, table::Table};

/// Which flows to list. Empty: all.
#[derive(Debug, Clone, Default)]
pub struct FlowFilter {
    /// Source or destination.
    pub address: Option<IpAddr>,
    /// IP protocol number.
    pub protocol: Option<u8>,
    /// Source or destination port.
    pub port: Option<u16>,
}

/// One direction of a flow, as it is in the kernel.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Flow {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Source port, or the ICMP identifier of the side that asks.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// Identity of the sender, 0 for unknown.
    pub source_identity: u32,
    /// Identity of the receiver, 0 for unknown.
    pub destination_identity: u32,
    /// Where packets must come from: `endpoint`, `node`, `host` or `underlay`.
    pub from: &'static str,
    /// Index of the interface or node that they come from.
    pub from_index: u32,
    /// What is done with them: `local`, `tunnel`, `host`, `stack` or `underlay`.
    pub action: &'static str,
    /// Index of the interface or node that they go to.
    pub to_index: u32,
    /// Address and port that their source is replaced by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub new_source: Option<SocketAddr>,
    /// Address and port that their destination is replaced by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub new_destination: Option<SocketAddr>,
    /// The id of the service's backend, if this node has chosen it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<u32>,
    /// Whether this is the direction opposite to the first packet's.
    pub reply: bool,
    /// Packets of this direction.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// TCP flags seen in this direction, or-ed.
    pub tcp_flags: u8,
    /// How long ago its last packet came, in milliseconds.
    pub idle_ms: u64,
    /// How long ago the flow began, in milliseconds.
    pub age_ms: u64,
    /// Whether the entry is current. One that was decided before a change of what it depends on is decided again
    /// with its next packet.
    pub current: bool,
}

/// A flow that ended in silence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndedFlow {
    /// The direction of its first packet.
    pub flow: Flow,
    /// Packets of the other direction.
    pub reply_packets: u64,
    /// Bytes of the other direction.
    pub reply_bytes: u64,
}

/// How full the flow table is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct FlowStats {
    /// Entries, two for each flow.
    pub entries: u64,
    /// Entries that carry TCP.
    pub tcp: u64,
    /// Entries that will be decided again.
    pub stale: u64,
}

/// The flow table of an open [`Datapath`]. A handle of its own, so that reading and collecting hold up nothing else: the
/// table is as large as the traffic of the node, and is never in memory whole.
#[derive(Debug)]
pub struct FlowTable {
    flows: Table<FlowKey<V4>, FlowEntry>,
    epochs: Table<u32, u32>,
}

impl Datapath {
    /// A handle on the flow table, for any thread.
    ///
    /// # Errors
    /// [`DatapathError::Map`] when there is no file descriptor left.
    pub fn flow_table(&self) -> Result<FlowTable, DatapathError> {
        Ok(FlowTable { flows: self.maps.flows_v4.try_clone()?, epochs: self.maps.epochs.try_clone()? })
    }
}

impl FlowTable {
    /// The first `limit` entries that the filter accepts, in the kernel's order. O(table).
    ///
    /// # Errors
    /// [`DatapathError::Map`] if the kernel refuses to be read.
    pub fn list(&self, limit: usize, filter: &FlowFilter) -> Result<Vec<Flow>, DatapathError> {
        let epochs = self.epochs()?;
        let now_ns = now_ns()?;
        let mut flows = Vec::new();
        self.flows.for_each(|key, entry| {
            if flows.len() < limit && filter.accepts(key) {
                flows.push(flow(key, entry, &epochs, now_ns));
            }
        })?;
        Ok(flows)
    }

    /// Counts the flow table. O(table).
    ///
    /// # Errors
    /// As [`Self::list`].
    pub fn stats(&self) -> Result<FlowStats, DatapathError> {
        let epochs = self.epochs()?;
        let mut stats = FlowStats::default();
        self.flows.for_each(|key, entry| {
            stats.entries += 1;
            stats.tcp += u64::from(i32::from(key.protocol) == libc::IPPROTO_TCP);
            stats.stale += u64::from(!is_current(entry, &epochs));
        })?;
        Ok(stats)
    }

    /// Deletes the flows that have been silent for longer than their protocol and state allow, both entries of each
    /// together, and passes those whose end the programs have not reported to `ended`, in batches. O(table) with bounded
    /// memory: meant for every few seconds. A packet that arrives meanwhile costs its flow one more decision, and
    /// nothing else.
    ///
    /// # Errors
    /// As [`Self::list`]; what was deleted before stays deleted.
    pub fn collect(&self, ended: impl FnMut(Vec<EndedFlow>)) -> Result<(), DatapathError> {
        self.collect_at(now_ns()?, ended)
    }

    /// [`Self::collect`] as if it were `now_ns` (`CLOCK_MONOTONIC_COARSE`).
    ///
    /// # Errors
    /// As [`Self::collect`].
    pub fn collect_at(
        &self,
        now_ns: u64,
        mut ended: impl FnMut(Vec<EndedFlow>),
    ) -> Result<(), DatapathError> {
        let mut pass =
            Pass { table: self, epochs: self.epochs()?, now_ns, keys: Vec::new(), ended: Vec::new() };
        let mut result = Ok(());
        self.flows.for_each(|key, entry| {
            if result.is_ok() {
                result = pass.visit(key, entry, &mut ended);
            }
        })?;
        result?;
        pass.flush(&mut ended)
    }

    /// The epoch of each shard, by its number.
    fn epochs(&self) -> Result<Vec<u32>, DatapathError> {
        let mut epochs = self.epochs.dump()?;
        epochs.sort_unstable();
        Ok(epochs.into_iter().map(|(_, epoch)| epoch).collect())
    }
}

/// One collection.
struct Pass<'a> {
    table: &'a FlowTable,
    epochs: Vec<u32>,
    now_ns: u64,
    /// To be deleted.
    keys: Vec<FlowKey<V4>>,
    ended: Vec<EndedFlow>,
}

impl Pass<'_> {
    fn visit(
        &mut self,
        key: &FlowKey<V4>,
        entry: &FlowEntry,
        ended: &mut impl FnMut(Vec<EndedFlow>),
    ) -> Result<(), DatapathError> {
        // The other entry is another system call: not for flows that no entry could show to be over.
        let silent = Duration::from_nanos(self.now_ns.saturating_sub(entry.last_seen_ns));
        if silent <= lifetime(key.protocol, u8::MAX, u8::MAX, false) {
            return Ok(());
        }
        let reverse_key = entry.reverse_key(key);
        let reverse = self.table.flows.get(&reverse_key)?;
        let is_reply = entry.flags & flow_flags::REPLY != 0;
        let original_exists = reverse.is_some_and(|reverse| reverse.flags & flow_flags::REPLY == 0);
        // Each flow is judged once, from its original direction while that is there.
        if (is_reply && original_exists) || !has_expired(key.protocol, entry, reverse.as_ref(), self.now_ns) {
            return Ok(());
        }
        self.keys.push(*key);
        self.keys.extend(reverse.map(|_| reverse_key));
        if !is_reply && entry.flags & flow_flags::ENDED == 0 {
            self.ended.push(EndedFlow {
                flow: flow(key, entry, &self.epochs, self.now_ns),
                reply_packets: reverse.map_or(0, |reply| reply.packets),
                reply_bytes: reverse.map_or(0, |reply| reply.bytes),
            });
        }
        if self.keys.len() >= BATCH_ENTRIES as usize { self.flush(ended) } else { Ok(()) }
    }

    fn flush(&mut self, ended: &mut impl FnMut(Vec<EndedFlow>)) -> Result<(), DatapathError> {
        let failed = self.table.flows.delete_all(&std::mem::take(&mut self.keys));
        if !self.ended.is_empty() {
            ended(std::mem::take(&mut self.ended));
        }
        failed.into_iter().next().map_or(Ok(()), |(_, error)| Err(error))
    }
}

impl Flow {
    /// The five-tuple, in one line.
    pub(crate) fn key(&self) -> serde_json::Value {
        let Self { source, source_port, destination, destination_port, protocol, .. } = self;
        format!("{protocol} {source}:{source_port} -> {destination}:{destination_port}").into()
    }
}

impl FlowFilter {
    fn accepts(&self, key: &FlowKey<V4>) -> bool {
        let (source, destination) = (Ipv4Addr::from(key.src), Ipv4Addr::from(key.dst));
        let ports = [u16::from_be_bytes(key.src_port_be), u16::from_be_bytes(key.dst_port_be)];
        self.address.is_none_or(|address| address == source || address == destination)
            && self.protocol.is_none_or(|protocol| protocol == key.protocol)
            && self.port.is_none_or(|port| ports.contains(&port))
    }
}

fn is_current(entry: &FlowEntry, epochs: &[u32]) -> bool {
    let epoch = |shard: u16| epochs.get(usize::from(shard)).copied().unwrap_or_default();
    entry.epoch == epoch(entry.src_shard).wrapping_add(epoch(entry.dst_shard))
}

pub(crate) fn flow(key: &FlowKey<V4>, entry: &FlowEntry, epochs: &[u32], now_ns: u64) -> Flow {
    let ago_ms = |then_ns: u64| Duration::from_nanos(now_ns.saturating_sub(then_ns)).as_millis() as u64;
    let rewritten = |flag: u8, address: V4, port_be: [u8; 2]| {
        (entry.flags & flag != 0).then(|| SocketAddr::from((address, u16::from_be_bytes(port_be))))
    };
    Flow {
        source: Ipv4Addr::from(key.src).into(),
        destination: Ipv4Addr::from(key.dst).into(),
        source_port: u16::from_be_bytes(key.src_port_be),
        destination_port: u16::from_be_bytes(key.dst_port_be),
        protocol: key.protocol,
        source_identity: entry.src_identity,
        destination_identity: entry.dst_identity,
        from: match SourceKind::from_number(entry.source_kind) {
            Some(SourceKind::Endpoint) => "endpoint",
            Some(SourceKind::Node) => "node",
            Some(SourceKind::Host) => "host",
            Some(SourceKind::Underlay) => "underlay",
            None => "unknown",
        },
        from_index: entry.source,
        action: match FlowAction::from_number(entry.action) {
            Some(FlowAction::Local) => "local",
            Some(FlowAction::Tunnel) => "tunnel",
            Some(FlowAction::Host) => "host",
            Some(FlowAction::Stack) => "stack",
            Some(FlowAction::Underlay) => "underlay",
            None => "unknown",
        },
        to_index: entry.target,
        new_source: rewritten(flow_flags::REWRITE_SRC, entry.rewrite_src, entry.rewrite_src_port_be),
        new_destination: rewritten(flow_flags::REWRITE_DST, entry.rewrite_dst, entry.rewrite_dst_port_be),
        backend: (!matches!(entry.backend, 0 | BACKEND_ELSEWHERE)).then_some(entry.backend),
        reply: entry.flags & flow_flags::REPLY != 0,
        packets: entry.packets,
        bytes: entry.bytes,
        tcp_flags: entry.tcp_flags,
        idle_ms: ago_ms(entry.last_seen_ns),
        age_ms: ago_ms(entry.created_ns),
        current: is_current(entry, epochs),
    }
}

/// The clock of the programs.
pub(crate) fn now_ns() -> Result<u64, DatapathError> {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC_COARSE)
        .map_err(|error| DatapathError::NotReady(format!("no coarse clock: {error}")))?;
    Ok(Duration::from(time).as_nanos() as u64)
}

#[cfg(test)]
mod tests;
