//! Claims on pod CIDRs: adopt a claim of this node, else claim a free block; release a block into quarantine.
//!
//! All blocks of a fleet are aligned and of one size per family, both fixed by the fleet record, whose
//! value is a condition of every new claim. So two claims overlap only if they are the same key, and
//! creating a key twice is impossible. By the same condition no free block is claimed while members restore.

use std::collections::BTreeSet;

use identity::NodeName;
use ipnetwork::IpNetwork;
use kvstore_schema::{
    Condition, KvOp, KvRequest, Revision, Schema, Txn, TxnResponse,
    record::{CidrRecord, ClaimEpoch, ClaimState},
};
use serde::{Deserialize, Serialize};

use crate::{
    ClaimError, FleetView,
    blocks::{Blocks, block_of, width},
    fleet::SettledFleet,
    machine::{Machine, Next, Protocol, decode, got, mix, or_failed, or_wait, put},
};

/// Gets one more block for this node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CidrClaim {
    schema: Schema,
    node: NodeName,
    token: String,
    blocks: Blocks,
    /// `None` while members restore: then only a block that is this node's already is taken.
    settled: Option<SettledFleet>,
    /// Blocks that this agent has already, or has found taken while the view did not know it yet.
    taken: BTreeSet<IpNetwork>,
    /// The block that the pending transaction is about.
    wanted: IpNetwork,
    /// Its create revision, when it is adopted.
    epoch: Option<Revision>,
    /// When the block was claimed, if that was in a former generation of the store.
    since: Option<ClaimEpoch>,
    /// Exactly this block and no other: it was this node's in a former generation.
    again: Option<(IpNetwork, ClaimEpoch)>,
}

/// A block that this node owns until it releases it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CidrGrant {
    /// The block.
    pub cidr: IpNetwork,
    /// The claim's create revision: fences what is written under it.
    pub epoch: Revision,
    /// When the block was claimed, comparable across generations of the store: of two claims the later one wins.
    pub since: ClaimEpoch,
    /// The revision of the claim's last change; [`CidrRelease`] needs it.
    pub revision: Revision,
    /// The token that the claim was made or adopted with.
    pub token: String,
    /// Whether the node had claimed it in an earlier life.
    pub adopted: bool,
}

impl CidrClaim {
    /// `token`: tells this attempt from every other, of this node too: machine id, incarnation, counter.
    /// `held`: the blocks that this agent has adopted or claimed since it started.
    ///
    /// A claim of this node in the view that is not in `held` is adopted first, a quarantined one too (only
    /// its owner may do that); adopting writes the token, so that a release which the former agent had sent
    /// fails when it arrives late. The first try for a new block is at a place given by the node's name, so
    /// that a fleet wiped and made anew tends to the same addresses; further tries are random.
    ///
    /// # Errors
    /// [`ClaimError::NoFleet`], [`ClaimError::PoolExhausted`]; [`ClaimError::Restoring`] when there is nothing to adopt
    /// and members of the fleet restore. A machine that meets a restoration later waits for its end.
    pub fn start(
        view: &FleetView,
        node: NodeName,
        token: String,
        held: &BTreeSet<IpNetwork>,
    ) -> Result<(Machine<Self>, KvRequest), ClaimError> {
        let fleet = view.fleet().ok_or(ClaimError::NoFleet)?;
        let settled = SettledFleet::known(view).ok();
        let home = node.as_str().bytes().fold(0, |hash, byte| mix(hash ^ u64::from(byte)));
        let mut this = Self {
            schema: view.schema().clone(),
            node,
            token,
            blocks: Blocks::of(&fleet.record),
            settled,
            taken: held.clone(),
            wanted: fleet.record.pools[0],
            epoch: None,
            since: None,
            again: None,
        };
        let txn = this.choose(view, home)?;
        Ok(Machine::begin(this, txn))
    }

