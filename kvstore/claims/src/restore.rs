//! Writing again what the store has lost and no owner writes: records of nodes that are away, numbers that nobody uses
//! now, the users' manifests.
//!
//! Each piece is written only where the store still has what the list showed (nothing, or an older copy's record), and
//! after the pieces that it depends on: nodes, claims, identities, then references and endpoints.

use identity::{Identity, LabelDigest, NodeName, ServiceName};
use kvstore_schema::{
    Condition, Key, KeyValue, KvOp, KvRequest, Revision, Txn,
    key::ParsedKey,
    record::{ClaimState, IdentityLabelsRecord, Record},
    service::{ServiceClaim, ServiceClaimRecord, ServiceRecord},
};
use serde::{Deserialize, Serialize};
use std::{net::IpAddr, sync::Arc};

use crate::{FleetView, ViewChange, machine::put};

/// The most conditions, and the most operations, of one request: below etcd's 128 operations, and enough for the largest
/// piece (99: a service that has replaced all its claims, `MAX_FRONTENDS` and its address).
const MOST_OPS: usize = 100;

/// Plans one request after the other. One per agent.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Restorer {
    /// Pieces in one request: one after a failure, so that a piece which cannot be written holds up no other.
    pieces: usize,
}

impl Default for Restorer {
    fn default() -> Self {
        Self { pieces: 1 }
    }
}

/// Records that are written together or not at all.
struct Piece {
    conditions: Vec<Condition>,
    ops: Vec<KvOp>,
}

/// What can be done about a remembered key.
enum Plan {
    Write(Piece),
    /// A record that the key depends on comes first.
    Later,
    /// Another record has taken the key's place.
    Over,
    /// The number does not belong to the label set any more.
    Lost(Identity, LabelDigest),
}

impl Restorer {
    /// The next request; `None` when nothing is left, or everything that is left waits. `draw`: any random number. Records
    /// that cannot be written any more are given up; the changes tell which.
    ///
    /// The caller asks again once the view shows the result. Costs O(remembered records).
    pub fn plan(&self, view: &mut FleetView, draw: u64) -> (Option<KvRequest>, Vec<ViewChange>) {
        let mut changes = Vec::new();
        let mut pieces = Vec::new();
        let keys: Vec<Key> = view.remembered.keys().cloned().collect();
        for key in keys {
            // The key may have been given up together with another.
            let Some(base) = view.remembered.get(&key) else { continue };
            let base = base.as_ref().map(|kv| kv.mod_revision);
            match plan(view, &key, base) {
                Plan::Write(piece) => pieces.push(piece),
                Plan::Later => {}
                Plan::Over => view.give_up(&key, &mut changes),
                Plan::Lost(number, digest) => {
                    view.lose_meaning(number, &digest, &mut changes);
                    view.give_up(&key, &mut changes);
                }
            }
        }
        pieces.extend(view.resurrected.values().filter_map(|kv| delete(view, kv)));
        if pieces.is_empty() {
            return (None, changes);
        }
        let first = (draw % pieces.len() as u64) as usize;
        pieces.rotate_left(first);
        let mut txn = Txn::new();
        for piece in pieces.into_iter().take(self.pieces) {
            if txn.conditions.len() + piece.conditions.len() > MOST_OPS
                || txn.then.len() + piece.ops.len() > MOST_OPS
            {
                break;
            }
            // Two pieces may depend on one record, or both hold it.
            for condition in piece.conditions {
                if !txn.conditions.contains(&condition) {
                    txn.conditions.push(condition);
                }
            }
            for op in piece.ops {
                if !txn.then.contains(&op) {
                    txn.then.push(op);
                }
            }
        }
        (Some(KvRequest::Txn(txn)), changes)
    }

    /// Whether the last request was carried out.
    pub fn answered(&mut self, succeeded: bool) {
        self.pieces = if succeeded { (self.pieces * 4).min(MOST_OPS) } else { 1 };
    }
}

/// The key still has the record that the list showed.
fn unchanged(key: &Key, base: Option<Revision>) -> Condition {
    match base {
        None => Condition::Absent(key.clone()),
        Some(revision) => Condition::ModRevision(key.clone(), revision),
    }
}

