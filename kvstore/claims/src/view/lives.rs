//! The lives of a store: whether a list continues what is known, and what is kept when it does not.
//!
//! A store that was emptied, or replaced by an older copy, is founded anew (`docs/decisions/0010-lives-of-a-store.md`).
//! Until then, and until the members have written again what they know, the view is the list with what is remembered
//! laid over it: nothing is gone because the list lacks it (P6).

use identity::{Identity, LabelDigest, Labels, NodeName};
use ipnetwork::IpNetwork;
use kvstore_schema::{
    Key, KeyValue, ListPage, Revision,
    key::ParsedKey,
    record::{
        CidrRecord, ClaimEpoch, ClaimState, FleetRecord, IdentityIdRecord, IdentityLabelsRecord, Life, Record,
    },
    service::ServiceClaimRecord,
};

use super::{Entry, FleetView, ViewChange};

/// What a list is to what the view knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Continuity {
    /// The same store, further on, or the first one.
    Same,
    /// The fleet's record is not there: the store was emptied.
    Emptied,
    /// An earlier state of the fleet: the store was restored, or replaced by a copy. The text says how that shows.
    Older(String),
    /// A member has founded the store anew since.
    FoundedAnew,
}

/// The list is another fleet's: nothing of it counts, and nothing may be written there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("it holds another fleet of this name ({found}, this node's is {known})")]
pub struct OtherFleet {
    /// What the list says.
    pub found: String,
    /// What this node knows.
    pub known: String,
}

/// What in a list is older than what the view knows.
struct Age {
    /// All up to this revision; `None`: the store's revision has passed what the view knows, or its revisions are others.
    older: Option<Revision>,
    /// What was there before members knew the store for a copy; `None`: not known.
    found_on: Option<Revision>,
    /// Up to where the copy is the store that the view knows, as far as its marks tell.
    common: Option<Revision>,
}

impl Age {
    /// Of a record that was written at a revision. `had`: the revision that the view has.
    fn is_older(&self, written: Revision, had: Option<Revision>) -> bool {
        match self.older {
            Some(older) => written <= older,
            None => {
                self.found_on.is_some_and(|found_on| written <= found_on)
                    && (self.common.is_some_and(|common| written <= common)
                        || had.is_some_and(|had| written < had))
            }
        }
    }
}

fn find<'a>(page: &'a ListPage, key: &Key) -> Option<&'a KeyValue> {
    page.entries.iter().find(|kv| kv.key == *key)
}

impl FleetView {
    /// The life of the store that this view was made from.
    pub fn life(&self) -> Life {
        self.life
    }

    /// When a claim was made, comparable across lives.
    pub fn epoch_of(&self, claim: &Entry<CidrRecord>) -> ClaimEpoch {
        self.epoch_at(claim.record.since, claim.created)
    }

    /// The same of a record that was just read.
    pub(crate) fn epoch_at(&self, since: Option<ClaimEpoch>, created: Revision) -> ClaimEpoch {
        since.unwrap_or_else(|| {
            let found = self.life.number > 0 && created <= self.life.founded_on;
            ClaimEpoch { life: self.life.number - u64::from(found), revision: created }
        })
    }

    /// Keys whose record is remembered, and not yet the store's again.
    pub fn remembered(&self) -> usize {
        self.remembered.len() + self.outlived.len()
    }

    pub(crate) fn is_remembered(&self, key: &Key) -> bool {
        self.remembered.contains_key(key)
    }

