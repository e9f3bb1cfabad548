//! The key space of the in-memory store: a synchronous value with etcd's semantics.
//!
//! Property tests and the simulator run on this alone. It has no clock (time is what [`MemState::advance`]
//! says), no thread and no randomness, so the same calls always give the same answers.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ops::Bound,
    time::Duration,
};

use kvstore_schema::{
    Condition, Key, KeyValue, KvEvent, KvOp, KvOpResult, KvOutcome, KvRequest, KvResponse, LeaseId, ListPage,
    Prefix, Revision, StoreIdentity, Txn, TxnResponse,
};

use crate::{StoreError, check::check_txn};

/// One lease.
#[derive(Debug, Clone)]
struct Lease {
    ttl: Duration,
    expires_at: Duration,
    keys: BTreeSet<Key>,
}

/// The whole content of an in-memory store: keys with their past, leases, time.
///
/// A clone is a snapshot, as `etcdctl snapshot save` takes one; see [`MemState::restore`].
///
/// Invariant: the revision rises by one with every transaction that changes something, and only then.
#[derive(Debug, Clone)]
pub struct MemState {
    identity: StoreIdentity,
    revision: Revision,
    /// Reads and watches before this revision are refused; zero before the first compaction.
    compacted: Revision,
    /// The versions of each key, oldest first; `None` is a deletion.
    keys: BTreeMap<Key, Vec<(Revision, Option<KeyValue>)>>,
    /// Every change since the compaction, in order.
    log: VecDeque<KvEvent>,
    leases: BTreeMap<LeaseId, Lease>,
    next_lease: i64,
    /// Time since the store began.
    now: Duration,
}

impl MemState {
    /// An empty store. Its revision is 1, as that of an empty etcd.
    pub fn new(identity: StoreIdentity) -> Self {
        Self {
            identity,
            revision: Revision(1),
            compacted: Revision(0),
            keys: BTreeMap::new(),
            log: VecDeque::new(),
            leases: BTreeMap::new(),
            next_lease: 1,
            now: Duration::ZERO,
        }
    }

    /// The store that this listing of everything shows. What hung on a lease is left out: whoever kept it is
    /// gone; what was before the listing's revision is compacted away.
    pub fn loaded(listing: ListPage) -> Self {
        let kept = listing.entries.into_iter().filter(|kv| kv.lease.is_none());
        Self {
            revision: listing.revision,
            compacted: listing.revision,
            keys: kept.map(|kv| (kv.key.clone(), vec![(kv.mod_revision, Some(kv))])).collect(),
            ..Self::new(listing.store)
        }
    }

    /// Which store this is.
    pub fn identity(&self) -> StoreIdentity {
        self.identity
    }

    /// The newest revision.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// How many changes are kept for watches from the past.
    pub fn history_len(&self) -> usize {
        self.log.len()
    }

    /// The revision at which the newest `count` kept changes begin.
    pub(crate) fn revision_before(&self, count: usize) -> Revision {
        let first = self.log.len().saturating_sub(count);
        self.log.get(first).map_or(self.revision, KvEvent::mod_revision)
    }

    /// The bytes of all keys and values as they are now.
    pub fn bytes(&self) -> u64 {
        let living = self.keys.values().filter_map(|versions| versions.last()?.1.as_ref());
        living.map(|kv| kv.key.as_bytes().len() as u64 + kv.value.len() as u64).sum()
    }

    /// A key as it is now.
    pub fn get(&self, key: &Key) -> Option<&KeyValue> {
        self.keys.get(key)?.last()?.1.as_ref()
    }

    /// Answers a request as data; a listing comes whole.
    ///
    /// # Errors
    /// As [`MemState::txn`] and [`MemState::list`].
    pub fn execute(&mut self, request: &KvRequest) -> KvOutcome {
        match request {
            KvRequest::Txn(txn) => Ok(KvResponse::Txn(self.txn(txn)?)),
            KvRequest::List(prefix) => Ok(KvResponse::List(self.list(prefix, None, None, usize::MAX)?)),
        }
    }

