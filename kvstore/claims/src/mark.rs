//! The mark of a store: it recognises an older copy whose revision has passed what a node knows.
//!
//! A copy that is restored under the same cluster id, and written to before a node lists it, does not show in revisions.
//! So the store holds a random mark. Members replace the mark a while after other records have changed, and each mark
//! names the marks before it. A store that does not name the last mark that a node has seen is a copy of an earlier time.

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

    /// Whether a store with this record under the mark's key may be the store that the view was made from. A store that
    /// went on for longer than the record's history may be.
    pub fn is_marked_by(&self, found: Option<&KeyValue>) -> bool {
        let Some(known) = &self.mark else { return true };
        let Some(found) = found else { return false };
        // An unreadable record is rejected alone, like any other.
        let Some(found) = read(found) else { return true };
        if chain(&found).any(|former| former.mark == known.record.mark) {
            return true;
        }
        let earlier = known.record.before.iter().any(|former| former.mark == found.record.mark);
        !earlier && found.record.before.len() == MarkRecord::MAX_BEFORE && found.modified > known.modified
    }

    /// The last revision up to which the view and a store with this record share their history, as far as the marks tell.
    pub(crate) fn common_history(&self, found: Option<&KeyValue>) -> Option<Revision> {
        let (known, found) = (self.mark.as_ref()?, read(found?)?);
        chain(&found).find(|there| chain(known).any(|here| here == *there)).map(|mark| mark.revision)
    }
}

fn read(kv: &KeyValue) -> Option<Entry<MarkRecord>> {
    let record = MarkRecord::decode(&kv.value).ok()?;
    Some(Entry { record, created: kv.create_revision, modified: kv.mod_revision })
}
