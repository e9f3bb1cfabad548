//! What replaces a remembered record, and what is given up with it.

use identity::{Identity, LabelDigest, Labels};
use kvstore_schema::{KeyValue, KvEvent, Revision, StoreIdentity};

use super::{
    REF, delete,
    generations::{claim, me, number, remembered, service},
    kv, list, texts, view,
};
use crate::view::{Continuity, FleetView};

fn id(number: u32) -> Identity {
    Identity::new(number).unwrap()
}

fn digest(app: &str) -> LabelDigest {
    Labels::parse([format!("app={app}")]).unwrap().digest()
}

fn put(kv: KeyValue) -> KvEvent {
    KvEvent::Put(kv)
}

/// A view of `known` records beside a store that has the `found` ones, older than all that is known.
fn beside(known: Vec<KeyValue>, found: Vec<KeyValue>) -> FleetView {
    let mut view = view();
    view.apply_list(list(known, 20));
    let page = kvstore_schema::ListPage { store: StoreIdentity(2), ..list(found, 10) };
    view.follow(page, &Continuity::Older(String::new()), &me());
    view
}

#[test]
fn remembered_claim_yields_to_a_later_one_only() {
    let check = |since: &str, created: i64, owner: &str, left: usize| {
        let path = "cidrs/10.0.1.0-24";
        let mut view = beside(vec![kv(path, &claim("other", "live"), 8)], vec![]);
        assert_eq!(remembered(&view), [path]);
        let record = claim("third", "live").replace("\"token\"", &format!("{since}\"token\""));
        view.apply_events(&[put(kv(path, &record, created))]);
        let found = &view.cidrs()[&"10.0.1.0/24".parse().unwrap()].record.node;
        assert_eq!((found.as_str(), view.remembered()), (owner, left), "{since}");
    };
    let since = |revision: i64| format!(r#""since":{{"life":0,"revision":{revision}}},"#);
    check(&since(7), 11, "other", 1);
    check(&since(8), 11, "third", 0);
    check(&since(9), 11, "third", 0);
    // Written in the store that was found: revisions count from there.
    check("", 11, "third", 0);
}

#[test]
fn claim_that_is_not_remembered_is_what_the_store_says() {
    let path = "cidrs/10.0.1.0-24";
    let dated = |node: &str, revision: i64| {
        let since = format!(r#""since":{{"life":0,"revision":{revision}}},"token""#);
        claim(node, "live").replace("\"token\"", &since)
    };
    let mut view = view();
    view.apply_list(list(vec![kv(path, &dated("other", 9), 9)], 20));
    view.apply_events(&[put(kv(path, &dated("third", 7), 21))]);
    assert_eq!(view.cidrs()[&"10.0.1.0/24".parse().unwrap()].record.node.as_str(), "third");
    assert_eq!(view.remembered(), 0);
}

#[test]
fn remembered_number_is_given_up_when_it_means_other_labels() {
    let known = || [number(300, "web", 8).to_vec(), vec![kv("identities/refs/300/other", REF, 9)]].concat();
    let labels = format!("identities/labels/{}", digest("web"));
    let all = ["identities/id/300", labels.as_str(), "identities/refs/300/other"];
    assert_eq!(remembered(&beside(known(), vec![])), all);

    let mut view = beside(known(), vec![]);
    let changes = view.apply_events(&[put(number(300, "db", 11)[0].clone())]);
    assert_eq!(remembered(&view), Vec::<&str>::new());
    assert_eq!(view.identities()[&id(300)].record.labels.to_string(), "app=db");
    assert!(!view.identity_labels().contains_key(&digest("web")) && view.refs(id(300)).is_empty());
    let told = texts(&view, changes);
    assert_eq!(told[0], "Gone identities/refs/300/other");
    assert!(told.last().unwrap().starts_with("Put IdentityId(300"), "{told:?}");

    // The label set gets another number: the same is over.
    let mut view = beside(known(), vec![]);
    view.apply_events(&[put(number(301, "web", 11)[1].clone())]);
    assert_eq!(remembered(&view), Vec::<&str>::new());
    assert_eq!(view.identity_labels()[&digest("web")].record.id, id(301));
    assert!(!view.identities().contains_key(&id(300)));

    // What is written as it is remembered ends that piece alone.
    let mut view = beside(known(), vec![]);
    view.apply_events(&number(300, "web", 11).map(put));
    assert_eq!(remembered(&view), all[2..]);
}

#[test]
fn disputed_label_set_has_two_numbers_until_one_is_given_up() {
    let none = || beside(vec![], vec![]);
    assert!(!none().is_disputed(&digest("web")));
    assert!(
        !beside(number(300, "web", 18).to_vec(), vec![]).is_disputed(&digest("web")),
        "lost, not disputed"
    );
    let same = beside(number(300, "web", 18).to_vec(), number(300, "web", 5).to_vec());
    assert!(!same.is_disputed(&digest("web")), "older, with the same number");
    let copy = number(299, "web", 5).to_vec();
    let mut view = beside(number(300, "web", 18).to_vec(), copy);
    assert!(view.is_disputed(&digest("web")) && !view.is_disputed(&digest("db")));
    assert_eq!(view.copied_number(&digest("web")), Some(id(299)));
    assert_eq!(view.copied_labels(id(300)), None);

    // Given up: the view has what the store has, both halves of it.
    let mut changes = Vec::new();
    view.lose_meaning(id(300), &digest("web"), &mut changes);
    assert!(!view.is_disputed(&digest("web")));
    assert_eq!(view.identity_labels()[&digest("web")].record.id, id(299));
    assert_eq!(view.identities().keys().collect::<Vec<_>>(), [&id(299)]);
    assert_eq!(view.remembered(), 0);
}

#[test]
fn given_up_number_brings_back_the_label_set_of_the_copy() {
    let known = number(300, "web", 18).to_vec();
    let mut view = beside(known, number(300, "db", 5).to_vec());
    assert_eq!(view.copied_labels(id(300)).map(|labels| labels.to_string()).as_deref(), Some("app=db"));
    let mut changes = Vec::new();
    view.give_up(&view.schema().identity_id(id(300)), &mut changes);
    assert_eq!(view.identity_labels()[&digest("db")].record.id, id(300));
    assert_eq!(view.identities()[&id(300)].record.labels.to_string(), "app=db");
    view.give_up(&view.schema().identity_id(id(999)), &mut changes);
    assert_eq!(changes.len(), 2, "what is not remembered is not given up");
}

#[test]
fn given_up_service_brings_back_the_claims_of_the_copy() {
    let at = |address: &str, revision| {
        let vip = kv(&format!("vips/{address}"), r#"{"v":1,"service":"web"}"#, revision);
        vec![kv("services/web", &service(address), revision), vip]
    };
    let mut view = beside(at("10.201.0.9", 18), at("10.201.0.1", 5));
    assert_eq!(remembered(&view), ["services/web", "vips/10.201.0.9"]);
    assert_eq!(view.resurrected.len(), 1, "the claim that the service has given up since");
    let key = view.schema().service(&"web".parse().unwrap());
    view.give_up(&key, &mut Vec::new());
    assert_eq!(view.resurrected.len(), 0);
    let claims: Vec<String> = view.service_claims().keys().map(ToString::to_string).collect();
    assert_eq!(claims, ["address 10.201.0.1", "address 10.201.0.9"]);
}

/// A list that replaces the view: remembered records that it lacks are gone, those that it has are as it says.
#[test]
fn remembered_records_end_with_a_list_of_another_store() {
    let known = |path| kv(path, &claim("other", "live"), 18);
    let mut view = beside(vec![known("cidrs/10.0.1.0-24"), known("cidrs/10.0.2.0-24")], vec![]);
    assert_eq!(view.remembered(), 2);
    let entries = vec![kv("cidrs/10.0.1.0-24", &claim("third", "live"), 3)];
    let page = kvstore_schema::ListPage { store: StoreIdentity(3), ..list(entries, 30) };
    let changes = view.apply_list(page);
    assert_eq!(texts(&view, changes), ["Put cidrs/10.0.1.0-24", "Gone cidrs/10.0.2.0-24"]);
    let owners: Vec<&str> = view.cidrs().values().map(|claim| claim.record.node.as_str()).collect();
    assert_eq!((owners, view.remembered()), (vec!["third"], 0));
}

#[test]
fn deleted_key_is_remembered_no_more() {
    let path = "cidrs/10.0.1.0-24";
    let found = vec![kv(path, &claim("third", "live"), 5)];
    let mut view = beside(vec![kv(path, &claim("other", "live"), 18)], found.clone());
    assert_eq!(view.remembered(), 1);
    let changes = view.apply_events(&[delete(path, 11)]);
    assert_eq!((texts(&view, changes), view.remembered()), (vec![format!("Gone {path}")], 0));
    let mut view = beside(vec![], found);
    view.resurrected = std::collections::BTreeMap::from([(kv(path, "", 5).key, kv(path, "", 5))]);
    view.apply_events(&[delete(path, 11)]);
    assert_eq!(view.remembered(), 0);
    assert_eq!(view.revision(), Revision(11));
}
