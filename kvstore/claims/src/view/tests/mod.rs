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
    // A counter that could not be raised any more is refused, and counted.
    let wrapping = format!(r#"{{"v":1,"incarnation":{}}}"#, u64::MAX);
    view.apply_events(&[put("identities/refs/256/b", &wrapping, 6)]);
    assert_eq!(view.rejections(), 3, "seen already");
    let mut later = view.clone();
    later.apply_events(&[put("identities/refs/256/b", &wrapping, 7)]);
    assert_eq!((later.rejected().len(), later.rejections()), (4, 4));
    assert_eq!(later.refs(identity::Identity::FLEET_MIN).len(), 2, "the last good one stays");
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

#[test]
fn list_brings_only_what_has_another_revision() {
    let known = || {
        let mut view = view();
        let keyring = kv("keyring", "sealed", 3);
        view.apply_list(list(vec![kv("identities/refs/256/a", REF, 2), keyring], 5));
        view
    };
    let same = || vec![kv("identities/refs/256/a", REF, 2), kv("keyring", "sealed", 3)];
    assert_eq!(known().apply_list(list(same(), 9)), [], "further on");
    assert_eq!(known().apply_list(list(same(), 4)).len(), 2, "an earlier revision: values may differ");
    let other = ListPage { store: StoreIdentity(2), ..list(same(), 9) };
    assert_eq!(known().apply_list(other).len(), 2, "another store");
    let view = known();
    assert_eq!((view.store(), view.is_listed()), (Some(StoreIdentity(1)), true));
    assert_eq!(view.keyring().map(|entry| entry.modified), Some(Revision(3)));
    assert!(format!("{view:?}").contains("revision: Revision(5)"));
    let empty = self::view();
    assert_eq!((empty.store(), empty.is_listed(), empty.keyring()), (None, false, None));
}

#[test]
fn event_of_a_revision_that_was_listed_is_skipped() {
    let mut view = view();
    view.apply_list(list(vec![], 5));
    assert_eq!(view.apply_events(&[put("identities/refs/256/a", REF, 5)]), []);
    view.apply_progress(Revision(8));
    assert_eq!(view.revision(), Revision(8));
    view.apply_progress(Revision(6));
    assert_eq!(view.revision(), Revision(8));
    assert_eq!(view.apply_events(&[put("identities/refs/256/a", REF, 8)]), []);
    assert_eq!(view.apply_events(&[put("identities/refs/256/a", REF, 9)]).len(), 1);
}

#[test]
fn claims_of_a_node_are_its_live_ones() {
    let mut view = view();
    let claim = |path: &str, node, state| kv(path, &generations::claim(node, state), 2);
    let claims = vec![
        claim("cidrs/10.0.0.0-24", "a", "live"),
        claim("cidrs/10.0.1.0-24", "a", "quarantined"),
        claim("cidrs/10.0.2.0-24", "b", "live"),
    ];
    view.apply_list(list(claims, 5));
    let of = |node: &str| {
        let node = node.parse().unwrap();
        view.cidrs_of(&node).map(|(cidr, _)| cidr.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(
        (of("a"), of("b"), of("c")),
        (vec!["10.0.0.0/24".to_owned()], vec!["10.0.2.0/24".to_owned()], vec![])
    );
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
