//! Lists and events in, tables and changes out.

use std::sync::Arc;

use kvstore_schema::{Key, KeyValue, KvEvent, ListPage, Revision, Schema, StoreIdentity, key::ParsedKey};

use super::{ChangeKind, Discontinuity, FleetView};

mod generations;
mod remembered;

const REF: &str = r#"{"v":1,"incarnation":1}"#;
const ENDPOINT: &str = r#"{"v":1,"name":"web","identity":256,"labels_digest":"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","labels":{}}"#;

fn view() -> FleetView {
    FleetView::new(Schema::new(&"t".parse().unwrap()))
}

fn kv(path: &str, value: &str, revision: i64) -> KeyValue {
    KeyValue {
        key: Key::from_raw(format!("/warren/v1/t/{path}")),
        value: Arc::from(value.as_bytes()),
        create_revision: Revision(revision),
        mod_revision: Revision(revision),
        lease: None,
    }
}

fn put(path: &str, value: &str, revision: i64) -> KvEvent {
    KvEvent::Put(kv(path, value, revision))
}

fn delete(path: &str, revision: i64) -> KvEvent {
    KvEvent::Delete { key: Key::from_raw(format!("/warren/v1/t/{path}")), mod_revision: Revision(revision) }
}

fn list(entries: Vec<KeyValue>, revision: i64) -> ListPage {
    ListPage { entries, revision: Revision(revision), store: StoreIdentity(1), more: false }
}

/// Changes as texts: the last part of the key and what became of it.
fn texts(view: &FleetView, changes: Vec<super::ViewChange>) -> Vec<String> {
    let name = |key: ParsedKey| match key {
        ParsedKey::IdentityRef(identity, node) => view.schema().identity_ref(identity, &node),
        ParsedKey::Endpoint(node, ip) => view.schema().endpoint(&node, ip),
        ParsedKey::Cidr(cidr) => view.schema().cidr(cidr),
        other => Key::from_raw(format!("{other:?}")),
    };
    let text = |change: super::ViewChange| {
        format!("{:?} {}", change.kind, name(change.key)).replace("/warren/v1/t/", "")
    };
    changes.into_iter().map(text).collect()
}

#[test]
fn list_tells_what_is_new_changed_and_gone_and_nothing_when_repeated() {
    let mut view = view();
    let first = list(vec![kv("identities/refs/256/a", REF, 2), kv("identities/refs/256/b", REF, 3)], 5);
    let changes = view.apply_list(first.clone());
    assert_eq!(texts(&view, changes), ["Put identities/refs/256/a", "Put identities/refs/256/b"]);
    assert_eq!(view.apply_list(first), []);
    let second = list(vec![kv("identities/refs/256/b", REF, 7), kv("identities/refs/257/b", REF, 8)], 9);
    let changes = view.apply_list(second);
    assert_eq!(
        texts(&view, changes),
        ["Put identities/refs/256/b", "Put identities/refs/257/b", "Gone identities/refs/256/a"]
    );
    assert_eq!(view.refs_by_node().len(), 1);
    assert!(view.is_complete());
}

#[test]
fn event_is_applied_once() {
    let mut view = view();
    view.apply_list(list(vec![], 5));
    let events = [put("identities/refs/256/a", REF, 6), delete("identities/refs/256/a", 7)];
    let changes = view.apply_events(&events);
    assert_eq!(texts(&view, changes), ["Put identities/refs/256/a", "Gone identities/refs/256/a"]);
    assert_eq!(view.apply_events(&events), [], "duplicates");
    assert_eq!(view.apply_events(&events[..1]), [], "a watch that goes back in time");
    assert_eq!(view.revision(), Revision(7));
}