    /// What a list is to what the view knows. `fleet_id`: the fleet that this node is a member of.
    ///
    /// # Errors
    /// Another fleet's store, or one that cannot be told from it.
    pub fn judge(&self, page: &ListPage, fleet_id: Option<&str>) -> Result<Continuity, OtherFleet> {
        let Some(known) = fleet_id else { return Ok(Continuity::Same) };
        let behind = self.check_list(page).err().map(|why| why.to_string());
        let Some(found) = find(page, &self.schema.fleet()) else { return Ok(Continuity::Emptied) };
        let record = match FleetRecord::decode(&found.value) {
            Ok(record) => record,
            // A record that cannot be read is rejected alone, like any other; of a store that is new to us it is all
            // there is to know it by.
            Err(_) if behind.is_none() => return Ok(Continuity::Same),
            Err(error) => {
                return Err(OtherFleet { found: error.to_string(), known: known.to_owned() });
            }
        };
        if record.fleet_id != known {
            return Err(OtherFleet { found: record.fleet_id, known: known.to_owned() });
        }
        let ours = self.life.number;
        Ok(match (record.life.number, behind) {
            (theirs, _) if theirs > ours => Continuity::FoundedAnew,
            (theirs, _) if theirs < ours => Continuity::Older(format!(
                "the store was founded anew {ours} times, and this copy only {theirs} times"
            )),
            (_, Some(why)) => Continuity::Older(why),
            // As many, but not the same ones.
            (_, None) if record.life.founded_on != self.life.founded_on => Continuity::Older(
                "the store was founded anew by a member that did not know of the last time".to_owned(),
            ),
            (_, None) if !self.is_marked_by(find(page, &self.schema.mark())) => Continuity::Older(
                "the store does not know the mark that it had (restored from a backup?)".to_owned(),
            ),
            (_, None) => Continuity::Same,
        })
    }

    /// Takes a list for what it was judged to be. What `me` owns is taken as the list says: this node knows better
    /// itself what it owns, and will say so. Returns what changed.
    pub fn follow(&mut self, page: ListPage, continuity: &Continuity, me: &NodeName) -> Vec<ViewChange> {
        let listed = find(&page, &self.schema.fleet());
        let life = listed.and_then(|kv| Some(FleetRecord::decode(&kv.value).ok()?.life));
        let restoring = life.is_some_and(|life| life.restoring);
        let before = self.life;
        let (mut older, mut found_on) = (None, Some(page.revision));
        match continuity {
            // The first list after a start from what was remembered.
            Continuity::Same if restoring && !self.listed && self.store.is_some() => found_on = None,
            Continuity::Same => return self.apply_list(page),
            // Whoever was away for so long has nothing to tell of others.
            Continuity::FoundedAnew if !restoring => return self.apply_list(page),
            Continuity::FoundedAnew => {
                let next = life.filter(|life| life.number == before.number + 1);
                found_on = next.map(|life| life.founded_on);
                older = found_on.filter(|found_on| self.revision > *found_on);
            }
            Continuity::Emptied => older = found_on.filter(|now| self.revision > *now),
            Continuity::Older(_) => {
                let former = life.is_some_and(|life| life.number < before.number);
                older = found_on.filter(|now| former || self.revision > *now);
            }
        }
        let common = self.common_history(find(&page, &self.schema.mark()));
        let age = Age { older, found_on, common };
        // What a life lacks of a former one's may never have been written again: only within one is it deleted.
        let same_life =
            life.is_some_and(|life| (life.number, life.founded_on) == (before.number, before.founded_on));
        let deletions = same_life || *continuity == Continuity::FoundedAnew;
        let changes = self.lay_over(&page, &age, deletions, me);
        // Until somebody has founded the next life, and its members have said what they own.
        self.life.restoring |= *continuity != Continuity::FoundedAnew;
        changes
    }

