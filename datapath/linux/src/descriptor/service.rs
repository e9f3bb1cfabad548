//! Service ports: an array by number, their slots, and their source ranges.

use std::collections::{BTreeMap, BTreeSet};

use datapath_abi::{ServiceEntry, SlotBlock, SlotsKey, service_flags};
use datapath_plan::{
    Algorithm, BackendId, BackendValue, Entry, Op, OpFailure, ServiceId, ServiceMode, ServiceValue,
    lb::{Member, SlotTable},
};
use ipnetwork::IpNetwork;

use super::{Answer, KernelTable, Observation, Progress, repeat, slots, source_range, v4};
use crate::{datapath::Datapath, error::DatapathError};

/// Service ports whose slots are made and written together: some megabytes.
const TABLES_AT_ONCE: usize = 256;

/// A service port as it will be written.
struct Draft {
    /// Slots, then members.
    words: Vec<u32>,
    entry: ServiceEntry,
    sources: Vec<source_range::Key>,
    /// A member that the kernel has no backend for.
    missing: Option<BackendId>,
}

impl KernelTable for ServiceValue {
    /// A member whose backend is not there is left out, and the step fails.
    async fn put(
        datapath: &mut Datapath,
        rows: &[(ServiceId, &Self)],
        progress: &Progress<'_>,
    ) -> Vec<Answer> {
        let absent: BTreeSet<BackendId> = progress.failures.iter().filter_map(failed_backend).collect();
        let (mut sources, mut written) = (Vec::new(), BTreeSet::new());
        let mut answers = Vec::with_capacity(rows.len());
        for rows in rows.chunks(TABLES_AT_ONCE) {
            let draft = |(id, value): &(ServiceId, &Self)| {
                let planned = progress.slot_tables.get(id).ok_or_else(|| {
                    DatapathError::NotReady(format!("the plan has no slots for service {id}"))
                })?;
                let slots = planned.clone().without(|id| absent.contains(&id));
                draft(*id, value, &slots, datapath.slot_tables.take())
            };
            let drafts: Vec<_> = rows.iter().map(draft).collect();
            sources.extend(drafts.iter().flatten().flat_map(|draft| draft.sources.iter().copied()));
            answers.extend(write(datapath, rows, drafts, &mut written));
        }
        // After the entries: the programs must not find an entry without its ranges.
        if let Err(error) = source_range::keep_only(&datapath.maps, &written, &sources) {
            return repeat(rows.len(), &error);
        }
        answers
    }

    async fn delete(datapath: &mut Datapath, ids: &[ServiceId]) -> Vec<Answer> {
        let numbers: Vec<u32> = ids.iter().map(|id| id.0).collect();
        let former = numbers.iter().map(|id| datapath.maps.services.get(id)).collect::<Result<Vec<_>, _>>();
        let former = match former {
            Ok(former) => former,
            Err(error) => return repeat(ids.len(), &error),
        };
        let mut answers: Vec<Answer> = ids.iter().map(|_| Ok(())).collect();
        for (place, error) in datapath.maps.services.delete_all(&numbers) {
            answers[place] = Err(error);
        }
        for (entry, _) in former.iter().flatten().zip(&answers).filter(|(_, answer)| answer.is_ok()) {
            datapath.slot_tables.retire(entry);
        }
        match source_range::keep_only(&datapath.maps, &numbers.into_iter().collect(), &[]) {
            Ok(()) => answers,
            Err(error) => repeat(ids.len(), &error),
        }
    }

    /// A service whose slots are not what its members say is left out. Source ranges of no service are shown as those of a
    /// service that nobody wants; slots of no service go with the next plan.
    async fn observe(datapath: &mut Datapath, observation: &mut Observation) -> Answer {
        let maps = &datapath.maps;
        let mut blocks = BTreeMap::new();
        maps.slots.for_each(|key, block| {
            blocks.insert(*key, *block);
        })?;
        let mut sources = source_range::observe(maps)?;
        let (tables, broken) = (&mut observation.observed.tables, &mut observation.observed.broken);
        let mut used = BTreeSet::new();
        maps.services.for_each_entry(|id, entry| {
            used.insert(entry.table().0);
            let ranges = sources.remove(id).unwrap_or_default();
            // Ranges without the flag are not looked at, and the flag without ranges lets nobody in: both are repaired.
            let agree = (entry.flags & service_flags::SOURCES != 0) != ranges.is_empty();
            match decode(entry, ranges, &blocks, &tables.backends) {
                Some(value) if agree => drop(tables.services.insert(ServiceId(*id), value)),
                Some(_) => {
                    broken.push(format!("service {id}: its source ranges are not what its entry says"))
                }
                None => broken.push(format!("service {id}: its table is not that of its members")),
            }
        })?;
        for (id, source_ranges) in sources {
            broken.push(format!("service {id}: there are source ranges of it, and it is not there"));
            let (algorithm, mode) = (Algorithm::Random, ServiceMode::Snat);
            let value = Self { algorithm, affinity_seconds: 0, mode, source_ranges, members: Vec::new() };
            tables.services.insert(ServiceId(id), value);
        }
        for table in datapath.slot_tables.retire_unknown(blocks.keys(), &used) {
            broken.push(format!("slots: table {table} is no service's"));
        }
        Ok(())
    }
}