    /// Carries out a transaction, wholly or not at all.
    ///
    /// # Errors
    /// [`StoreError::Refused`] for what etcd refuses whichever branch would run (too many operations, too
    /// many bytes, a key put twice or put and deleted, an empty key); [`StoreError::LeaseGone`] when the
    /// branch that runs puts on a lease that is not there. Nothing has changed then.
    pub fn txn(&mut self, txn: &Txn) -> Result<TxnResponse, StoreError> {
        check_txn(txn)?;
        let succeeded = txn.conditions.iter().all(|condition| self.holds(condition));
        let branch = if succeeded { &txn.then } else { &txn.otherwise };
        for op in branch {
            if let KvOp::Put { lease: Some(lease), .. } = op
                && !self.leases.contains_key(lease)
            {
                return Err(StoreError::LeaseGone(*lease));
            }
        }
        let changed_at = self.revision.next();
        let results = branch.iter().map(|op| self.apply(op, changed_at)).collect();
        Ok(TxnResponse { succeeded, revision: self.revision, results })
    }

    /// One page of what lies under a prefix at a revision (`None`: now), behind the key `after`.
    ///
    /// # Errors
    /// [`StoreError::Compacted`]; [`StoreError::Replaced`] for a revision that has not been yet.
    pub fn list(
        &self,
        prefix: &Prefix,
        at: Option<Revision>,
        after: Option<&Key>,
        limit: usize,
    ) -> Result<ListPage, StoreError> {
        let at = at.unwrap_or(self.revision);
        self.check_kept(at)?;
        if at > self.revision {
            return Err(StoreError::Replaced(format!(
                "revision {at} wanted, the store is at {}",
                self.revision
            )));
        }
        let first = Key::from_raw(prefix.as_str());
        let start = match after {
            Some(key) if *key >= first => Bound::Excluded(key.clone()),
            _ => Bound::Included(first),
        };
        let mut living = self
            .keys
            .range((start, Bound::Unbounded))
            .take_while(|(key, _)| prefix.contains(key))
            .filter_map(|(_, versions)| version_at(versions, at));
        let entries: Vec<KeyValue> = living.by_ref().take(limit.max(1)).cloned().collect();
        let more = living.next().is_some();
        // etcd pins the content, not the header: a page at an old revision still says which revision it shows.
        Ok(ListPage { entries, revision: at, store: self.identity, more })
    }

    /// Every kept change from a revision on (that revision included), in order; empty when it lies ahead.
    ///
    /// # Errors
    /// [`StoreError::Compacted`].
    pub fn events_since(&self, from: Revision) -> Result<Vec<KvEvent>, StoreError> {
        self.check_kept(from)?;
        let begin = self.log.partition_point(|event| event.mod_revision() < from);
        Ok(self.log.range(begin..).cloned().collect())
    }

    /// Forgets what was before a revision; what lives at it stays.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] when that is done already, [`StoreError::Replaced`] for a future revision.
    pub fn compact(&mut self, at: Revision) -> Result<(), StoreError> {
        if at <= self.compacted {
            return Err(StoreError::Compacted { requested: at, oldest: Some(self.compacted) });
        }
        if at > self.revision {
            return Err(StoreError::Replaced(format!(
                "compaction at {at}, the store is at {}",
                self.revision
            )));
        }
        self.compacted = at;
        // A watch from the compacted revision itself is still allowed. etcd before 3.6 then loses a deletion
        // made at exactly that revision; here it is kept, as later versions keep it.
        self.log.drain(..self.log.partition_point(|event| event.mod_revision() < at));
        self.keys.retain(|_, versions| {
            let kept_from = versions.partition_point(|(revision, _)| *revision <= at).saturating_sub(1);
            versions.drain(..kept_from);
            if versions[0].0 <= at && versions[0].1.is_none() {
                versions.remove(0);
            }
            !versions.is_empty()
        });
        Ok(())
    }

    /// Makes a lease; the time is rounded up to whole seconds, at least one.
    pub fn lease_grant(&mut self, ttl: Duration) -> LeaseId {
        let whole = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
        let ttl = Duration::from_secs(whole.max(1));
        let id = LeaseId(self.next_lease);
        self.next_lease += 1;
        self.leases.insert(id, Lease { ttl, expires_at: self.now + ttl, keys: BTreeSet::new() });
        id
    }