fn plan(view: &FleetView, key: &Key, base: Option<Revision>) -> Plan {
    let Ok(parsed) = view.schema().parse(key) else { return Plan::Over };
    let alone = |op| Plan::Write(Piece { conditions: vec![unchanged(key, base)], ops: vec![op] });
    let raw = |value: &Arc<[u8]>| KvOp::Put { key: key.clone(), value: value.clone(), lease: None };
    let planned = match &parsed {
        ParsedKey::Node(node) => view.nodes().get(node).map(|entry| alone(put(key.clone(), &entry.record))),
        ParsedKey::Cidr(cidr) => view.cidrs().get(cidr).map(|claim| alone(put(key.clone(), &claim.record))),
        ParsedKey::Service(name) => service(view, name),
        ParsedKey::ServiceClaim(claim) => {
            let owner = view.service_claims().get(claim).map(|entry| &entry.record.service);
            let has_it = |name: &&ServiceName| {
                view.services().get(*name).is_some_and(|service| service.record.claims().contains(claim))
            };
            owner.filter(has_it).and_then(|name| service(view, name))
        }
        ParsedKey::Policy(name) => view.policies().get(name).map(|entry| alone(raw(&entry.record))),
        ParsedKey::Keyring => view.keyring().map(|entry| alone(raw(&entry.record))),
        ParsedKey::IdentityId(number) => {
            let labels = view.identities().get(number).map(|entry| entry.record.labels.digest());
            labels.and_then(|digest| identity(view, *number, &digest))
        }
        ParsedKey::IdentityLabels(digest) => {
            view.identity_labels().get(digest).and_then(|entry| identity(view, entry.record.id, digest))
        }
        ParsedKey::IdentityRef(number, node) => reference(view, key, base, *number, node),
        ParsedKey::Endpoint(node, ip) => endpoint(view, key, base, node, *ip),
        ParsedKey::Fleet | ParsedKey::Alive(_) | ParsedKey::Mark => None,
    };
    planned.unwrap_or(Plan::Over)
}

/// A number and its label set are written in one piece, or neither is.
///
/// In every store, the labels of each number point to that number (P3). So neither record is written over one that has
/// another meaning. If an older copy has another number for the label set and nobody refers to that number, the piece
/// deletes it. A reference to it shows that a node has taken it for the label set: then the copy's number wins.
fn identity(view: &FleetView, number: Identity, digest: &LabelDigest) -> Option<Plan> {
    let by_number = view.identities().get(&number)?;
    let by_labels = view.identity_labels().get(digest)?;
    let lost = || Some(Plan::Lost(number, digest.clone()));
    if by_labels.record.id != number || by_number.record.labels != by_labels.record.labels {
        return None;
    }
    if view.copied_labels(number).is_some_and(|labels| labels != by_number.record.labels) {
        return lost();
    }
    let (id_key, labels_key) = (view.schema().identity_id(number), view.schema().identity_labels(digest));
    let mut piece = together(
        view,
        vec![
            (id_key, by_number.record.encode(), by_number.modified),
            (labels_key, by_labels.record.encode(), by_labels.modified),
        ],
    );
    if let Some(copied) = view.copied_number(digest).filter(|copied| *copied != number) {
        let refs = view.schema().identity_refs(copied);
        if !view.refs(copied).is_empty() {
            return lost();
        }
        if view.resurrected.keys().any(|key| refs.contains(key)) {
            return Some(Plan::Later);
        }
        let key = view.schema().identity_id(copied);
        let there = match (view.resurrected.get(&key), view.identities().get(&copied)) {
            _ if view.is_remembered(&key) => return Some(Plan::Later),
            (Some(kv), _) => Some(kv.mod_revision),
            (None, Some(entry)) if entry.record.labels == by_labels.record.labels => Some(entry.modified),
            (None, Some(_)) => return Some(Plan::Write(piece)),
            (None, None) => None,
        };
        piece.conditions.push(Condition::RangeEmpty(refs));
        piece.conditions.push(unchanged(&key, there));
        if there.is_some() {
            piece.ops.push(KvOp::Delete(key));
        }
    }
    Some(Plan::Write(piece))
}

/// A piece of records that exist together or not at all: those that are remembered are written, on condition that the
/// others are still what the view has. Each part is a key with its value and revision in the view.
fn together(view: &FleetView, parts: Vec<(Key, Arc<[u8]>, Revision)>) -> Piece {
    let mut piece = Piece { conditions: Vec::new(), ops: Vec::new() };
    for (key, value, modified) in parts {
        match view.remembered.get(&key) {
            Some(base) => {
                piece.conditions.push(unchanged(&key, base.as_ref().map(|kv| kv.mod_revision)));
                piece.ops.push(KvOp::Put { key, value, lease: None });
            }
            None => piece.conditions.push(Condition::ModRevision(key, modified)),
        }
    }
    piece
}

