//! The generations of a store: whether a list continues what the view knows, and what the view keeps when it does not.
//!
//! A store that was emptied, or replaced by an older copy, is founded anew (`docs/decisions/0010-lives-of-a-store.md`).
//! From then on, until the members have written again what they know, the view is the list with the remembered records
//! over it: nothing is gone because the list lacks it (P6).
//!
//! Three tables of cases decide, each in one `match`: [`Continuity`] what the list is to the view, [`Age`] which of its
//! records are older than the view's, and [`Case`] what becomes of one record.

use identity::NodeName;
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
    /// The list continues what the view knows, or is the first one.
    Same,
    /// The fleet's record is absent: the store was emptied.
    Emptied,
    /// The list is an earlier state of the fleet: the store was restored, or replaced by a copy. The text says how that
    /// shows.
    Older(String),
    /// A member has founded the store anew since.
    FoundedAnew,
}

/// The list is another fleet's: nothing of it counts, and nothing may be written there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("it holds another fleet of this name ({found}, this node's is {known})")]
pub struct OtherFleet {
    /// The fleet id of the list, or why it cannot be read.
    pub found: String,
    /// The fleet id of this node.
    pub known: String,
}

/// Which records of a list are older than what the view knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Age {
    /// None: the view does not know enough of the list's store to tell.
    Unknown,
    /// All that were written up to this revision. The list is behind the view, so its revisions compare with the view's.
    UpTo(Revision),
    /// The store's revision has passed what the view knows, so one revision may name two values. Older is what the store
    /// had when a member recognised it as a copy, if it is of the common history or the view has a later revision.
    Passed {
        /// The store's revision when it was recognised as a copy.
        recognised: Revision,
        /// Up to here the copy and the view are one history, as far as the marks tell.
        common: Option<Revision>,
    },
}

impl Age {
    /// The age of a list that was recognised as a copy at revision `recognised`. `behind`: whether the copy is behind
    /// the view at that revision.
    pub(super) fn of_copy(recognised: Revision, behind: bool, common: Option<Revision>) -> Self {
        if behind { Self::UpTo(recognised) } else { Self::Passed { recognised, common } }
    }

    /// Whether a record that was written at revision `written` is older than what the view knows. `had`: the revision of
    /// the view's record.
    pub(super) fn is_older(self, written: Revision, had: Option<Revision>) -> bool {
        match self {
            Self::Unknown => false,
            Self::UpTo(last) => written <= last,
            Self::Passed { recognised, common } => {
                let in_common = common.is_some_and(|common| written <= common);
                written <= recognised && (in_common || had.is_some_and(|had| written < had))
            }
        }
    }

    /// Whether one revision names one value in the list and in the view.
    pub(super) fn shares_revisions(self) -> bool {
        matches!(self, Self::UpTo(_))
    }
}

/// What becomes of one record of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Case {
    /// The view takes the list's record.
    Take,
    /// The view has the list's record already.
    Keep,
    /// The view's record is newer: it is remembered, with the list's record as what the store has.
    Remember,
    /// The fleet had deleted the record before the older copy brought it back: the view leaves it out.
    Resurrected,
}

/// What decides the [`Case`] of one record.
#[derive(Debug, Clone, Copy)]
pub(super) struct Compared {
    /// The list has the last word: the record is newer, or is for the list to say.
    pub(super) listed_counts: bool,
    /// The revision of the list's record.
    pub(super) written: Revision,
    /// The revision of the view's record; 0 for one that was remembered in part.
    pub(super) had: Option<Revision>,
    /// Whether one revision names one value in the list and in the view.
    pub(super) shared_revisions: bool,
    /// Whether a record that the view does not have was deleted by the fleet.
    pub(super) deleted: bool,
}

impl Case {
    pub(super) fn of(record: Compared) -> Self {
        let Compared { listed_counts, written, had, shared_revisions, deleted } = record;
        match (listed_counts, had) {
            (true, Some(had)) if had == written && shared_revisions => Self::Keep,
            (true, _) => Self::Take,
            (false, Some(had)) if had == written => Self::Keep,
            (false, Some(Revision(0))) => Self::Take,
            (false, Some(_)) => Self::Remember,
            (false, None) if deleted => Self::Resurrected,
            (false, None) => Self::Take,
        }
    }
}

