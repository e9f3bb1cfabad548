//! Restoration: what the fleet knows is in the store again, in order, and nothing is written over what is newer there.

use std::{collections::BTreeMap, sync::Arc};

use identity::Labels;
use kvstore_claims::{Continuity, FleetView, Restorer};
use kvstore_schema::{Condition, Key, KvOp, KvRequest, KvResponse, ListPage, Txn, record::Record};

use crate::bench::{Bench, endpoint, fleet, node, record, restoring};

fn labels(app: &str) -> Labels {
    format!("app={app}").parse().unwrap()
}

fn set(bench: &mut Bench, path: &str, value: impl Into<Arc<[u8]>>) {
    let key = Key::from_raw(format!("{}{path}", bench.schema.root()));
    let put = KvOp::Put { key, value: value.into(), lease: None };
    assert!(bench.succeeded(&KvRequest::Txn(Txn::new().then(put))));
}

fn text(bench: &mut Bench, path: &str, value: &str) {
    set(bench, path, value.as_bytes());
}

fn delete(bench: &mut Bench, path: &str) {
    let key = Key::from_raw(format!("{}{path}", bench.schema.root()));
    assert!(bench.succeeded(&KvRequest::Txn(Txn::new().then(KvOp::Delete(key)))));
}

/// A number and its label set.
fn identity(bench: &mut Bench, id: u32, app: &str, state: &str) {
    text(
        bench,
        &format!("identities/id/{id}"),
        &format!(r#"{{"v":1,"labels":{{"app":"{app}"}},"state":"{state}"}}"#),
    );
    let digest = labels(app).digest();
    text(
        bench,
        &format!("identities/labels/{digest}"),
        &format!(r#"{{"v":1,"id":{id},"labels":{{"app":"{app}"}}}}"#),
    );
}

fn reference(bench: &mut Bench, id: u32, node: &str) {
    text(bench, &format!("identities/refs/{id}/{node}"), r#"{"v":1,"incarnation":1}"#);
}

/// A service with its virtual IP.
fn service(bench: &mut Bench, name: &str, address: &str) {
    let spec = r#"{"virtualIp":"auto","ports":[{"protocol":"tcp","port":80}],"selector":{},"algorithm":"maglev","trafficPolicy":"fleet","mode":"snat","topology":"any"}"#;
    text(bench, &format!("services/{name}"), &format!(r#"{{"v":1,"spec":{spec},"virtual_ip":"{address}"}}"#));
    text(bench, &format!("vips/{address}"), &format!(r#"{{"v":1,"service":"{name}"}}"#));
}

fn claim(bench: &mut Bench, block: &str, node: &str) {
    text(
        bench,
        &format!("cidrs/{block}"),
        &format!(r#"{{"v":1,"node":"{node}","state":"live","token":"t"}}"#),
    );
}

/// A fleet without nodes.
fn bench() -> Bench {
    let mut bench = Bench::empty();
    set(&mut bench, "fleet", fleet("10.0.0.0/16", &[]).encode());
    bench
}

fn page(bench: &Bench) -> ListPage {
    bench.store.list(&bench.schema.root(), None, None, usize::MAX).unwrap()
}

/// What a store holds, but for the fleet's record: path and value.
fn content(bench: &Bench) -> BTreeMap<String, String> {
    let root = bench.schema.root().to_string();
    let of = |kv: kvstore_schema::KeyValue| {
        let path = kv.key.as_str().trim_start_matches(&root).to_owned();
        (path, String::from_utf8(kv.value.to_vec()).unwrap())
    };
    page(bench).entries.into_iter().map(of).filter(|(path, _)| path != "fleet").collect()
}

/// The view of a node that owns nothing, from `known`, beside a store that was founded anew with `found` in it.
fn beside(known: &Bench, found: &mut Bench) -> FleetView {
    // The copy is far behind what the node has seen.
    let mut seen = known.clone();
    let elsewhere =
        KvOp::Put { key: Key::from_raw("/elsewhere"), value: b"x".as_slice().into(), lease: None };
    for _ in 0..1_000 {
        seen.store.txn(&Txn::new().then(elsewhere.clone())).unwrap();
    }
    let mut view = seen.view();
    let older = Continuity::Older(String::new());
    view.follow(page(found), &older, &node("me"));
    found.set_life(restoring(1));
    catch_up(&mut view, found);
    view
}

fn catch_up(view: &mut FleetView, bench: &Bench) {
    view.apply_events(&bench.store.events_since(view.revision().next()).unwrap());
}

/// After each request: the labels of each number point to it, and a service has every claim in its name.
fn records_agree(store: &FleetView) {
    for (id, entry) in store.identities() {
        let labels = store.identity_labels().get(&entry.record.labels.digest());
        assert!(labels.is_none_or(|labels| labels.record.id == *id), "{id} {}", entry.record.labels);
    }
    for (digest, entry) in store.identity_labels() {
        let id = store.identities().get(&entry.record.id);
        assert!(id.is_none_or(|id| id.record.labels.digest() == *digest), "{}", entry.record.labels);
    }
    for (claim, entry) in store.service_claims() {
        let service = store.services().get(&entry.record.service);
        assert!(service.is_none_or(|service| service.record.claims().contains(claim)), "{claim}");
    }
    for (name, entry) in store.services() {
        for claim in entry.record.claims() {
            let owner = store.service_claims().get(&claim).map(|entry| &entry.record.service);
            assert_eq!(owner, Some(name), "{claim}");
        }
    }
}

/// Restores until nothing is left to be written. Returns how many operations of each request were carried out.
fn restore(view: &mut FleetView, bench: &mut Bench) -> Vec<usize> {
    let mut restorer = Restorer::default();
    let mut sizes = Vec::new();
    for draw in 0..300 {
        let (request, _) = restorer.plan(view, u64::MAX - draw);
        let Some(request) = request else { return sizes };
        let KvRequest::Txn(txn) = &request else { panic!("a transaction") };
        for (index, op) in txn.then.iter().enumerate() {
            let (KvOp::Put { key, .. } | KvOp::Delete(key)) = op else { panic!("{op:?}") };
            let fenced = |condition: &Condition| matches!(condition, Condition::Absent(of) | Condition::ModRevision(of, _) if of == key);
            assert!(txn.conditions.iter().any(fenced), "{key} is written over whatever is there");
            assert!(!txn.then[index + 1..].contains(op), "twice in one request: {op:?}");
        }
        for (index, condition) in txn.conditions.iter().enumerate() {
            assert!(!txn.conditions[index + 1..].contains(condition), "twice: {condition:?}");
        }
        assert!(txn.conditions.len() <= 100 && txn.then.len() <= 100);
        let Ok(KvResponse::Txn(answer)) = bench.store.execute(&request) else { panic!("an answer") };
        sizes.push(if answer.succeeded { txn.then.len() } else { 0 });
        restorer.answered(answer.succeeded);
        catch_up(view, bench);
        records_agree(&bench.view());
    }
    panic!("the restoration does not end: {:?}", view);
}

#[test]
fn restorer_writes_everything_that_is_remembered() {
    let mut known = bench();
    set(&mut known, "nodes/a", record("before", 1).encode());
    claim(&mut known, "10.0.1.0-24", "b");
    identity(&mut known, 300, "web", "quarantined");
    service(&mut known, "shop", "10.201.0.9");
    let copy = known.clone();
    for name in ["a", "b"] {
        set(&mut known, &format!("nodes/{name}"), record(name, 1).encode());
    }
    claim(&mut known, "10.0.1.0-24", "a");
    claim(&mut known, "10.0.2.0-24", "b");
    identity(&mut known, 300, "web", "live");
    identity(&mut known, 301, "db", "quarantined");
    reference(&mut known, 300, "a");
    reference(&mut known, 300, "b");
    let ip = "10.0.1.2".parse().unwrap();
    set(&mut known, "endpoints/a/10.0.1.2", endpoint("web").encode());
    delete(&mut known, "vips/10.201.0.9");
    service(&mut known, "shop", "10.201.0.1");
    text(&mut known, "policies/guard", "the user's");
    text(&mut known, "keyring", "sealed");
    for mut found in [bench(), copy] {
        let mut view = beside(&known, &mut found);
        assert!(view.remembered() > 0);
        let mut expected = content(&known);
        let nothing_there = content(&found).is_empty();
        let carried_out = restore(&mut view, &mut found);
        assert!(
            !nothing_there || !carried_out.contains(&0),
            "each waits for what it depends on: {carried_out:?}"
        );
        assert_eq!(view.remembered(), 0, "{:?}", content(&found));
        let mut restored = content(&found);
        // A claim that is made again says when it was made.
        for block in ["cidrs/10.0.1.0-24", "cidrs/10.0.2.0-24"] {
            let dated = restored.remove(block).unwrap();
            let plain = expected.remove(block).unwrap();
            let owner = |text: &str| text.split("\"state\"").next().unwrap().to_owned();
            assert!(dated.contains("\"since\":{\"life\":0,"), "{dated}");
            assert_eq!(owner(&dated), owner(&plain));
        }
        assert_eq!(restored, expected);
        let Some(view_says) = view.endpoint_at(ip) else { panic!("the endpoint is there") };
        assert_eq!(view_says.1.record.name.as_str(), "web");
    }
}

#[test]
fn restorer_writes_more_after_each_success_and_one_piece_after_a_failure() {
    let mut known = bench();
    for index in 0..300 {
        let name = format!("n{index}");
        set(&mut known, &format!("nodes/{name}"), record(&name, 1).encode());
    }
    let mut found = bench();
    let mut view = beside(&known, &mut found);
    assert_eq!(restore(&mut view, &mut found.clone()), [1, 4, 16, 64, 100, 100, 15]);

    let mut view = beside(&known, &mut bench());
    let mut restorer = Restorer::default();
    let pieces = |restorer: &Restorer, view: &mut FleetView| match restorer.plan(view, 0).0 {
        Some(KvRequest::Txn(txn)) => txn.then.len(),
        other => panic!("{other:?}"),
    };
    restorer.answered(true);
    restorer.answered(true);
    assert_eq!(pieces(&restorer, &mut view), 16);
    restorer.answered(false);
    assert_eq!(pieces(&restorer, &mut view), 1);
}

/// References have two conditions and one operation each.
#[test]
fn restorer_keeps_to_the_most_conditions_of_a_request() {
    let mut found = bench();
    for id in 300..360 {
        identity(&mut found, id, &format!("a{id}"), "live");
    }
    // All records are as they are remembered, but for the references.
    let mut view = found.view();
    for id in 300..360 {
        reference(&mut found, id, "a");
    }
    catch_up(&mut view, &found);
    for id in 300..360 {
        delete(&mut found, &format!("identities/refs/{id}/a"));
    }
    let older = Continuity::Older(String::new());
    view.follow(page(&found), &older, &node("me"));
    let mut restorer = Restorer::default();
    (0..4).for_each(|_| restorer.answered(true));
    let Some(KvRequest::Txn(txn)) = restorer.plan(&mut view, 0).0 else { panic!("there is something to do") };
    assert_eq!((txn.conditions.len(), txn.then.len()), (100, 50));
}

#[test]
fn number_of_a_copy_gives_way_unless_somebody_uses_it() {
    let mut known = bench();
    identity(&mut known, 300, "old", "live");
    delete(&mut known, "identities/id/300");
    delete(&mut known, &format!("identities/labels/{}", labels("old").digest()));
    identity(&mut known, 301, "web", "live");
    let numbers = |bench: &Bench| {
        let view = bench.view();
        let by_labels =
            view.identity_labels().get(&labels("web").digest()).map(|entry| entry.record.id.get());
        (by_labels, view.identities().keys().map(|id| id.get()).collect::<Vec<_>>())
    };
    let copy = |before: &dyn Fn(&mut Bench), after: &dyn Fn(&mut Bench)| {
        let mut found = bench();
        identity(&mut found, 299, "web", "live");
        before(&mut found);
        let mut view = beside(&known, &mut found);
        after(&mut found);
        catch_up(&mut view, &found);
        restore(&mut view, &mut found);
        assert_eq!(view.remembered(), 0);
        numbers(&found)
    };
    assert_eq!(
        copy(&|_| {}, &|_| {}),
        (Some(301), vec![301]),
        "the copy's number is deleted in the same piece"
    );
    let refer = |found: &mut Bench| reference(found, 299, "b");
    assert_eq!(copy(&refer, &|_| {}), (Some(301), vec![301]), "given back since the copy");
    assert_eq!(copy(&|_| {}, &refer), (Some(299), vec![299]), "somebody uses it");
    assert_eq!(
        copy(&|found| delete(found, "identities/id/299"), &|_| {}),
        (Some(301), vec![301]),
        "its record is lost already"
    );
    // The number of the view means something else in the copy: the later one has lost it.
    let other = |found: &mut Bench| {
        delete(found, "identities/id/299");
        delete(found, &format!("identities/labels/{}", labels("web").digest()));
        // One revision of one store has one value.
        text(found, "keyring", "x");
        delete(found, "keyring");
        identity(found, 301, "db", "live");
    };
    assert_eq!(copy(&other, &|_| {}), (None, vec![301]));
    // The copy's number is written again by somebody, with its labels or with others.
    let again = |app: &str| format!(r#"{{"v":1,"labels":{{"app":"{app}"}},"state":"live"}}"#);
    let same = |found: &mut Bench| text(found, "identities/id/299", &again("web"));
    assert_eq!(copy(&|_| {}, &same), (Some(301), vec![301]));

    // The copy's number belongs to other labels since. Those lose it, and only then is the other number written.
    identity(&mut known, 299, "db", "live");
    let mut found = bench();
    identity(&mut found, 299, "web", "live");
    let mut view = beside(&known, &mut found);
    restore(&mut view, &mut found);
    assert_eq!(numbers(&found), (Some(301), vec![301]));
    assert!(!found.view().identity_labels().contains_key(&labels("db").digest()));
}

#[test]
fn contradicting_records_are_not_written_again() {
    let mut known = bench();
    text(&mut known, "identities/id/300", r#"{"v":1,"labels":{"app":"db"},"state":"live"}"#);
    let digest = labels("web").digest();
    let by_labels = r#"{"v":1,"id":300,"labels":{"app":"web"}}"#;
    text(&mut known, &format!("identities/labels/{digest}"), by_labels);
    let mut found = bench();
    let mut view = beside(&known, &mut found);
    assert!(restore(&mut view, &mut found).is_empty());
    assert_eq!((view.remembered(), content(&found).len()), (0, 0));
}

#[test]
fn service_whose_address_is_taken_is_given_up() {
    let mut known = bench();
    service(&mut known, "shop", "10.201.0.1");
    service(&mut known, "mart", "10.201.0.2");
    let mut found = bench();
    let mut view = beside(&known, &mut found);
    service(&mut found, "stall", "10.201.0.1");
    catch_up(&mut view, &found);
    let mut restorer = Restorer::default();
    let (_, changes) = restorer.plan(&mut view, 0);
    restorer.answered(true);
    assert_eq!(changes.len(), 1, "{changes:?}");
    restore(&mut view, &mut found);
    let names: Vec<String> = found.view().services().keys().map(ToString::to_string).collect();
    assert_eq!(names, ["mart", "stall"]);
    assert_eq!(found.view().service_claims().len(), 2);
}

/// Records of a copy that the fleet had deleted since go, each when nothing depends on it any more.
#[test]
fn resurrected_records_are_deleted_in_order() {
    let mut known = bench();
    let mut found = bench();
    set(&mut found, "nodes/gone", record("gone", 1).encode());
    claim(&mut found, "10.0.1.0-24", "gone");
    identity(&mut found, 300, "web", "live");
    reference(&mut found, 300, "gone");
    set(&mut found, "endpoints/gone/10.0.1.2", endpoint("web").encode());
    service(&mut found, "shop", "10.201.0.1");
    text(&mut found, "vips/10.201.0.7", r#"{"v":1,"service":"lost"}"#);
    text(&mut found, "policies/guard", "x");
    // The number means something else by now, so it does not stay for the collector.
    identity(&mut known, 301, "web", "live");
    let mut view = beside(&known, &mut found);
    restore(&mut view, &mut found);
    assert_eq!(view.remembered(), 0);
    assert_eq!(content(&found), content(&known));
}

#[test]
fn resurrected_node_that_is_alive_is_spared() {
    let mut found = bench();
    set(&mut found, "nodes/back", record("back", 1).encode());
    let mut view = beside(&bench(), &mut found);
    text(&mut found, "alive/back", r#"{"v":1,"incarnation":1,"machine_id":"back"}"#);
    catch_up(&mut view, &found);
    let (request, _) = Restorer::default().plan(&mut view, 0);
    assert!(
        !found.succeeded(&request.expect("it is still to be deleted")),
        "the liveness key is a condition"
    );
    assert!(found.view().nodes().contains_key(&node("back")));
}