    /// The list, with what the view knows laid over it.
    fn lay_over(&mut self, page: &ListPage, age: &Age, deletions: bool, me: &NodeName) -> Vec<ViewChange> {
        let root = self.schema.root();
        let mut changes = Vec::new();
        self.date_claims();
        let mut known = std::mem::take(&mut self.keys);
        known.extend(std::mem::take(&mut self.remembered).into_keys().map(|key| (key, Revision::default())));
        self.outlived.clear();
        let replaced = self.store.is_some_and(|store| store != page.store);
        for kv in page.entries.iter().filter(|kv| root.contains(&kv.key)) {
            let had = known.remove(&kv.key);
            self.keys.insert(kv.key.clone(), kv.mod_revision);
            let parsed = self.schema.parse(&kv.key).ok();
            let ours = parsed.as_ref().is_none_or(|key| self.says_itself(key, kv, me));
            if ours || !age.is_older(kv.mod_revision, had) {
                if had != Some(kv.mod_revision) || replaced || age.older.is_none() {
                    self.put(kv, &mut changes);
                }
                continue;
            }
            match had {
                Some(revision) if revision == kv.mod_revision => {}
                // Remembered in part only.
                Some(Revision(0)) => self.put(kv, &mut changes),
                Some(_) => drop(self.remembered.insert(kv.key.clone(), Some(kv.clone()))),
                None if parsed.is_some_and(|key| self.was_deleted(&key, kv, deletions)) => {
                    self.outlived.insert(kv.key.clone(), kv.clone());
                }
                None => self.put(kv, &mut changes),
            }
        }
        for key in known.into_keys() {
            match self.schema.parse(&key) {
                Ok(ParsedKey::Fleet) => {}
                Ok(parsed) if self.has_record(&parsed) && !self.is_own(&parsed, me) => {
                    self.remembered.insert(key, None);
                }
                _ => self.forget(&key, &mut changes),
            }
        }
        self.store = Some(page.store);
        self.revision = page.revision;
        self.listed = true;
        changes
    }

    /// Writes into every claim when it was made: what follows has other revisions.
    fn date_claims(&mut self) {
        let dates: Vec<(IpNetwork, ClaimEpoch)> =
            self.cidrs.iter().map(|(cidr, claim)| (*cidr, self.epoch_of(claim))).collect();
        for (cidr, date) in dates {
            if let Some(claim) = self.cidrs.get_mut(&cidr) {
                claim.record.since = Some(date);
            }
        }
    }

    /// Whether the list has the last word on a key, in whatever revision.
    fn says_itself(&self, key: &ParsedKey, kv: &KeyValue, me: &NodeName) -> bool {
        let names_me = || CidrRecord::decode(&kv.value).is_ok_and(|claim| claim.node == *me);
        match key {
            ParsedKey::Fleet | ParsedKey::Alive(_) => true,
            ParsedKey::Cidr(cidr) if !self.cidrs.contains_key(cidr) => names_me(),
            // A reference that it had given back when the copy was older than what it had seen.
            ParsedKey::IdentityRef(number, node) if node == me => self.refs(*number).contains_key(me),
            key => self.is_own(key, me),
        }
    }

    /// Whether only this node has a say in a key, or nobody remembers it.
    fn is_own(&self, key: &ParsedKey, me: &NodeName) -> bool {
        match key {
            ParsedKey::Alive(_) | ParsedKey::Mark => true,
            ParsedKey::Node(node) | ParsedKey::Endpoint(node, _) | ParsedKey::IdentityRef(_, node) => {
                node == me
            }
            ParsedKey::Cidr(cidr) => self
                .cidrs
                .get(cidr)
                .is_some_and(|claim| claim.record.node == *me && claim.record.state == ClaimState::Live),
            _ => false,
        }
    }

    /// Whether a key of an older copy was deleted since. An identity may stay: nobody refers to it, so it is collected;
    /// but not if its number or its labels have another meaning since.
    fn was_deleted(&self, key: &ParsedKey, kv: &KeyValue, deletions: bool) -> bool {
        match key {
            ParsedKey::IdentityLabels(_) => IdentityLabelsRecord::decode(&kv.value).is_ok_and(|record| {
                self.identities.get(&record.id).is_some_and(|entry| entry.record.labels != record.labels)
            }),
            ParsedKey::IdentityId(number) => IdentityIdRecord::decode(&kv.value).is_ok_and(|record| {
                let labels = self.identity_labels.get(&record.labels.digest());
                labels.is_some_and(|entry| entry.record.id != *number)
            }),
            // That of a service which has given it up since.
            ParsedKey::ServiceClaim(claim) => {
                let owner = ServiceClaimRecord::decode(&kv.value).ok().map(|record| record.service);
                let service = owner.and_then(|owner| self.services.get(&owner));
                service.map_or(deletions, |entry| !entry.record.claims().contains(claim))
            }
            ParsedKey::IdentityRef(number, _) => {
                (deletions && self.listed) || self.outlived.contains_key(&self.schema.identity_id(*number))
            }
            // A snapshot does not tell of them, nor of others' references.
            ParsedKey::Policy(_) | ParsedKey::Keyring => deletions && self.listed,
            _ => deletions,
        }
    }