fn find<'a>(page: &'a ListPage, key: &Key) -> Option<&'a KeyValue> {
    page.entries.iter().find(|kv| kv.key == *key)
}

impl FleetView {
    /// The generation of the store that this view was made from.
    pub fn life(&self) -> Life {
        self.life
    }

    /// When a claim was made, comparable across generations of the store.
    pub fn epoch_of(&self, claim: &Entry<CidrRecord>) -> ClaimEpoch {
        self.epoch_at(claim.record.since, claim.created)
    }

    /// When a claim was made whose record was just read.
    pub(crate) fn epoch_at(&self, since: Option<ClaimEpoch>, created: Revision) -> ClaimEpoch {
        since.unwrap_or_else(|| {
            let found = self.life.number > 0 && created <= self.life.founded_on;
            ClaimEpoch { life: self.life.number - u64::from(found), revision: created }
        })
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
            // In a store that continues, an unreadable record is rejected alone, like any other. A store that is new to
            // this node can be recognised by that record only.
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
            // The same number of foundings, but another one of them.
            (_, None) if record.life.founded_on != self.life.founded_on => Continuity::Older(
                "the store was founded anew by a member that did not know of the last time".to_owned(),
            ),
            (_, None) if !self.is_marked_by(find(page, &self.schema.mark())) => Continuity::Older(
                "the store does not know the mark that it had (restored from a backup?)".to_owned(),
            ),
            (_, None) => Continuity::Same,
        })
    }

    /// Takes a list for what it was judged to be. What `me` owns is taken as the list says: this node knows what it owns
    /// from its own state, and writes it again. Returns what changed.
    pub fn follow(&mut self, page: ListPage, continuity: &Continuity, me: &NodeName) -> Vec<ViewChange> {
        let listed = find(&page, &self.schema.fleet());
        let listed = listed.and_then(|kv| Some(FleetRecord::decode(&kv.value).ok()?.life));
        let Some(age) = self.age_of(&page, continuity, listed) else { return self.apply_list(page) };
        let before = self.life;
        // What one generation lacks of a former one may never have been written again. Within one it was deleted.
        let same_generation =
            listed.is_some_and(|life| (life.number, life.founded_on) == (before.number, before.founded_on));
        let deletions = same_generation || *continuity == Continuity::FoundedAnew;
        let changes = self.overlay(&page, age, deletions, me);
        // Until a member has founded the next generation, and all members have written what they own.
        self.life.restoring |= *continuity != Continuity::FoundedAnew;
        changes
    }

    /// Which records of a list are older than the view's; `None`: the list replaces the view. `listed`: the generation
    /// that the list names.
    pub(super) fn age_of(
        &self,
        page: &ListPage,
        continuity: &Continuity,
        listed: Option<Life>,
    ) -> Option<Age> {
        let restoring = listed.is_some_and(|life| life.restoring);
        let from_snapshot = !self.listed && self.store.is_some();
        let copy = |recognised, former| {
            let common = self.common_history(find(page, &self.schema.mark()));
            Some(Age::of_copy(recognised, former || self.revision > recognised, common))
        };
        match continuity {
            // The first list after a start from a snapshot.
            Continuity::Same if restoring && from_snapshot => Some(Age::Unknown),
            Continuity::Same => None,
            // A node that was away through a whole restoration has no say about others.
            Continuity::FoundedAnew if !restoring => None,
            Continuity::FoundedAnew => match listed.filter(|life| life.number == self.life.number + 1) {
                Some(next) => copy(next.founded_on, false),
                None => Some(Age::Unknown),
            },
            Continuity::Emptied => copy(page.revision, false),
            Continuity::Older(_) => {
                let former = listed.is_some_and(|life| life.number < self.life.number);
                copy(page.revision, former)
            }
        }
    }

    /// Takes a list, and keeps over it what the view knows better.
    fn overlay(&mut self, page: &ListPage, age: Age, deletions: bool, me: &NodeName) -> Vec<ViewChange> {
        let root = self.schema.root();
        let mut changes = Vec::new();
        self.date_claims();
        let mut known = std::mem::take(&mut self.keys);
        known.extend(std::mem::take(&mut self.remembered).into_keys().map(|key| (key, Revision::default())));
        self.resurrected.clear();
        let replaced = self.store.is_some_and(|store| store != page.store);
        for kv in page.entries.iter().filter(|kv| root.contains(&kv.key)) {
            let had = known.remove(&kv.key);
            self.keys.insert(kv.key.clone(), kv.mod_revision);
            let parsed = self.schema.parse(&kv.key).ok();
            let for_list = parsed.as_ref().is_none_or(|key| self.is_for_list(key, kv, me));
            let case = Case::of(Compared {
                listed_counts: for_list || !age.is_older(kv.mod_revision, had),
                written: kv.mod_revision,
                had,
                shared_revisions: age.shares_revisions() && !replaced,
                deleted: had.is_none() && parsed.is_some_and(|key| self.was_deleted(&key, kv, deletions)),
            });
            match case {
                Case::Take => self.put(kv, &mut changes),
                Case::Keep => {}
                Case::Remember => drop(self.remembered.insert(kv.key.clone(), Some(kv.clone()))),
                Case::Resurrected => drop(self.resurrected.insert(kv.key.clone(), kv.clone())),
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

    /// Whether the list has the last word on a key, at whatever revision.
    pub(super) fn is_for_list(&self, key: &ParsedKey, kv: &KeyValue, me: &NodeName) -> bool {
        let names_me = || CidrRecord::decode(&kv.value).is_ok_and(|claim| claim.node == *me);
        match key {
            ParsedKey::Fleet | ParsedKey::Alive(_) => true,
            ParsedKey::Cidr(cidr) if !self.cidrs.contains_key(cidr) => names_me(),
            // A reference that the view does not have was given back before the copy came: the list brings it back.
            ParsedKey::IdentityRef(number, node) if node == me => self.refs(*number).contains_key(me),
            key => self.is_own(key, me),
        }
    }

    /// Whether only this node may say what a key holds, or nobody remembers it.
    pub(super) fn is_own(&self, key: &ParsedKey, me: &NodeName) -> bool {
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

    /// Whether the fleet had deleted a key that an older copy has. An identity may stay, as it is collected when nobody
    /// refers to it; but not if its number or its labels have another meaning since.
    pub(super) fn was_deleted(&self, key: &ParsedKey, kv: &KeyValue, deletions: bool) -> bool {
        match key {
            ParsedKey::IdentityLabels(_) => IdentityLabelsRecord::decode(&kv.value).is_ok_and(|record| {
                self.identities.get(&record.id).is_some_and(|entry| entry.record.labels != record.labels)
            }),
            ParsedKey::IdentityId(number) => IdentityIdRecord::decode(&kv.value).is_ok_and(|record| {
                let labels = self.identity_labels.get(&record.labels.digest());
                labels.is_some_and(|entry| entry.record.id != *number)
            }),
            // A service that is known may have given the claim up since.
            ParsedKey::ServiceClaim(claim) => {
                let owner = ServiceClaimRecord::decode(&kv.value).ok().map(|record| record.service);
                let service = owner.and_then(|owner| self.services.get(&owner));
                service.map_or(deletions, |entry| !entry.record.claims().contains(claim))
            }
            ParsedKey::IdentityRef(number, _) => {
                (deletions && self.listed) || self.resurrected.contains_key(&self.schema.identity_id(*number))
            }
            // A snapshot tells neither of these nor of the references of others.
            ParsedKey::Policy(_) | ParsedKey::Keyring => deletions && self.listed,
            _ => deletions,
        }
    }

    pub(super) fn has_record(&self, key: &ParsedKey) -> bool {
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
}