    /// Claims a block again that was this node's, in a store that lost the claim or has an older one. The claim keeps its
    /// age: an earlier one of another node yields to it.
    ///
    /// Ends in [`ClaimError::ClaimLost`] when somebody has claimed it later.
    pub fn again(
        view: &FleetView,
        node: NodeName,
        token: String,
        cidr: IpNetwork,
        since: ClaimEpoch,
    ) -> (Machine<Self>, KvRequest) {
        let this = Self {
            schema: view.schema().clone(),
            node,
            token,
            blocks: Blocks::default(),
            settled: None,
            taken: BTreeSet::new(),
            wanted: cidr,
            epoch: None,
            since: Some(since),
            again: Some((cidr, since)),
        };
        let key = view.schema().cidr(cidr);
        let txn = this.base().when(Condition::Absent(key.clone())).then(put(key, &this.record()));
        Machine::begin(this, txn)
    }

    /// The next transaction: for a claim of this node that waits to be adopted, or for a free block.
    fn choose(&mut self, view: &FleetView, seed: u64) -> Result<Txn, ClaimError> {
        let waiting = view
            .cidrs()
            .iter()
            .filter(|(cidr, claim)| claim.record.node == self.node && !self.taken.contains(*cidr));
        // Live ones first: their addresses are in use.
        let adopt = waiting.min_by_key(|(_, claim)| claim.record.state != ClaimState::Live);
        if let Some((cidr, claim)) = adopt {
            return Ok(self.adopt(*cidr, &claim.record, claim.created, claim.modified));
        }
        let settled = self.settled.clone().ok_or(ClaimError::Restoring)?;
        self.wanted = self.free_block(view, seed)?;
        Ok(self.claim(&settled))
    }

    /// The block at the place of `seed`, or the first free one behind it.
    fn free_block(&self, view: &FleetView, seed: u64) -> Result<IpNetwork, ClaimError> {
        let total = self.blocks.total();
        let start = seed % total;
        // Only taken blocks are stepped over, so a huge pool costs no more than what is claimed of it.
        (0..total)
            .filter_map(|step| self.blocks.nth(start.wrapping_add(step) % total))
            .find(|block| !self.taken.contains(block) && !overlaps_claim(view, *block))
            .ok_or_else(|| {
                let live = |state| view.cidrs().values().filter(|claim| claim.record.state == state).count();
                ClaimError::PoolExhausted {
                    pools: self.blocks.pools(),
                    used: live(ClaimState::Live),
                    quarantined: live(ClaimState::Quarantined),
                }
            })
    }

    fn record(&self) -> CidrRecord {
        CidrRecord {
            node: self.node.clone(),
            state: ClaimState::Live,
            token: self.token.clone(),
            since: self.since,
            unknown: Default::default(),
        }
    }

    fn claim(&mut self, settled: &SettledFleet) -> Txn {
        self.epoch = None;
        self.since = None;
        let key = self.schema.cidr(self.wanted);
        self.base()
            .when(settled.condition())
            .when(Condition::Absent(key.clone()))
            .then(put(key, &self.record()))
    }

    fn adopt(&mut self, cidr: IpNetwork, found: &CidrRecord, epoch: Revision, modified: Revision) -> Txn {
        self.wanted = cidr;
        self.epoch = Some(epoch);
        self.since = self.again.map(|(_, since)| since).or(found.since);
        let key = self.schema.cidr(cidr);
        let record = CidrRecord { unknown: found.unknown.clone(), ..self.record() };
        self.base().when(Condition::ModRevision(key.clone(), modified)).then(put(key, &record))
    }

    fn base(&self) -> Txn {
        let node = self.schema.node(&self.node);
        Txn::new()
            .when(Condition::Present(node.clone()))
            .otherwise(KvOp::Get(node))
            .otherwise(KvOp::Get(self.schema.fleet()))
            .otherwise(KvOp::Get(self.schema.cidr(self.wanted)))
    }

    fn granted(&self, view: &FleetView, epoch: Revision, revision: Revision) -> Next<CidrGrant> {
        Next::Done(CidrGrant {
            cidr: self.wanted,
            epoch,
            since: view.epoch_at(self.since, epoch),
            revision,
            token: self.token.clone(),
            adopted: self.epoch.is_some(),
        })
    }