#[test]
fn bad_record_is_rejected_alone_and_the_last_good_one_stays() {
    let mut view = view();
    let good = kv("identities/refs/256/a", REF, 2);
    view.apply_list(list(vec![good, kv("identities/refs/3/a", REF, 3), kv("strange", "x", 4)], 5));
    assert_eq!(view.rejected().len(), 2, "{:?}", view.rejected());
    let changes = view
        .apply_events(&[put("identities/refs/256/a", r#"{"v":2}"#, 6), put("identities/refs/256/b", REF, 6)]);
    assert_eq!(changes[0].kind, ChangeKind::Rejected);
    let refs = view.refs(identity::Identity::FLEET_MIN);
    assert_eq!(refs.values().map(|entry| entry.modified.0).collect::<Vec<_>>(), [2, 6]);
    assert_eq!((view.rejected().len(), view.rejections()), (3, 3));
    view.apply_events(&[delete("identities/refs/256/a", 7), delete("strange", 7)]);
    assert_eq!(view.rejected().len(), 1);
    assert_eq!(view.refs(identity::Identity::FLEET_MIN).len(), 1);
}

#[test]
fn address_belongs_to_the_owner_of_its_block() {
    let mut view = view();
    let claim = |node: &str| format!(r#"{{"v":1,"node":"{node}","state":"live","token":"t"}}"#);
    view.apply_list(list(
        vec![
            kv("cidrs/10.0.0.0-24", &claim("b"), 2),
            kv("endpoints/a/10.0.0.2", ENDPOINT, 3),
            kv("endpoints/b/10.0.0.2", ENDPOINT, 4),
            kv("endpoints/b/10.9.0.2", ENDPOINT, 5),
        ],
        5,
    ));
    let owner =
        |view: &FleetView, ip: &str| view.endpoint_at(ip.parse().unwrap()).map(|(node, _)| node.to_string());
    assert_eq!(owner(&view, "10.0.0.2"), Some("b".to_owned()));
    assert_eq!(owner(&view, "10.9.0.2"), None, "outside every claim");
    view.apply_events(&[delete("endpoints/b/10.0.0.2", 6)]);
    assert_eq!(owner(&view, "10.0.0.2"), None, "what a former owner left behind");
    assert_eq!(view.endpoint_count(), 2);
}

#[test]
fn store_that_went_back_or_was_replaced_is_recognised() {
    let mut view = view();
    view.apply_list(list(vec![], 5));
    assert_eq!(view.check_list(&list(vec![], 5)), Ok(()));
    let back = Discontinuity::Backwards { known: Revision(5), now: Revision(4) };
    assert_eq!(view.check_list(&list(vec![], 4)), Err(back));
    let other = ListPage { store: StoreIdentity(2), ..list(vec![], 9) };
    assert!(matches!(view.check_list(&other), Err(Discontinuity::OtherStore { .. })));
}

#[test]
fn remembered_records_answer_until_the_next_list_and_prove_nothing() {
    let mut view = view();
    let saved = |path, value| KeyValue { mod_revision: Revision::default(), ..kv(path, value, 3) };
    let former = vec![saved("identities/refs/256/a", REF), saved("identities/refs/257/a", REF)];
    let changes = view.remember(StoreIdentity(1), Default::default(), Revision(5), former.into_iter());
    assert_eq!(texts(&view, changes), ["Put identities/refs/256/a", "Put identities/refs/257/a"]);
    assert!(!view.is_complete());
    assert!(view.check_list(&list(vec![], 4)).is_err(), "it is held against what was remembered");
    let changes = view.apply_list(list(vec![kv("identities/refs/256/a", REF, 3)], 6));
    assert_eq!(texts(&view, changes), ["Put identities/refs/256/a", "Gone identities/refs/257/a"]);
    assert!(view.is_complete());
}

/// Many endpoints, the same list again (nothing is decoded twice), and one change.
#[test]
fn view_of_a_large_fleet_costs_by_change() {
    let mut view = view();
    let path = |index: u32| format!("endpoints/n{}/10.{}.{}.2", index / 256, index >> 8 & 255, index & 255);
    let entries: Vec<KeyValue> =
        (0..20_000).map(|index| kv(&path(index), ENDPOINT, i64::from(index) + 2)).collect();
    let page = list(entries, 200_000);
    assert_eq!(view.apply_list(page.clone()).len(), 20_000);
    assert_eq!(view.endpoint_count(), 20_000);
    assert_eq!(view.apply_list(page), []);
    assert_eq!(view.apply_events(&[delete(&path(7), 200_001)]).len(), 1);
    assert_eq!(view.endpoint_count(), 19_999);
}