    fn has_record(&self, key: &ParsedKey) -> bool {
        match key {
            ParsedKey::Fleet => self.fleet.is_some(),
            ParsedKey::Node(node) => self.nodes.contains_key(node),
            ParsedKey::Alive(node) => self.alive.contains_key(node),
            ParsedKey::Cidr(cidr) => self.cidrs.contains_key(cidr),
            ParsedKey::IdentityLabels(digest) => self.identity_labels.contains_key(digest),
            ParsedKey::IdentityId(number) => self.identities.contains_key(number),
            ParsedKey::IdentityRef(number, node) => self.refs(*number).contains_key(node),
            ParsedKey::Endpoint(node, ip) => self.endpoints.get(node).is_some_and(|ips| ips.contains_key(ip)),
            ParsedKey::Service(name) => self.services.contains_key(name),
            ParsedKey::ServiceClaim(claim) => self.service_claims.contains_key(claim),
            ParsedKey::Policy(name) => self.policies.contains_key(name),
            ParsedKey::Keyring => self.keyring.is_some(),
            ParsedKey::Mark => self.mark.is_some(),
        }
    }

    /// Before a change of the store is applied: whether it replaces what is remembered of its key.
    pub(super) fn yields_to(
        &mut self,
        key: &ParsedKey,
        kv: &KeyValue,
        changes: &mut Vec<ViewChange>,
    ) -> bool {
        self.outlived.remove(&kv.key);
        let remembered = self.remembered.contains_key(&kv.key);
        match key {
            ParsedKey::Cidr(cidr) if remembered => {
                let (Some(claim), Ok(record)) = (self.cidrs.get(cidr), CidrRecord::decode(&kv.value)) else {
                    return true;
                };
                if self.epoch_of(claim) > self.epoch_at(record.since, kv.create_revision) {
                    // Somebody who knew less was faster: the later claim is still to be written.
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

    /// A number is not that of a label set any more: what is remembered of the two together is over.
    pub(crate) fn lose_meaning(
        &mut self,
        number: Identity,
        digest: &LabelDigest,
        changes: &mut Vec<ViewChange>,
    ) {
        let nodes: Vec<NodeName> = self.refs(number).keys().cloned().collect();
        let refs = nodes.iter().map(|node| self.schema.identity_ref(number, node));
        let keys = [self.schema.identity_id(number), self.schema.identity_labels(digest)];
        let over: Vec<Key> = refs.chain(keys).collect();
        for key in over {
            self.give_up(&key, changes);
        }
    }

    /// Forgets what is remembered of a key: what the store has there counts.
    pub(crate) fn give_up(&mut self, key: &Key, changes: &mut Vec<ViewChange>) {
        match self.remembered.remove(key) {
            None => return,
            Some(None) => return self.forget(key, changes),
            Some(Some(kv)) => self.put(&kv, changes),
        }
        // What belongs to a number or service and was left out because this part had another meaning.
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
            if let Some(kv) = self.outlived.remove(&key) {
                self.put(&kv, changes);
            }
        }
    }

    /// Whether an older copy gives a label set another number than the fleet has for it. Until that is settled
    /// nobody may refer to either: it would be a second number of theirs.
    pub fn is_disputed(&self, digest: &LabelDigest) -> bool {
        let number = self.identity_labels.get(digest).map(|entry| entry.record.id);
        self.copied_number(digest).is_some_and(|copied| Some(copied) != number)
    }

    /// The number that an older copy has of a label set that is remembered.
    pub(crate) fn copied_number(&self, digest: &LabelDigest) -> Option<Identity> {
        let base = self.remembered.get(&self.schema.identity_labels(digest))?.as_ref()?;
        Some(IdentityLabelsRecord::decode(&base.value).ok()?.id)
    }

    /// The labels that an older copy has of a number that is remembered.
    pub(crate) fn copied_labels(&self, number: Identity) -> Option<Labels> {
        let base = self.remembered.get(&self.schema.identity_id(number))?.as_ref()?;
        Some(IdentityIdRecord::decode(&base.value).ok()?.labels)
    }
}
