//! Services in the kernel: their tables of slots, made beside those that are in use, and their entries.

use std::collections::BTreeMap;

use datapath_abi::{
    BLOCK_SLOTS, BackendEntry, FrontendEntry, FrontendKey, ServiceEntry, SlotBlock, SlotsKey, V4,
    backend_flags, frontend_kind, service_flags, service_port_bit,
};
use datapath_plan::{
    Algorithm, BackendId, BackendState, BackendValue, Frontend, FrontendKind, FrontendValue, Observed, Op,
    Protocol, ServiceId, ServiceMode, ServiceValue,
    lb::{self, Member},
};

use ipnetwork::IpNetwork;

use crate::{
    apply::{Answer, first_failure, repeat, v4},
    datapath::Datapath,
    error::DatapathError,
    maps::Maps,
    source_range,
    table::Table,
};

/// Service ports whose tables are made and written together: some megabytes.
const TABLES_AT_ONCE: usize = 256;
const BLOCK: usize = BLOCK_SLOTS as usize;

/// The numbers of tables: which is next, and what is left of those that nothing leads to any more.
#[derive(Debug)]
pub(crate) struct Tables {
    next: u32,
    /// Deleted with the next plan: programs that run now may still look there.
    retired: Vec<SlotsKey>,
}

/// A table to be: slots, then members.
struct Draft {
    words: Vec<u32>,
    entry: ServiceEntry,
    sources: Vec<source_range::Key>,
    /// A member without an entry.
    missing: Option<BackendId>,
}

impl Tables {
    /// From what the kernel holds: what an agent that died has left is retired.
    pub(crate) fn adopt(maps: &Maps) -> Result<Self, DatapathError> {
        let mut used = Vec::new();
        maps.services.for_each(|_, entry| {
            if entry.flags & service_flags::PRESENT != 0 {
                used.push(entry.table().0);
            }
        })?;
        used.sort_unstable();
        let (mut next, mut retired) = (1, Vec::new());
        maps.slots.for_each(|key, _| {
            next = next.max(key.table.wrapping_add(1));
            if used.binary_search(&key.table).is_err() {
                retired.push(*key);
            }
        })?;
        Ok(Self { next, retired })
    }

    /// Takes away what was retired before.
    pub(crate) fn clear(&mut self, maps: &Maps) -> Answer {
        if self.retired.is_empty() {
            return Ok(());
        }
        first_failure(maps.slots.delete_all(&self.retired))?;
        self.retired.clear();
        Ok(())
    }

    fn take(&mut self) -> u32 {
        let table = self.next;
        self.next = self.next.wrapping_add(1);
        table
    }

    fn retire(&mut self, entry: &ServiceEntry) {
        if entry.flags & service_flags::PRESENT != 0 {
            let (table, slots) = entry.table();
            self.retired.extend((0..blocks(slots + entry.members)).map(|block| SlotsKey { table, block }));
        }
    }
}

const fn blocks(words: u32) -> u32 {
    words.div_ceil(BLOCK_SLOTS)
}

impl Datapath {
    pub(crate) fn put_backends(&self, run: &[Op]) -> Vec<Answer> {
        let rows = run.iter().filter_map(|op| match op {
            Op::PutBackend(id, value) => Some(v4(value.address).map(|address| (id.0, row(value, address)))),
            _ => None,
        });
        put_each(&self.maps.backends_v4, rows.collect())
    }

    pub(crate) fn delete_backends(&self, run: &[Op]) -> Vec<Answer> {
        let rows = run.iter().filter_map(|op| match op {
            Op::DeleteBackend(id) => Some(Ok((id.0, BackendEntry::default()))),
            _ => None,
        });
        put_each(&self.maps.backends_v4, rows.collect())
    }

    pub(crate) fn put_frontends(&self, run: &[Op]) -> Vec<Answer> {
        let rows = run.iter().filter_map(|op| match op {
            Op::PutFrontend(frontend, value) => Some(key(frontend).map(|key| (key, leads_to(value)))),
            _ => None,
        });
        let rows: Vec<_> = rows.collect();
        let keys: Vec<_> = rows.iter().flatten().map(|(key, _)| *key).collect();
        let answers = put_each(&self.maps.frontends_v4, rows);
        match self.open_ports(&keys) {
            Ok(()) => answers,
            Err(error) => repeat(run, &error),
        }
    }