/// A service and its claims are written in one piece, which also deletes the claims that an older copy has for the service.
/// `None`: a claim belongs to another service by now.
fn service(view: &FleetView, name: &ServiceName) -> Option<Plan> {
    let entry = view.services().get(name)?;
    let key = view.schema().service(name);
    let claims = entry.record.claims();
    let mut parts = vec![(key.clone(), entry.record.encode(), entry.modified)];
    let mut fresh = Vec::new();
    for claim in &claims {
        let claim_key = view.schema().service_claim(claim);
        match view.service_claims().get(claim) {
            Some(there) if there.record.service != *name => return None,
            Some(there) => parts.push((claim_key, there.record.encode(), there.modified)),
            // A snapshot tells of the service alone.
            None => fresh.push(claim_key),
        }
    }
    let mut piece = together(view, parts);
    for claim_key in fresh {
        let claimed = ServiceClaimRecord { service: name.clone(), unknown: Default::default() };
        piece.conditions.push(Condition::Absent(claim_key.clone()));
        piece.ops.push(put(claim_key, &claimed));
    }
    let copied = view.remembered.get(&key).and_then(Option::as_ref);
    let copied = copied.and_then(|kv| Some(ServiceRecord::decode(&kv.value).ok()?.claims()));
    let former = copied.into_iter().flatten().filter(|claim| !claims.contains(claim));
    give_back(view, name, former, &mut piece);
    Some(Plan::Write(piece))
}

/// Deletes claims that an older copy has for a service.
fn give_back(
    view: &FleetView,
    name: &ServiceName,
    claims: impl Iterator<Item = ServiceClaim>,
    piece: &mut Piece,
) {
    for claim in claims {
        let there = view.resurrected.get(&view.schema().service_claim(&claim));
        let its = |kv: &&KeyValue| {
            ServiceClaimRecord::decode(&kv.value).is_ok_and(|record| record.service == *name)
        };
        if let Some(kv) = there.filter(its) {
            piece.conditions.push(Condition::ModRevision(kv.key.clone(), kv.mod_revision));
            piece.ops.push(KvOp::Delete(kv.key.clone()));
        }
    }
}

fn reference(
    view: &FleetView,
    key: &Key,
    base: Option<Revision>,
    number: Identity,
    node: &NodeName,
) -> Option<Plan> {
    let id_key = view.schema().identity_id(number);
    let entry = view.refs(number).get(node)?;
    let meaning = view.identities().get(&number)?;
    if view.is_remembered(&id_key) {
        return Some(Plan::Later);
    }
    // Nobody may refer to a number in quarantine: its user revives the number first.
    (meaning.record.state == ClaimState::Live).then(|| {
        Plan::Write(Piece {
            conditions: vec![unchanged(key, base), Condition::ModRevision(id_key, meaning.modified)],
            ops: vec![put(key.clone(), &entry.record)],
        })
    })
}

fn endpoint(
    view: &FleetView,
    key: &Key,
    base: Option<Revision>,
    node: &NodeName,
    ip: IpAddr,
) -> Option<Plan> {
    let entry = view.endpoints().get(node)?.get(&ip)?;
    let (cidr, claim) = view.cidr_of_ip(ip).filter(|(_, claim)| claim.record.node == *node)?;
    let cidr_key = view.schema().cidr(cidr);
    if view.is_remembered(&cidr_key) {
        return Some(Plan::Later);
    }
    Some(Plan::Write(Piece {
        conditions: vec![unchanged(key, base), Condition::CreateRevision(cidr_key, claim.created)],
        ops: vec![KvOp::Put { key: key.clone(), value: entry.record.encode(), lease: None }],
    }))
}

/// Deletes a resurrected record; `None`: another record comes first.
fn delete(view: &FleetView, kv: &KeyValue) -> Option<Piece> {
    let mut piece = Piece {
        conditions: vec![Condition::ModRevision(kv.key.clone(), kv.mod_revision)],
        ops: vec![KvOp::Delete(kv.key.clone())],
    };
    match view.schema().parse(&kv.key) {
        Ok(ParsedKey::Node(node)) => piece.conditions.push(Condition::Absent(view.schema().alive(&node))),
        Ok(ParsedKey::IdentityId(number)) => {
            piece.conditions.push(Condition::RangeEmpty(view.schema().identity_refs(number)));
        }
        // Not before the number that the record points to, which would be left without its labels.
        Ok(ParsedKey::IdentityLabels(_)) => {
            let number = IdentityLabelsRecord::decode(&kv.value).ok()?.id;
            let key = view.schema().identity_id(number);
            let base = match view.remembered.get(&key) {
                Some(Some(_)) => return None,
                Some(None) => None,
                None => view.identities().get(&number).map(|entry| entry.modified),
            };
            piece.conditions.push(unchanged(&key, base));
        }
        Ok(ParsedKey::Service(name)) => {
            let claims = ServiceRecord::decode(&kv.value).ok()?.claims();
            give_back(view, &name, claims.into_iter(), &mut piece);
        }
        // The claim goes with its service's record, unless the service has given it up or is gone.
        Ok(ParsedKey::ServiceClaim(_)) => {
            let name = ServiceClaimRecord::decode(&kv.value).ok()?.service;
            let key = view.schema().service(&name);
            if view.resurrected.contains_key(&key) || view.is_remembered(&key) {
                return None;
            }
            piece.conditions.push(unchanged(&key, view.services().get(&name).map(|entry| entry.modified)));
        }
        _ => {}
    }
    Some(piece)
}
