//! How lists and events change the view.

use std::{collections::BTreeMap, sync::Arc};

use identity::Identity;
use kvstore_schema::{
    Key, KeyValue, KvEvent, ListPage, Revision, StoreIdentity,
    key::ParsedKey,
    record::{FleetRecord, Life, Record, RecordError},
};

use super::{ChangeKind, Discontinuity, Entry, FleetView, Rejected, ViewChange};

impl FleetView {
    /// Whether a list continues what the view knows. Ask before [`FleetView::apply_list`]: a store that was
    /// wiped or restored must not empty the view on its word alone (P6).
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check_list(&self, page: &ListPage) -> Result<(), Discontinuity> {
        match self.store {
            Some(known) if known != page.store => Err(Discontinuity::OtherStore { known, now: page.store }),
            _ if page.revision < self.revision => {
                Err(Discontinuity::Backwards { known: self.revision, now: page.revision })
            }
            _ => Ok(()),
        }
    }

    /// Makes the view equal to a whole list of the fleet's prefix (all pages together).
    ///
    /// Returns what changed, also what is gone. Applying the list again changes nothing. The list is consumed: that of a
    /// large fleet is as large as the view.
    pub fn apply_list(&mut self, page: ListPage) -> Vec<ViewChange> {
        let root = self.schema.root();
        let mut changes = Vec::new();
        let mut before = std::mem::take(&mut self.keys);
        // A lower revision of the same cluster: it was founded anew while this node was away.
        let replaced = self.store.is_some_and(|known| known != page.store) || page.revision < self.revision;
        if replaced {
            // Nothing that is remembered outlasts the list, and no record of it yields to what is remembered.
            let remembered = std::mem::take(&mut self.remembered);
            before.extend(remembered.into_keys().map(|key| (key, Revision(0))));
        }
        let mut listed = BTreeMap::new();
        for kv in page.entries.into_iter().filter(|kv| root.contains(&kv.key)) {
            let known = before.remove(&kv.key);
            // A revision names a value only within one store.
            if known != Some(kv.mod_revision) || replaced {
                self.put_over(&kv, &mut changes);
            }
            listed.insert(kv.key, kv.mod_revision);
        }
        before.retain(|key, _| !self.remembered.contains_key(key));
        self.resurrected.retain(|key, _| !replaced && listed.contains_key(key));
        for key in before.into_keys() {
            self.forget(&key, &mut changes);
        }
        self.keys = listed;
        self.store = Some(page.store);
        self.revision = page.revision;
        self.listed = true;
        changes
    }

    /// Fills an empty view with the entries of a snapshot, in any order. The view answers from them, and compares the next
    /// list with their store and revision. But the view is not complete: a record that it lacks may exist.
    ///
    /// Values that were not saved whole have modify revision 0, so that the next list replaces them.
    pub fn remember(
        &mut self,
        store: StoreIdentity,
        life: Life,
        revision: Revision,
        entries: impl Iterator<Item = KeyValue>,
    ) -> Vec<ViewChange> {
        let mut changes = Vec::new();
        for kv in entries {
            self.put(&kv, &mut changes);
            self.keys.insert(kv.key, kv.mod_revision);
        }
        self.store = Some(store);
        self.life = life;
        self.revision = revision;
        changes
    }

    /// Applies the changes of one or more whole revisions, in order. Returns what changed, in that order.
    ///
    /// Events of revisions that the view has seen are skipped: repeating is safe.
    pub fn apply_events(&mut self, events: &[KvEvent]) -> Vec<ViewChange> {
        let root = self.schema.root();
        let seen = self.revision;
        let mut changes = Vec::new();
        for event in events {
            self.revision = self.revision.max(event.mod_revision());
            if event.mod_revision() <= seen || !root.contains(event.key()) {
                continue;
            }
            match event {
                KvEvent::Put(kv) => {
                    self.keys.insert(kv.key.clone(), kv.mod_revision);
                    self.put_over(kv, &mut changes);
                }
                KvEvent::Delete { key, .. } => {
                    self.resurrected.remove(key);
                    let known = self.keys.remove(key).is_some();
                    if self.remembered.remove(key).is_some() || known {
                        self.forget(key, &mut changes);
                    }
                }
            }
        }
        changes
    }

    /// Takes the progress of a watch: the store has nothing new up to this revision.
    pub fn apply_progress(&mut self, revision: Revision) {
        self.revision = self.revision.max(revision);
    }

    /// Applies a stored record, unless the remembered record of its key is the newer one.
    fn put_over(&mut self, kv: &KeyValue, changes: &mut Vec<ViewChange>) {
        if let Ok(key) = self.schema.parse(&kv.key)
            && !self.yields_to(&key, kv, changes)
        {
            return;
        }
        self.put(kv, changes);
    }

    pub(super) fn put(&mut self, kv: &KeyValue, changes: &mut Vec<ViewChange>) {
        let key = match self.schema.parse(&kv.key) {
            Ok(key) => key,
            Err(error) => return self.reject(kv, error.to_string()),
        };
        let kind = match self.store_record(&key, kv) {
            Ok(()) => {
                self.rejected.remove(&kv.key);
                ChangeKind::Put
            }
            Err(error) => {
                self.reject(kv, error.to_string());
                ChangeKind::Rejected
            }
        };
        changes.push(ViewChange { key, kind });
    }