    /// Lets what comes from outside to these ports be looked at.
    fn open_ports(&self, frontends: &[FrontendKey<V4>]) -> Answer {
        let mut words: BTreeMap<u32, u64> = BTreeMap::new();
        for key in frontends {
            let (word, bit) = service_port_bit(key.protocol, u16::from_be_bytes(key.port_be));
            *words.entry(word).or_default() |= bit;
        }
        for (word, bits) in words {
            let before = self.maps.service_ports.get(&word)?.unwrap_or_default();
            if before & bits != bits {
                self.maps.service_ports.put(&word, &(before | bits))?;
            }
        }
        Ok(())
    }

    pub(crate) fn delete_frontends(&self, run: &[Op]) -> Vec<Answer> {
        run.iter()
            .filter_map(|op| match op {
                Op::DeleteFrontend(frontend) => {
                    Some(key(frontend).and_then(|key| self.maps.frontends_v4.delete(&key)))
                }
                _ => None,
            })
            .collect()
    }

    pub(crate) fn put_services(&mut self, run: &[Op]) -> Vec<Answer> {
        run.chunks(TABLES_AT_ONCE).flat_map(|some| self.put_some_services(some)).collect()
    }

    fn put_some_services(&mut self, run: &[Op]) -> Vec<Answer> {
        let services = run.iter().filter_map(|op| match op {
            Op::PutService(id, value) => Some((*id, value)),
            _ => None,
        });
        let drafts: Vec<(ServiceId, Result<Draft, DatapathError>)> =
            services.map(|(id, value)| (id, self.draft(id, value))).collect();
        let (mut parts, mut sources) = (Vec::new(), Vec::new());
        // Which draft a part or a source range belongs to.
        let (mut owners, mut source_owners) = (Vec::new(), Vec::new());
        for (place, (_, draft)) in drafts.iter().enumerate() {
            let Ok(draft) = draft else { continue };
            sources.extend(draft.sources.iter().map(|key| (*key, 1)));
            source_owners.resize(sources.len(), place);
            let (table, _) = draft.entry.table();
            for (block, words) in (0..).zip(draft.words.chunks(BLOCK)) {
                let mut slots = [0; BLOCK];
                slots[..words.len()].copy_from_slice(words);
                parts.push((SlotsKey { table, block }, SlotBlock { slots }));
                owners.push(place);
            }
        }
        let failed = self.maps.slots.put_all(&parts).into_iter();
        let mut failed: BTreeMap<usize, DatapathError> =
            failed.map(|(part, error)| (owners[part], error)).collect();
        let refused = self.maps.sources_lpm_v4.put_all(&sources).into_iter();
        failed.extend(refused.map(|(source, error)| (source_owners[source], error)));
        // What was refused goes on as it is.
        let good = (0..).zip(&drafts).filter(|(_, (_, draft))| draft.is_ok());
        let good: BTreeMap<usize, u32> = good.map(|(place, (id, _))| (place, id.0)).collect();
        let mut answers: Vec<Answer> = drafts
            .into_iter()
            .enumerate()
            .map(|(place, (id, draft))| {
                let draft = draft?;
                match failed.remove(&place) {
                    // What is there of its table is nobody's.
                    Some(error) => {
                        self.slot_tables.retire(&draft.entry);
                        Err(error)
                    }
                    None => self.switch(id, &draft.entry).and(match draft.missing {
                        None => Ok(()),
                        Some(BackendId(id)) => {
                            Err(DatapathError::NotReady(format!("backend {id} is not there")))
                        }
                    }),
                }
            })
            .collect();
        // After the entries were switched.
        let keep: Vec<_> = sources.iter().map(|(key, _)| *key).collect();
        let ids = good.values().copied().collect();
        if let Err(error) = source_range::keep_only(&self.maps, &ids, &keep) {
            let text = error.chain();
            for place in good.keys() {
                answers[*place] = Err(DatapathError::NotReady(text.clone()));
            }
        }
        answers
    }