    /// Prolongs a lease to its whole time, which is returned.
    ///
    /// # Errors
    /// [`StoreError::LeaseGone`].
    pub fn lease_keep_alive(&mut self, id: LeaseId) -> Result<Duration, StoreError> {
        let lease = self.leases.get_mut(&id).ok_or(StoreError::LeaseGone(id))?;
        lease.expires_at = self.now + lease.ttl;
        Ok(lease.ttl)
    }

    /// Ends a lease and deletes its keys, all in one revision. One that is gone is no error.
    pub fn lease_revoke(&mut self, id: LeaseId) {
        if let Some(lease) = self.leases.remove(&id) {
            let deleted_at = self.revision.next();
            for key in lease.keys {
                self.write(key, deleted_at, None);
            }
        }
    }

    /// Lets time pass; leases that run out end in the order of their ends, each with a revision of its own.
    pub fn advance(&mut self, by: Duration) {
        self.now += by;
        let mut over: Vec<(Duration, LeaseId)> = self
            .leases
            .iter()
            .filter(|(_, lease)| lease.expires_at <= self.now)
            .map(|(id, lease)| (lease.expires_at, *id))
            .collect();
        over.sort_unstable();
        for (_, id) in over {
            self.lease_revoke(id);
        }
    }

    /// Puts an earlier state back, as a restore from a backup does on members of the same names: the
    /// revision goes backwards, the cluster id stays.
    pub fn restore(&mut self, snapshot: Self) {
        *self = Self { identity: self.identity, now: self.now, ..snapshot };
    }

    fn check_kept(&self, revision: Revision) -> Result<(), StoreError> {
        if revision < self.compacted {
            return Err(StoreError::Compacted { requested: revision, oldest: Some(self.compacted) });
        }
        Ok(())
    }

    fn holds(&self, condition: &Condition) -> bool {
        match condition {
            Condition::Absent(key) => self.get(key).is_none(),
            Condition::Present(key) => self.get(key).is_some(),
            Condition::RangeEmpty(prefix) => self
                .keys
                .range(Key::from_raw(prefix.as_str())..)
                .take_while(|(key, _)| prefix.contains(key))
                .all(|(key, _)| self.get(key).is_none()),
            Condition::ModRevision(key, revision) => {
                self.get(key).is_some_and(|kv| kv.mod_revision == *revision)
            }
            Condition::CreateRevision(key, revision) => {
                self.get(key).is_some_and(|kv| kv.create_revision == *revision)
            }
            Condition::ValueIs(key, value) => self.get(key).is_some_and(|kv| kv.value == *value),
        }
    }

    fn apply(&mut self, op: &KvOp, revision: Revision) -> KvOpResult {
        match op {
            KvOp::Put { key, value, lease } => {
                let kv = KeyValue {
                    key: key.clone(),
                    value: value.clone(),
                    create_revision: self.get(key).map_or(revision, |old| old.create_revision),
                    mod_revision: revision,
                    lease: *lease,
                };
                self.write(key.clone(), revision, Some(kv));
                KvOpResult::Put
            }
            KvOp::Delete(key) if self.get(key).is_none() => KvOpResult::Deleted(0),
            KvOp::Delete(key) => {
                self.write(key.clone(), revision, None);
                KvOpResult::Deleted(1)
            }
            KvOp::Get(key) => KvOpResult::Got(self.get(key).cloned()),
        }
    }

    fn write(&mut self, key: Key, revision: Revision, version: Option<KeyValue>) {
        if let Some(old) = self.get(&key).and_then(|old| old.lease)
            && let Some(lease) = self.leases.get_mut(&old)
        {
            lease.keys.remove(&key);
        }
        if let Some(new) = version.as_ref().and_then(|kv| kv.lease)
            && let Some(lease) = self.leases.get_mut(&new)
        {
            lease.keys.insert(key.clone());
        }
        self.log.push_back(match &version {
            Some(kv) => KvEvent::Put(kv.clone()),
            None => KvEvent::Delete { key: key.clone(), mod_revision: revision },
        });
        self.keys.entry(key).or_default().push((revision, version));
        self.revision = revision;
    }
}

fn version_at(versions: &[(Revision, Option<KeyValue>)], at: Revision) -> Option<&KeyValue> {
    let count = versions.partition_point(|(revision, _)| *revision <= at);
    versions[..count].last()?.1.as_ref()
}