    fn reject(&mut self, kv: &KeyValue, reason: String) {
        self.rejections += 1;
        self.rejected.insert(kv.key.clone(), Rejected { modified: kv.mod_revision, reason });
    }

    fn store_record(&mut self, key: &ParsedKey, kv: &KeyValue) -> Result<(), RecordError> {
        match key {
            ParsedKey::Fleet => {
                let fleet: Entry<FleetRecord> = entry(kv)?;
                self.life = fleet.record.life;
                self.fleet = Some(fleet);
            }
            ParsedKey::Node(node) => drop(self.nodes.insert(node.clone(), entry(kv)?)),
            ParsedKey::Alive(node) => drop(self.alive.insert(node.clone(), entry(kv)?)),
            ParsedKey::Cidr(cidr) => drop(self.cidrs.insert(*cidr, entry(kv)?)),
            ParsedKey::IdentityLabels(digest) => {
                let labels: Entry<kvstore_schema::record::IdentityLabelsRecord> = entry(kv)?;
                if labels.record.labels.digest() != *digest {
                    return Err(RecordError::Invalid("the key is not the digest of the labels".to_owned()));
                }
                self.identity_labels.insert(digest.clone(), labels);
            }
            ParsedKey::IdentityId(identity) => {
                check_number(*identity)?;
                self.identities.insert(*identity, entry(kv)?);
            }
            ParsedKey::IdentityRef(identity, node) => {
                check_number(*identity)?;
                let reference = entry(kv)?;
                self.refs.entry(*identity).or_default().insert(node.clone(), reference);
                self.refs_by_node.entry(node.clone()).or_default().insert(*identity);
            }
            ParsedKey::Endpoint(node, ip) => {
                let Entry { record, created, modified } = entry(kv)?;
                let endpoint = Entry { record: Arc::new(record), created, modified };
                if self.endpoints.entry(node.clone()).or_default().insert(*ip, endpoint).is_none() {
                    self.endpoint_count += 1;
                }
            }
            ParsedKey::Service(name) => {
                let Entry { record, created, modified } = entry(kv)?;
                let service = Entry { record: Arc::new(record), created, modified };
                self.services.insert(name.clone(), service);
            }
            ParsedKey::ServiceClaim(claim) => drop(self.service_claims.insert(*claim, entry(kv)?)),
            ParsedKey::Policy(name) => drop(self.policies.insert(name.clone(), raw(kv))),
            ParsedKey::Keyring => self.keyring = Some(raw(kv)),
            ParsedKey::Mark => self.mark = Some(entry(kv)?),
        }
        Ok(())
    }

    pub(super) fn forget(&mut self, key: &Key, changes: &mut Vec<ViewChange>) {
        self.rejected.remove(key);
        // A key of no known form was rejected and has no record.
        let Ok(key) = self.schema.parse(key) else { return };
        match &key {
            ParsedKey::Fleet => self.fleet = None,
            ParsedKey::Node(node) => drop(self.nodes.remove(node)),
            ParsedKey::Alive(node) => drop(self.alive.remove(node)),
            ParsedKey::Cidr(cidr) => drop(self.cidrs.remove(cidr)),
            ParsedKey::IdentityLabels(digest) => drop(self.identity_labels.remove(digest)),
            ParsedKey::IdentityId(identity) => drop(self.identities.remove(identity)),
            ParsedKey::IdentityRef(identity, node) => {
                remove_nested(&mut self.refs, identity, |nodes| nodes.remove(node), BTreeMap::is_empty);
                remove_nested(&mut self.refs_by_node, node, |ids| ids.remove(identity), |ids| ids.is_empty());
            }
            ParsedKey::Endpoint(node, ip) => {
                if remove_nested(&mut self.endpoints, node, |ips| ips.remove(ip), BTreeMap::is_empty)
                    .flatten()
                    .is_some()
                {
                    self.endpoint_count -= 1;
                }
            }
            ParsedKey::Service(name) => drop(self.services.remove(name)),
            ParsedKey::ServiceClaim(claim) => drop(self.service_claims.remove(claim)),
            ParsedKey::Policy(name) => drop(self.policies.remove(name)),
            ParsedKey::Keyring => self.keyring = None,
            ParsedKey::Mark => self.mark = None,
        }
        changes.push(ViewChange { key, kind: ChangeKind::Gone });
    }
}

fn entry<R: Record>(kv: &KeyValue) -> Result<Entry<R>, RecordError> {
    Ok(Entry { record: R::decode(&kv.value)?, created: kv.create_revision, modified: kv.mod_revision })
}

/// Only numbers of the fleet's range have records.
fn check_number(identity: Identity) -> Result<(), RecordError> {
    if identity.is_fleet() {
        Ok(())
    } else {
        Err(RecordError::Invalid(format!("identity {identity} is not one that the fleet gives out")))
    }
}

fn raw(kv: &KeyValue) -> Entry<Arc<[u8]>> {
    Entry { record: kv.value.clone(), created: kv.create_revision, modified: kv.mod_revision }
}

/// Removes from an inner collection, and the inner collection itself when nothing is left in it.
fn remove_nested<K: Ord, C, R>(
    outer: &mut BTreeMap<K, C>,
    key: &K,
    remove: impl FnOnce(&mut C) -> R,
    is_empty: impl FnOnce(&C) -> bool,
) -> Option<R> {
    let inner = outer.get_mut(key)?;
    let removed = remove(inner);
    if is_empty(inner) {
        outer.remove(key);
    }
    Some(removed)
}
