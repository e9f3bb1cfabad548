//! The mark of a store: tells an older copy whose revision has passed what a node knows.
//!
//! A copy that comes back under the same cluster id, and is written to before a node looks, does not show in revisions.
//! So the store has a random mark, which members replace a while after other records have changed, and which names those
//! before it: a store that does not know the last mark that a node has seen is not the store that it saw.

use kvstore_schema::{
    Condition, KeyValue, KvRequest, Revision, Txn,
    record::{FormerMark, MarkRecord, Record},
};

use crate::{Entry, FleetView, machine::put};

/// The request that gives the store its next mark, if it still has the one that the view knows. `mark`: random text.
pub fn mark_request(view: &FleetView, mark: String) -> KvRequest {
    let key = view.schema().mark();
    let (unchanged, before) = match view.mark() {
        None => (Condition::Absent(key.clone()), Vec::new()),
        Some(entry) => {
            let unchanged = Condition::ModRevision(key.clone(), entry.modified);
            (unchanged, chain(entry).take(MarkRecord::MAX_BEFORE).collect())
        }
    };
    let record = MarkRecord { mark, before, unknown: Default::default() };
    KvRequest::Txn(Txn::new().when(unchanged).then(put(key, &record)))
}

/// All marks that a record names, the latest first.
fn chain(entry: &Entry<MarkRecord>) -> impl Iterator<Item = FormerMark> {
    let last = FormerMark { mark: entry.record.mark.clone(), revision: entry.modified };
    std::iter::once(last).chain(entry.record.before.iter().cloned())
}

impl FleetView {
    /// The store's mark.
    pub fn mark(&self) -> Option<&Entry<MarkRecord>> {
        self.mark.as_ref()
    }

    /// Whether a store with this record under the mark's key is the one that the view was made from, or may be: one that
    /// has gone on for longer than the record tells.
    pub fn is_marked_by(&self, found: Option<&KeyValue>) -> bool {
        let Some(known) = &self.mark else { return true };
        let Some(found) = found else { return false };
        // One that cannot be read is rejected alone.
        let Some(found) = read(found) else { return true };
        if chain(&found).any(|former| former.mark == known.record.mark) {
            return true;
        }
        let earlier = known.record.before.iter().any(|former| former.mark == found.record.mark);
        !earlier && found.record.before.len() == MarkRecord::MAX_BEFORE && found.modified > known.modified
    }

    /// Up to which revision the view and a store with this record are of one history, as far as the marks tell.
    pub(crate) fn common_history(&self, found: Option<&KeyValue>) -> Option<Revision> {
        let (known, found) = (self.mark.as_ref()?, read(found?)?);
        chain(&found).find(|there| chain(known).any(|here| here == *there)).map(|mark| mark.revision)
    }
}

fn read(kv: &KeyValue) -> Option<Entry<MarkRecord>> {
    let record = MarkRecord::decode(&kv.value).ok()?;
    Some(Entry { record, created: kv.create_revision, modified: kv.mod_revision })
}