fn failed_backend(failure: &OpFailure) -> Option<BackendId> {
    match &failure.op {
        Op::Put(Entry::Backend(id, _)) => Some(*id),
        _ => None,
    }
}

fn draft(
    id: ServiceId,
    value: &ServiceValue,
    table: &SlotTable,
    number: u32,
) -> Result<Draft, DatapathError> {
    let sources = source_range::keys(id, &value.source_ranges)?;
    let slots = table.slots();
    let members = table.members().iter().map(|member| member.id);
    let words: Vec<u32> = slots.iter().copied().chain(members).map(|id| id.0).collect();
    let flags = service_flags::PRESENT
        | if value.algorithm == Algorithm::Maglev { service_flags::MAGLEV } else { 0 }
        | if value.mode == ServiceMode::Dsr { service_flags::DSR } else { 0 }
        | if value.source_ranges.is_empty() { 0 } else { service_flags::SOURCES };
    let entry = ServiceEntry {
        table: u64::from(number) << 32 | slots.len() as u64,
        digest: digest(&words, id, table.members().iter().copied())?,
        affinity_seconds: value.affinity_seconds,
        flags,
        members: table.members().len() as u32,
        pad: 0,
    };
    Ok(Draft { words, entry, sources, missing: table.missing(value) })
}

/// Writes slots and source ranges, then the entries that lead there, and adds their ports to `written`. A port of which
/// something is refused goes on as it is.
fn write(
    datapath: &mut Datapath,
    rows: &[(ServiceId, &ServiceValue)],
    drafts: Vec<Result<Draft, DatapathError>>,
    written: &mut BTreeSet<u32>,
) -> Vec<Answer> {
    let (mut blocks, mut sources) = (Vec::new(), Vec::new());
    // The draft that each of them belongs to.
    let (mut block_owners, mut source_owners) = (Vec::new(), Vec::new());
    for (place, draft) in drafts.iter().enumerate() {
        let Ok(draft) = draft else { continue };
        sources.extend(draft.sources.iter().map(|key| (*key, 1)));
        source_owners.resize(sources.len(), place);
        blocks.extend(slots::split(draft.entry.table().0, &draft.words));
        block_owners.resize(blocks.len(), place);
    }
    let refused = datapath.maps.slots.put_all(&blocks).into_iter();
    let mut refused: BTreeMap<usize, DatapathError> =
        refused.map(|(block, error)| (block_owners[block], error)).collect();
    let failed = datapath.maps.sources_lpm_v4.put_all(&sources).into_iter();
    refused.extend(failed.map(|(source, error)| (source_owners[source], error)));
    let answer = |(place, (draft, (id, _))): (usize, (Result<Draft, DatapathError>, &(ServiceId, _)))| {
        let draft = draft?;
        if let Some(error) = refused.remove(&place) {
            datapath.slot_tables.retire(&draft.entry);
            return Err(error);
        }
        let before = datapath.maps.services.get(&id.0)?.unwrap_or_default();
        datapath.maps.services.put(&id.0, &draft.entry)?;
        datapath.slot_tables.retire(&before);
        written.insert(id.0);
        match draft.missing {
            None => Ok(()),
            Some(id) => Err(DatapathError::NotReady(format!("backend {id} is not there"))),
        }
    };
    drafts.into_iter().zip(rows).enumerate().map(answer).collect()
}

/// The service of an entry, if its slots are whole and those of its members.
fn decode(
    entry: &ServiceEntry,
    source_ranges: Vec<IpNetwork>,
    blocks: &BTreeMap<SlotsKey, SlotBlock>,
    backends: &BTreeMap<BackendId, BackendValue>,
) -> Option<ServiceValue> {
    let (table, slots) = entry.table();
    let words = slots::join(table, slots.checked_add(entry.members)?, blocks)?;
    let members: Vec<BackendId> = words[slots as usize..].iter().copied().map(BackendId).collect();
    let known: Option<Vec<_>> = members.iter().map(|id| Some((*id, backends.get(id)?))).collect();
    let known = known?;
    let service = known.first().map_or(ServiceId(0), |(_, value)| value.service);
    let agree = known.iter().all(|(_, value)| value.service == service);
    let digest = digest(&words, service, known.iter().map(|(id, value)| Member::new(*id, value))).ok()?;
    if !agree || digest != entry.digest {
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
fn digest(
    words: &[u32],
    service: ServiceId,
    members: impl Iterator<Item = Member>,
) -> Result<u64, DatapathError> {
    let add = |hash: u64, word: u32| (hash ^ u64::from(word)).wrapping_mul(0x0000_0100_0000_01b3);
    let mut hash = words.iter().copied().fold(0xcbf2_9ce4_8422_2325, add);
    for Member { id, address, port, weight } in members {
        let port_weight = u32::from(port) << 16 | u32::from(weight);
        hash = [id.0, service.0, u32::from_be_bytes(v4(address)?), port_weight].into_iter().fold(hash, add);
    }
    Ok(hash)
}