    fn decide(
        &mut self,
        answer: &TxnResponse,
        view: &FleetView,
        draw: u64,
    ) -> Result<Next<CidrGrant>, ClaimError> {
        if answer.succeeded {
            return Ok(self.granted(view, self.epoch.unwrap_or(answer.revision), answer.revision));
        }
        if got(answer, 0)?.is_none() {
            return Err(ClaimError::NotRegistered { node: self.node.clone() });
        }
        if let Some((cidr, since)) = self.again {
            return self.decide_again(answer, view, cidr, since);
        }
        let fleet = got(answer, 1)?;
        self.settled = match SettledFleet::read(view, fleet) {
            Ok(settled) => Some(settled),
            Err(ClaimError::Restoring) => None,
            Err(error) => return Err(error),
        };
        self.blocks = Blocks::of(&decode(fleet.ok_or(ClaimError::NoFleet)?)?);
        let cidr = self.wanted;
        match got(answer, 2)? {
            // An unreadable record is somebody's claim all the same.
            Some(found) => match decode::<CidrRecord>(found) {
                Ok(record) if record.node == self.node => {
                    if record.token == self.token && record.state == ClaimState::Live {
                        self.since = record.since;
                        return Ok(self.granted(view, found.create_revision, found.mod_revision));
                    }
                    return Ok(Next::Ask(self.adopt(
                        cidr,
                        &record,
                        found.create_revision,
                        found.mod_revision,
                    )));
                }
                Ok(_) | Err(_) => drop(self.taken.insert(cidr)),
            },
            // The view still shows a claim of ours that was deleted since: do not choose it again.
            None if self.epoch.is_some() => drop(self.taken.insert(cidr)),
            None => {}
        }
        Ok(Next::Ask(self.choose(view, mix(draw))?))
    }
}

impl CidrClaim {
    /// Decides about a block that is to be claimed again, by the record that the store has for it.
    fn decide_again(
        &mut self,
        answer: &TxnResponse,
        view: &FleetView,
        cidr: IpNetwork,
        since: ClaimEpoch,
    ) -> Result<Next<CidrGrant>, ClaimError> {
        let key = self.schema.cidr(cidr);
        let Some(found) = got(answer, 2)? else {
            self.epoch = None;
            let txn = self.base().when(Condition::Absent(key.clone())).then(put(key, &self.record()));
            return Ok(Next::Ask(txn));
        };
        let record: CidrRecord = decode(found)?;
        let ours = record.node == self.node && record.state == ClaimState::Live;
        if ours && record.token == self.token {
            return Ok(self.granted(view, found.create_revision, found.mod_revision));
        }
        let theirs = view.epoch_at(record.since, found.create_revision);
        if record.node != self.node && theirs > since {
            return Err(ClaimError::ClaimLost {
                cidr,
                wanted: format!("this node's of life {} revision {}", since.life, since.revision),
                found: format!(
                    "that of {} of life {} revision {}",
                    record.node, theirs.life, theirs.revision
                ),
            });
        }
        Ok(Next::Ask(self.adopt(cidr, &record, found.create_revision, found.mod_revision)))
    }
}

impl Protocol for CidrClaim {
    type Output = CidrGrant;

    fn on_answer(&mut self, answer: &TxnResponse, view: &FleetView, draw: u64) -> Next<CidrGrant> {
        or_wait(self.decide(answer, view, draw))
    }
}

/// Whether a block overlaps any claim in the view, of whatever size and state, readable or not.
fn overlaps_claim(view: &FleetView, block: IpNetwork) -> bool {
    let within = (0..=block.prefix()).any(|prefix| view.cidrs().contains_key(&block_of(block.ip(), prefix)));
    let last = block_of(block.broadcast(), width(block.ip()));
    let around = || view.cidrs().range(block..=last).any(|(cidr, _)| block.contains(cidr.ip()));
    within || view.has_key(&view.schema().cidr(block)) || around()
}

