//! Giving up a reference to an identity, and finding references that are wrong.

use std::collections::BTreeSet;

use identity::{Identity, NodeName};
use kvstore_schema::{
    Condition, KvOp, KvRequest, Revision, Schema, Txn, TxnResponse, record::IdentityRefRecord,
};
use serde::{Deserialize, Serialize};

use crate::{
    ClaimError, FleetView,
    machine::{Machine, Next, Protocol, decode, got, or_failed},
};

/// Deletes this node's reference to a number. The number itself is left to the [`crate::Collector`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct IdentityRelease {
    schema: Schema,
    node: NodeName,
    incarnation: u64,
    identity: Identity,
}

impl IdentityRelease {
    /// `ref_revision`: from the grant or the view. Releasing a reference that does not exist is no error.
    ///
    /// The caller runs at most one machine, acquiring or releasing, per label set of its node. The delete
    /// compares the revision, so that a delete which arrives late never removes a reference taken since.
    pub fn start(
        schema: &Schema,
        node: NodeName,
        incarnation: u64,
        identity: Identity,
        ref_revision: Revision,
    ) -> (Machine<Self>, KvRequest) {
        let this = Self { schema: schema.clone(), node, incarnation, identity };
        let txn = this.delete(ref_revision);
        Machine::begin(this, txn)
    }

    fn delete(&self, revision: Revision) -> Txn {
        let key = self.schema.identity_ref(self.identity, &self.node);
        Txn::new()
            .when(Condition::ModRevision(key.clone(), revision))
            .then(KvOp::Delete(key.clone()))
            .otherwise(KvOp::Get(key))
    }

    fn decide(&self, answer: &TxnResponse) -> Result<Next<()>, ClaimError> {
        let Some(found) = got(answer, 0)? else { return Ok(Next::Done(())) };
        let reference: IdentityRefRecord = decode(found)?;
        if reference.incarnation > self.incarnation {
            // A later agent of this node uses it.
            return Ok(Next::Done(()));
        }
        // An acquisition of ours that arrived twice.
        Ok(Next::Ask(self.delete(found.mod_revision)))
    }
}

impl Protocol for IdentityRelease {
    type Output = ();

    fn on_answer(&mut self, answer: &TxnResponse, _view: &FleetView, _draw: u64) -> Next<()> {
        if answer.succeeded { Next::Done(()) } else { or_failed(self.decide(answer)) }
    }
}

/// References of `node` in the view to numbers that the node does not use, as a crash leaves them behind, with their
/// revisions: the caller releases them. `used` must also hold the numbers that are being acquired.
pub fn stray_refs(view: &FleetView, node: &NodeName, used: &BTreeSet<Identity>) -> Vec<(Identity, Revision)> {
    let held = view.refs_by_node().get(node);
    held.into_iter()
        .flatten()
        .filter(|identity| !used.contains(identity))
        .filter_map(|identity| Some((*identity, view.refs(*identity).get(node)?.modified)))
        .collect()
}

/// Numbers that `node` uses without a reference in the view: the caller acquires their labels again.
pub fn missing_refs(view: &FleetView, node: &NodeName, used: &BTreeSet<Identity>) -> Vec<Identity> {
    used.iter().filter(|identity| !view.refs(**identity).contains_key(node)).copied().collect()
}