    /// The table of a service port, made of those of its members that are there.
    fn draft(&mut self, id: ServiceId, value: &ServiceValue) -> Result<Draft, DatapathError> {
        let sources = source_range::keys(id, &value.source_ranges)?;
        let mut rows = Vec::with_capacity(value.members.len());
        let mut missing = None;
        for id in &value.members {
            match self.maps.backends_v4.get(&id.0)? {
                Some(row) if row.service != 0 => rows.push((*id, row)),
                _ => missing = missing.or(Some(*id)),
            }
        }
        let members: Vec<Member> = rows.iter().map(|(id, row)| member(*id, row)).collect();
        let slots = lb::slots(value.algorithm, &members);
        let table = u64::from(self.slot_tables.take()) << 32 | slots.len() as u64;
        let words: Vec<u32> = slots.iter().chain(rows.iter().map(|(id, _)| id)).map(|id| id.0).collect();
        let digest = digest(&words, &rows);
        let flags = service_flags::PRESENT
            | if value.algorithm == Algorithm::Maglev { service_flags::MAGLEV } else { 0 }
            | if value.mode == ServiceMode::Dsr { service_flags::DSR } else { 0 }
            | if value.source_ranges.is_empty() { 0 } else { service_flags::SOURCES };
        let entry = ServiceEntry {
            table,
            digest,
            affinity_seconds: value.affinity_seconds,
            flags,
            members: rows.len() as u32,
            pad: 0,
        };
        Ok(Draft { words, entry, sources, missing })
    }

    /// Lets a service port's flows find another table, or none.
    fn switch(&mut self, id: ServiceId, entry: &ServiceEntry) -> Answer {
        let before = self.maps.services.get(&id.0)?.unwrap_or_default();
        self.maps.services.put(&id.0, entry)?;
        self.slot_tables.retire(&before);
        Ok(())
    }

    pub(crate) fn delete_services(&mut self, run: &[Op]) -> Vec<Answer> {
        let ids = run.iter().filter_map(|op| match op {
            Op::DeleteService(id) => Some(*id),
            _ => None,
        });
        let ids: Vec<ServiceId> = ids.collect();
        let numbers = ids.iter().map(|id| id.0).collect();
        let answers = ids.into_iter().map(|id| self.switch(id, &ServiceEntry::default())).collect();
        match source_range::keep_only(&self.maps, &numbers, &[]) {
            Ok(()) => answers,
            Err(error) => repeat(run, &error),
        }
    }

    /// Reads services whole. One whose table is not what its members say is left out, and named in `broken`.
    pub(crate) fn observe_services(&self, observed: &mut Observed) -> Result<(), DatapathError> {
        let mut rows = BTreeMap::new();
        self.maps.backends_v4.for_each(|id, row| {
            if row.service != 0 {
                rows.insert(BackendId(*id), *row);
            }
        })?;
        let mut parts = BTreeMap::new();
        self.maps.slots.for_each(|key, block| {
            parts.insert(*key, *block);
        })?;
        let mut sources = source_range::observe(&self.maps)?;
        let ports = self.maps.service_ports.dump()?;
        let ports: BTreeMap<u32, u64> = ports.into_iter().filter(|(_, bits)| *bits != 0).collect();
        let (tables, broken) = (&mut observed.tables, &mut observed.broken);
        self.maps.services.for_each(|id, entry| {
            if entry.flags & service_flags::PRESENT == 0 {
                return;
            }
            let ranges = sources.remove(id).unwrap_or_default();
            // Ranges that nobody looks at are none, and those that are gone let nobody in: either is to be made again.
            let agree = (entry.flags & service_flags::SOURCES != 0) != ranges.is_empty();
            match service(entry, ranges, &parts, &rows) {
                Some(value) if agree => drop(tables.services.insert(ServiceId(*id), value)),
                Some(_) => {
                    broken.push(format!("service {id}: its source ranges are not what its entry says"))
                }
                None => broken.push(format!("service {id}: its table is not that of its members")),
            }
        })?;
        self.maps.frontends_v4.for_each(|key, entry| {
            let (word, bit) = service_port_bit(key.protocol, u16::from_be_bytes(key.port_be));
            // One that is not asked for is not there.
            let is_asked = ports.get(&word).is_some_and(|bits| bits & bit != 0);
            if let (Some(frontend), Some(kind), true) = (frontend(key), kind(entry.kind), is_asked) {
                tables.frontends.insert(frontend, FrontendValue { service: ServiceId(entry.service), kind });
            }
        })?;
        tables.backends = rows.iter().map(|(id, row)| (*id, backend(row))).collect();
        Ok(())
    }
}

