//! The programs' counters: one for each reason and direction, summed over all CPUs.

use std::{
    collections::BTreeMap,
    io,
    mem::size_of,
    os::fd::{AsFd, OwnedFd},
};

use aya::maps::MapData;
use datapath_abi::{COUNTED_BY_XDP, COUNTER_SLOTS, Counter, Direction, DropReason, counter_slot, map_name};
use serde::Serialize;

use crate::{bpf, error::DatapathError};

/// The subject of a counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CounterKind {
    /// Packets that were forwarded.
    Forwarded,
    /// Packets that were dropped.
    Dropped(DropReason),
    /// Packets that XDP forwarded; they are counted as forwarded, too.
    ForwardedByXdp,
    /// Events that were not reported: the ring was full, or their budget was used up.
    EventsLost,
}

impl CounterKind {
    /// All of them.
    pub fn all() -> impl Iterator<Item = Self> {
        let dropped = DropReason::ALL.iter().copied().map(Self::Dropped);
        [Self::Forwarded].into_iter().chain(dropped).chain([Self::ForwardedByXdp, Self::EventsLost])
    }

    /// The word used in metrics and on the command line.
    pub const fn key(self) -> &'static str {
        match self {
            Self::Forwarded => "forwarded",
            Self::Dropped(reason) => reason.key(),
            Self::ForwardedByXdp => "before-stack",
            Self::EventsLost => "events-lost",
        }
    }

    const fn reason_number(self) -> u8 {
        match self {
            Self::Forwarded => 0,
            Self::Dropped(reason) => reason as u8,
            Self::ForwardedByXdp => COUNTED_BY_XDP,
            Self::EventsLost => 255,
        }
    }
}

/// Packets and bytes, summed over all CPUs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Count {
    /// Packets (or events).
    pub packets: u64,
    /// Bytes, from the Ethernet header on.
    pub bytes: u64,
}

/// All counters, also those at zero.
pub type Counters = BTreeMap<(CounterKind, Direction), Count>;

/// The per-CPU array of counters.
#[derive(Debug)]
pub(crate) struct CounterTable {
    fd: OwnedFd,
    cpus: usize,
}

impl CounterTable {
    pub(crate) fn open(data: &MapData) -> Result<Self, DatapathError> {
        let info = data.info().map_err(|error| layout(error.to_string()))?;
        if info.value_size() as usize != size_of::<Counter>() || info.max_entries() != COUNTER_SLOTS {
            return Err(layout(format!("{} slots of {} bytes", info.max_entries(), info.value_size())));
        }
        let cpus = aya::util::nr_cpus().map_err(|(_, source)| fail("count the CPUs of", source))?;
        let fd = data.fd().as_fd().try_clone_to_owned().map_err(|source| fail("open", source))?;
        Ok(Self { fd, cpus })
    }

    pub(crate) fn read(&self) -> Result<Counters, DatapathError> {
        let mut counters = Counters::new();
        for kind in CounterKind::all() {
            for direction in Direction::ALL {
                let count = self.slot(counter_slot(kind.reason_number(), *direction))?;
                counters.insert((kind, *direction), count);
            }
        }
        Ok(counters)
    }

    fn slot(&self, slot: u32) -> Result<Count, DatapathError> {
        let mut per_cpu = vec![Counter::default(); self.cpus];
        // SAFETY: the key is a u32; the kernel writes one value (16 bytes, a multiple of 8, checked in `open`)
        // for each possible CPU.
        unsafe { bpf::lookup(self.fd.as_fd(), (&raw const slot).cast(), per_cpu.as_mut_ptr().cast()) }
            .map_err(|source| fail("read", source))?;
        Ok(per_cpu.iter().fold(Count::default(), |sum, counter| Count {
            packets: sum.packets + counter.packets,
            bytes: sum.bytes + counter.bytes,
        }))
    }
}

fn layout(text: String) -> DatapathError {
    DatapathError::Layout { map: map_name::COUNTERS.into(), text }
}

fn fail(operation: &'static str, source: io::Error) -> DatapathError {
    DatapathError::Map { map: map_name::COUNTERS, operation, source }
}
