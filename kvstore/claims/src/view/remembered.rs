//! Records that are remembered: the store has lost them, or has an older copy's version of them.
//!
//! A remembered record stays in the view until the store has it again, or something else has taken its place there.

use identity::{Identity, LabelDigest, Labels, NodeName};
use kvstore_schema::{
    Key, KeyValue,
    key::ParsedKey,
    record::{CidrRecord, IdentityIdRecord, IdentityLabelsRecord, Record},
};

use super::{FleetView, ViewChange};

impl FleetView {
    /// How many keys the view and the store do not agree on: remembered records, and resurrected ones.
    pub fn remembered(&self) -> usize {
        self.remembered.len() + self.resurrected.len()
    }

    pub(crate) fn is_remembered(&self, key: &Key) -> bool {
        self.remembered.contains_key(key)
    }

    /// Decides, before a change of the store is applied, whether the stored record replaces the remembered one.
    pub(super) fn yields_to(
        &mut self,
        key: &ParsedKey,
        kv: &KeyValue,
        changes: &mut Vec<ViewChange>,
    ) -> bool {
        self.resurrected.remove(&kv.key);
        let remembered = self.remembered.contains_key(&kv.key);
        match key {
            ParsedKey::Cidr(cidr) if remembered => {
                let (Some(claim), Ok(record)) = (self.cidrs.get(cidr), CidrRecord::decode(&kv.value)) else {
                    return true;
                };
                if self.epoch_of(claim) > self.epoch_at(record.since, kv.create_revision) {
                    // A member that did not know of the later claim wrote the earlier one: the later one is still to
                    // be written.
                    self.remembered.insert(kv.key.clone(), Some(kv.clone()));
                    return false;
                }
            }
            ParsedKey::IdentityId(number) => {
                let meant = self.identities.get(number).map(|entry| &entry.record.labels);
                let means = IdentityIdRecord::decode(&kv.value).ok().map(|record| record.labels);
                if let (Some(meant), Some(means)) = (meant.cloned(), means)
                    && meant != means
                {
                    self.lose_meaning(*number, &meant.digest(), changes);
                }
            }
            ParsedKey::IdentityLabels(digest) => {
                let had = self.identity_labels.get(digest).map(|entry| entry.record.id);
                let has = IdentityLabelsRecord::decode(&kv.value).ok().map(|record| record.id);
                if let Some(had) = had.filter(|had| Some(*had) != has) {
                    self.lose_meaning(had, &digest.clone(), changes);
                }
            }
            _ => {}
        }
        self.remembered.remove(&kv.key);
        true
    }

    /// The number does not belong to the label set any more: what is remembered of the two together is given up.
    pub(crate) fn lose_meaning(
        &mut self,
        number: Identity,
        digest: &LabelDigest,
        changes: &mut Vec<ViewChange>,
    ) {
        let nodes: Vec<NodeName> = self.refs(number).keys().cloned().collect();
        let refs = nodes.iter().map(|node| self.schema.identity_ref(number, node));
        let keys = [self.schema.identity_id(number), self.schema.identity_labels(digest)];
        let obsolete: Vec<Key> = refs.chain(keys).collect();
        for key in obsolete {
            self.give_up(&key, changes);
        }
    }

    /// Forgets what is remembered of a key, and takes what the store has there instead.
    pub(crate) fn give_up(&mut self, key: &Key, changes: &mut Vec<ViewChange>) {
        match self.remembered.remove(key) {
            None => return,
            Some(None) => return self.forget(key, changes),
            Some(Some(kv)) => self.put(&kv, changes),
        }
        // The other records of the number or service were left out because this one had another meaning.
        let parts: Vec<Key> = match self.schema.parse(key) {
            Ok(ParsedKey::IdentityLabels(digest)) => {
                let entry = self.identity_labels.get(&digest);
                entry.map(|entry| self.schema.identity_id(entry.record.id)).into_iter().collect()
            }
            Ok(ParsedKey::IdentityId(number)) => {
                let labels = self.identities.get(&number).map(|entry| entry.record.labels.digest());
                labels.map(|labels| self.schema.identity_labels(&labels)).into_iter().collect()
            }
            Ok(ParsedKey::Service(name)) => {
                let claims = self.services.get(&name).map(|entry| entry.record.claims());
                claims.iter().flatten().map(|claim| self.schema.service_claim(claim)).collect()
            }
            _ => Vec::new(),
        };
        for key in parts {
            if let Some(kv) = self.resurrected.remove(&key) {
                self.put(&kv, changes);
            }
        }
    }

    /// Whether an older copy gives a label set another number than the fleet has for it. Until the dispute is settled
    /// nobody may refer to either number, as the label set would have two.
    pub(crate) fn is_disputed(&self, digest: &LabelDigest) -> bool {
        let number = self.identity_labels.get(digest).map(|entry| entry.record.id);
        self.copied_number(digest).is_some_and(|copied| Some(copied) != number)
    }

    /// The number that an older copy has for a remembered label set.
    pub(crate) fn copied_number(&self, digest: &LabelDigest) -> Option<Identity> {
        let base = self.remembered.get(&self.schema.identity_labels(digest))?.as_ref()?;
        Some(IdentityLabelsRecord::decode(&base.value).ok()?.id)
    }

    /// The labels that an older copy has for a remembered number.
    pub(crate) fn copied_labels(&self, number: Identity) -> Option<Labels> {
        let base = self.remembered.get(&self.schema.identity_id(number))?.as_ref()?;
        Some(IdentityIdRecord::decode(&base.value).ok()?.labels)
    }
}