/// What a service's entry says, if its table is whole.
fn service(
    entry: &ServiceEntry,
    source_ranges: Vec<IpNetwork>,
    parts: &BTreeMap<SlotsKey, SlotBlock>,
    rows: &BTreeMap<BackendId, BackendEntry<V4>>,
) -> Option<ServiceValue> {
    let (table, slots) = entry.table();
    let count = slots.checked_add(entry.members)?;
    let range = SlotsKey { table, block: 0 }..SlotsKey { table, block: blocks(count) };
    let words = parts.range(range).flat_map(|(_, block)| block.slots).take(count as usize);
    let words: Vec<u32> = words.collect();
    let members = words.get(slots as usize..).filter(|_| words.len() == count as usize)?;
    let members: Vec<BackendId> = members.iter().copied().map(BackendId).collect();
    let known: Option<Vec<_>> = members.iter().map(|id| Some((*id, *rows.get(id)?))).collect();
    if digest(&words, &known?) != entry.digest {
        return None;
    }
    let is = |flag: u32| entry.flags & flag != 0;
    Some(ServiceValue {
        algorithm: if is(service_flags::MAGLEV) { Algorithm::Maglev } else { Algorithm::Random },
        affinity_seconds: entry.affinity_seconds,
        mode: if is(service_flags::DSR) { ServiceMode::Dsr } else { ServiceMode::Snat },
        source_ranges,
        members,
    })
}

/// Of a table's words, and of what they were made of (FNV-1a, a word at a time).
fn digest(words: &[u32], rows: &[(BackendId, BackendEntry<V4>)]) -> u64 {
    let of_row = |(id, row): &(BackendId, BackendEntry<V4>)| {
        let port_weight = u32::from(u16::from_be_bytes(row.port_be)) << 16 | u32::from(row.weight);
        [id.0, row.service, u32::from_be_bytes(row.address), port_weight]
    };
    let all = words.iter().copied().chain(rows.iter().flat_map(of_row));
    all.fold(0xcbf2_9ce4_8422_2325, |hash, word| (hash ^ u64::from(word)).wrapping_mul(0x0000_0100_0000_01b3))
}

fn member(id: BackendId, row: &BackendEntry<V4>) -> Member {
    Member::new(id, &backend(row))
}

fn row(value: &BackendValue, address: V4) -> BackendEntry<V4> {
    BackendEntry {
        service: value.service.0,
        address,
        port_be: value.port.to_be_bytes(),
        weight: value.weight,
        flags: match value.state {
            BackendState::Active => 0,
            BackendState::Terminating => backend_flags::TERMINATING,
            BackendState::Unhealthy => backend_flags::UNHEALTHY,
        },
        pad: [0; 3],
    }
}

pub(crate) fn backend(row: &BackendEntry<V4>) -> BackendValue {
    BackendValue {
        service: ServiceId(row.service),
        address: row.address.into(),
        port: u16::from_be_bytes(row.port_be),
        weight: row.weight,
        state: match row.flags {
            0 => BackendState::Active,
            flags if flags & backend_flags::TERMINATING != 0 => BackendState::Terminating,
            _ => BackendState::Unhealthy,
        },
    }
}

fn key(frontend: &Frontend) -> Result<FrontendKey<V4>, DatapathError> {
    let protocol = frontend.protocol.number();
    let port_be = frontend.port.to_be_bytes();
    Ok(FrontendKey { address: v4(frontend.address)?, port_be, protocol, pad: 0 })
}

pub(crate) fn frontend(key: &FrontendKey<V4>) -> Option<Frontend> {
    let protocol = Protocol::from_number(key.protocol)?;
    Some(Frontend { address: key.address.into(), port: u16::from_be_bytes(key.port_be), protocol })
}

fn leads_to(value: &FrontendValue) -> FrontendEntry {
    FrontendEntry { service: value.service.0, kind: kind_number(value.kind) }
}

const fn kind_number(kind: FrontendKind) -> u32 {
    match kind {
        FrontendKind::Virtual => frontend_kind::VIRTUAL,
        FrontendKind::External => frontend_kind::EXTERNAL,
        FrontendKind::NodePort => frontend_kind::NODE_PORT,
        FrontendKind::HostPort => frontend_kind::HOST_PORT,
    }
}

pub(crate) fn kind(number: u32) -> Option<FrontendKind> {
    FrontendKind::ALL.into_iter().find(|kind| kind_number(*kind) == number)
}

/// Writes the rows that there are, and answers for each.
fn put_each<K: datapath_abi::AbiBytes, V: datapath_abi::AbiBytes>(
    table: &Table<K, V>,
    rows: Vec<Result<(K, V), DatapathError>>,
) -> Vec<Answer> {
    let (mut good, mut places, mut answers) = (Vec::new(), Vec::new(), Vec::new());
    for (place, row) in rows.into_iter().enumerate() {
        answers.push(row.map(|row| {
            good.push(row);
            places.push(place);
        }));
    }
    for (index, error) in table.put_all(&good) {
        answers[places[index]] = Err(error);
    }
    answers
}