/// Releases a block: it is quarantined first, and free when the quarantine ends (see [`crate::Collector`]).
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CidrRelease {
    schema: Schema,
    node: NodeName,
    grant: CidrGrant,
}

impl CidrRelease {
    /// The block must hold no endpoint, as [`crate::AddressPool::remove_block`] ensures.
    ///
    /// Ends in [`ClaimError::ClaimLost`] when another node has the claim. Releasing a claim that is released or gone is no
    /// error.
    pub fn start(schema: &Schema, node: NodeName, grant: CidrGrant) -> (Machine<Self>, KvRequest) {
        let revision = grant.revision;
        let this = Self { schema: schema.clone(), node, grant };
        let txn = this.quarantine(revision, Default::default());
        Machine::begin(this, txn)
    }

    fn quarantine(&self, revision: Revision, unknown: kvstore_schema::record::Unknown) -> Txn {
        let key = self.schema.cidr(self.grant.cidr);
        let record = CidrRecord {
            node: self.node.clone(),
            state: ClaimState::Quarantined,
            token: self.grant.token.clone(),
            since: (self.grant.since.revision != self.grant.epoch).then_some(self.grant.since),
            unknown,
        };
        Txn::new()
            .when(Condition::CreateRevision(key.clone(), self.grant.epoch))
            .when(Condition::ModRevision(key.clone(), revision))
            .then(put(key.clone(), &record))
            .otherwise(KvOp::Get(key))
    }

    fn decide(&self, answer: &TxnResponse) -> Result<Next<()>, ClaimError> {
        let Some(found) = got(answer, 0)? else { return Ok(Next::Done(())) };
        let record: CidrRecord = decode(found)?;
        let ours = found.create_revision == self.grant.epoch && record.token == self.grant.token;
        match record.state {
            ClaimState::Quarantined if ours => Ok(Next::Done(())),
            ClaimState::Live if ours => Ok(Next::Ask(self.quarantine(found.mod_revision, record.unknown))),
            _ => Err(ClaimError::ClaimLost {
                cidr: self.grant.cidr,
                wanted: format!("epoch {} of {}", self.grant.epoch, self.grant.token),
                found: format!("epoch {} of {} ({})", found.create_revision, record.node, record.token),
            }),
        }
    }
}

impl Protocol for CidrRelease {
    type Output = ();

    fn on_answer(&mut self, answer: &TxnResponse, _view: &FleetView, _draw: u64) -> Next<()> {
        if answer.succeeded { Next::Done(()) } else { or_failed(self.decide(answer)) }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use kvstore_schema::{KeyValue, ListPage, StoreIdentity};

    use super::*;

    #[test]
    fn block_overlaps_claims_of_whatever_size_and_state() {
        let check = |claim: &str, value: &str, expected: bool| {
            let mut view = FleetView::new(Schema::new(&"t".parse().unwrap()));
            let kv = KeyValue {
                key: view.schema().cidr(claim.parse().unwrap()),
                value: Arc::from(value.as_bytes()),
                create_revision: Revision(2),
                mod_revision: Revision(2),
                lease: None,
            };
            let store = StoreIdentity(1);
            view.apply_list(ListPage { entries: vec![kv], revision: Revision(2), store, more: false });
            assert_eq!(overlaps_claim(&view, "10.0.4.0/24".parse().unwrap()), expected, "{claim} {value}");
        };
        let live = r#"{"v":1,"node":"n","state":"live","token":"t"}"#;
        check("10.0.4.0/24", live, true);
        check("10.0.4.0/24", &live.replace("live", "quarantined"), true);
        check("10.0.4.0/24", "{}", true);
        check("10.0.0.0/16", live, true);
        check("10.0.4.0/23", live, true);
        check("10.0.4.0/25", live, true);
        check("10.0.4.128/25", live, true);
        check("10.0.4.255/32", live, true);
        check("10.0.3.0/24", live, false);
        check("10.0.5.0/24", live, false);
        check("10.0.5.0/25", live, false);
        check("10.0.3.128/25", live, false);
        check("10.0.2.0/23", live, false);
    }
}
