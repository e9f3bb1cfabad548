//! The tables of a store's generations, cell by cell.

use identity::NodeName;
use kvstore_schema::{
    KeyValue, ListPage, Revision, StoreIdentity,
    record::{ClaimEpoch, Life},
};

use super::{ENDPOINT, REF, kv, list, view};
use crate::view::{
    FleetView,
    store_generation::{Age, Case, Compared, Continuity},
};

/// A fleet's record in this generation.
fn fleet(number: u64, founded_on: i64, restoring: bool) -> KeyValue {
    let life = format!(r#"{{"number":{number},"founded_on":{founded_on},"restoring":{restoring}}}"#);
    let pools = r#""pools":["10.0.0.0/16"],"block_prefix_v4":24,"block_prefix_v6":64,"tunnel_port":8472"#;
    kv("fleet", &format!(r#"{{"v":1,"fleet_id":"f",{pools},"life":{life}}}"#), 4)
}

fn mark(mark: &str, revision: i64) -> KeyValue {
    kv("mark", &format!(r#"{{"v":1,"mark":"{mark}","before":[]}}"#), revision)
}

pub(super) fn claim(node: &str, state: &str) -> String {
    format!(r#"{{"v":1,"node":"{node}","state":"{state}","token":"t"}}"#)
}

/// A number's record and its label set's, `app=<app>`.
pub(super) fn number(number: u32, app: &str, revision: i64) -> [KeyValue; 2] {
    let labels: identity::Labels = format!("app={app}").parse().unwrap();
    let id = format!(r#"{{"v":1,"labels":{{"app":"{app}"}},"state":"live"}}"#);
    let by_labels = format!(r#"{{"v":1,"id":{number},"labels":{{"app":"{app}"}}}}"#);
    [
        kv(&format!("identities/id/{number}"), &id, revision),
        kv(&format!("identities/labels/{}", labels.digest()), &by_labels, revision),
    ]
}

pub(super) fn service(address: &str) -> String {
    format!(
        r#"{{"v":1,"spec":{{"virtualIp":"auto","ports":[{{"port":80}}],"selector":{{}}}},"virtual_ip":"{address}"}}"#
    )
}

pub(super) fn me() -> NodeName {
    "me".parse().unwrap()
}

/// A view of generation 1 at revision 10, with the mark `m` of revision 5.
fn known(listed: bool) -> FleetView {
    let mut view = view();
    let entries = vec![fleet(1, 3, false), mark("m", 5)];
    if listed {
        view.apply_list(list(entries, 10));
    } else {
        let life = Life { number: 1, founded_on: Revision(3), restoring: false };
        view.remember(StoreIdentity(1), life, Revision(10), entries.into_iter());
    }
    view
}

#[test]
fn age_decides_cell_by_cell_which_records_are_older() {
    let check = |age: Age, written: i64, had: Option<i64>, expected: bool| {
        assert_eq!(age.is_older(Revision(written), had.map(Revision)), expected, "{age:?} {written} {had:?}");
    };
    let passed = |common: Option<i64>| Age::Passed { recognised: Revision(10), common: common.map(Revision) };
    check(Age::Unknown, 1, None, false);
    check(Age::Unknown, 1, Some(2), false);
    check(Age::UpTo(Revision(10)), 9, None, true);
    check(Age::UpTo(Revision(10)), 10, Some(3), true);
    check(Age::UpTo(Revision(10)), 11, Some(12), false);
    check(passed(None), 5, None, false);
    check(passed(None), 5, Some(5), false);
    check(passed(None), 5, Some(6), true);
    check(passed(None), 10, Some(11), true);
    check(passed(None), 11, Some(12), false);
    check(passed(Some(4)), 4, None, true);
    check(passed(Some(4)), 4, Some(3), true);
    check(passed(Some(4)), 5, None, false);
    check(passed(Some(4)), 5, Some(6), true);
    check(passed(Some(20)), 11, Some(12), false);

    let copies = [true, false].map(|behind| Age::of_copy(Revision(10), behind, Some(Revision(4))));
    assert_eq!(copies, [Age::UpTo(Revision(10)), passed(Some(4))]);
    let shared = [Age::Unknown, copies[0], copies[1]].map(Age::shares_revisions);
    assert_eq!(shared, [false, true, false]);
}

#[test]
fn case_decides_cell_by_cell_what_becomes_of_a_record() {
    let written = Revision(7);
    for shared_revisions in [true, false] {
        for deleted in [true, false] {
            let check = |listed_counts, had: Option<i64>, expected| {
                let had = had.map(Revision);
                let record = Compared { listed_counts, written, had, shared_revisions, deleted };
                assert_eq!(Case::of(record), expected, "{record:?}");
            };
            check(true, None, Case::Take);
            check(true, Some(0), Case::Take);
            check(true, Some(6), Case::Take);
            check(true, Some(7), if shared_revisions { Case::Keep } else { Case::Take });
            check(true, Some(8), Case::Take);
            check(false, None, if deleted { Case::Resurrected } else { Case::Take });
            check(false, Some(0), Case::Take);
            check(false, Some(6), Case::Remember);
            check(false, Some(7), Case::Keep);
            check(false, Some(8), Case::Remember);
        }
    }
}

#[test]
fn age_of_a_list_depends_on_what_it_was_judged_to_be() {
    let older = Continuity::Older(String::new());
    let check =
        |view: &FleetView, continuity: &Continuity, life: (u64, i64, bool), revision: i64, expected| {
            let page = list(vec![mark("m", 5)], revision);
            let (number, founded_on, restoring) = life;
            let listed = Life { number, founded_on: Revision(founded_on), restoring };
            let age = view.age_of(&page, continuity, Some(listed));
            assert_eq!(age, expected, "{continuity:?} {listed:?} {revision}");
        };
    let passed = |at: i64| Some(Age::Passed { recognised: Revision(at), common: Some(Revision(5)) });
    let up_to = |at: i64| Some(Age::UpTo(Revision(at)));
    let (listed, snapshot) = (known(true), known(false));

    check(&listed, &Continuity::Same, (1, 3, false), 12, None);
    check(&listed, &Continuity::Same, (1, 3, true), 12, None);
    check(&snapshot, &Continuity::Same, (1, 3, false), 12, None);
    check(&snapshot, &Continuity::Same, (1, 3, true), 12, Some(Age::Unknown));
    check(&view(), &Continuity::Same, (1, 3, true), 12, None);

    check(&listed, &Continuity::FoundedAnew, (2, 9, false), 12, None);
    check(&listed, &Continuity::FoundedAnew, (2, 9, true), 12, up_to(9));
    check(&listed, &Continuity::FoundedAnew, (2, 10, true), 12, passed(10));
    check(&listed, &Continuity::FoundedAnew, (2, 11, true), 12, passed(11));
    check(&listed, &Continuity::FoundedAnew, (3, 9, true), 12, Some(Age::Unknown));

    check(&listed, &Continuity::Emptied, (0, 0, false), 9, up_to(9));
    check(&listed, &Continuity::Emptied, (0, 0, false), 10, passed(10));

    check(&listed, &older, (1, 3, false), 9, up_to(9));
    check(&listed, &older, (1, 3, false), 10, passed(10));
    check(&listed, &older, (0, 0, false), 12, up_to(12));
    check(&listed, &older, (2, 9, false), 12, passed(12));

    let stranger = list(vec![mark("other", 5)], 12);
    let none = Some(Age::Passed { recognised: Revision(12), common: None });
    assert_eq!(listed.age_of(&stranger, &Continuity::Emptied, None), none, "no common mark");
}

#[test]
fn list_is_judged_cell_by_cell() {
    let view = known(true);
    let judge = |entries: Vec<KeyValue>, revision: i64| match view.judge(&list(entries, revision), Some("f"))
    {
        Ok(Continuity::Older(why)) => why,
        Ok(continuity) => format!("{continuity:?}"),
        Err(other) => other.to_string(),
    };
    let check = |life: (u64, i64), marked: &str, revision: i64, expected: &str| {
        let told = judge(vec![fleet(life.0, life.1, false), mark(marked, 5)], revision);
        assert!(told.contains(expected), "{life:?} {marked} {revision}: {told}");
    };
    check((1, 3), "m", 10, "Same");
    check((2, 3), "m", 10, "FoundedAnew");
    check((2, 3), "m", 9, "FoundedAnew");
    check((0, 3), "m", 10, "founded anew 1 times, and this copy only 0 times");
    check((1, 3), "m", 9, "went back from revision 10 to 9");
    check((1, 4), "m", 10, "by a member that did not know of the last time");
    check((1, 3), "other", 10, "does not know the mark");
    assert_eq!(judge(vec![], 10), "Emptied");
    let unreadable = || vec![kv("fleet", "{}", 4)];
    assert_eq!(judge(unreadable(), 10), "Same");
    assert!(judge(unreadable(), 9).contains("another fleet"), "a store that is new to this node");
    let page = list(vec![fleet(1, 3, false)], 10);
    assert_eq!(view.judge(&page, Some("g")).unwrap_err().found, "f");
    assert_eq!(view.judge(&list(vec![], 1), None), Ok(Continuity::Same), "no member of a fleet yet");
}

#[test]
fn epoch_of_a_claim_tells_what_was_found_from_what_was_written() {
    let check = |founded: (u64, i64), since: Option<ClaimEpoch>, created: i64, expected: (u64, i64)| {
        let mut view = view();
        view.apply_list(list(vec![fleet(founded.0, founded.1, false)], 20));
        let expected = ClaimEpoch { life: expected.0, revision: Revision(expected.1) };
        assert_eq!(view.epoch_at(since, Revision(created)), expected, "{founded:?} {since:?} {created}");
    };
    check((0, 0), None, 5, (0, 5));
    check((0, 9), None, 5, (0, 5));
    check((2, 10), None, 9, (1, 9));
    check((2, 10), None, 10, (1, 10));
    check((2, 10), None, 11, (2, 11));
    check((2, 10), Some(ClaimEpoch { life: 0, revision: Revision(3) }), 11, (0, 3));
}

/// Records of every kind: this node's, another's, and the fleet's.
fn everything() -> Vec<KeyValue> {
    let mut all = vec![
        fleet(1, 3, false),
        mark("m", 5),
        kv("nodes/me", NODE, 4),
        kv("nodes/other", NODE, 4),
        kv("alive/other", r#"{"v":1,"incarnation":1,"machine_id":"x"}"#, 4),
        kv("cidrs/10.0.0.0-24", &claim("me", "live"), 4),
        kv("cidrs/10.0.1.0-24", &claim("other", "live"), 4),
        kv("cidrs/10.0.2.0-24", &claim("me", "quarantined"), 4),
        kv("identities/refs/256/me", REF, 4),
        kv("identities/refs/256/other", REF, 4),
        kv("endpoints/me/10.0.0.2", ENDPOINT, 4),
        kv("endpoints/other/10.0.1.2", ENDPOINT, 4),
        kv("services/web", &service("10.201.0.1"), 4),
        kv("vips/10.201.0.1", r#"{"v":1,"service":"web"}"#, 4),
        kv("policies/guard", "x", 4),
        kv("keyring", "x", 4),
    ];
    all.extend(number(256, "web", 4));
    all
}

const NODE: &str = r#"{"v":1,"underlay":["192.0.2.1"],"cidrs":[],"gateway":null,"gossip_port":7946,"boot_id":"b","machine_id":"m","incarnation":1,"agent_version":"t"}"#;

fn all_known() -> FleetView {
    let mut view = view();
    view.apply_list(list(everything(), 10));
    assert_eq!(view.rejected().len(), 0, "{:?}", view.rejected());
    view
}

/// The paths of what is remembered.
pub(super) fn remembered(view: &FleetView) -> Vec<&str> {
    view.remembered.keys().map(|key| key.as_str().trim_start_matches("/warren/v1/t/")).collect()
}

#[test]
fn emptied_store_leaves_what_others_own_remembered() {
    let mut view = all_known();
    let others = view.clone();
    let empty = ListPage { store: StoreIdentity(2), ..list(vec![], 2) };
    let changes = view.follow(empty, &Continuity::Emptied, &me());
    let labels = identity::Labels::parse(["app=web"]).unwrap().digest();
    let labels = format!("identities/labels/{labels}");
    let expected = [
        "cidrs/10.0.1.0-24",
        "cidrs/10.0.2.0-24",
        "endpoints/other/10.0.1.2",
        "identities/id/256",
        labels.as_str(),
        "identities/refs/256/other",
        "keyring",
        "nodes/other",
        "policies/guard",
        "services/web",
        "vips/10.201.0.1",
    ];
    assert_eq!(remembered(&view), expected);
    assert_eq!(view.remembered(), expected.len());
    assert_eq!(
        changes.len(),
        everything().len() - expected.len() - 1,
        "the fleet's record alone stays as it is"
    );
    assert!(view.fleet().is_some() && view.life().restoring && !view.is_complete());
    assert_eq!(view.services(), others.services());
}

#[test]
fn unreadable_record_is_not_remembered() {
    let mut view = view();
    view.apply_list(list(vec![fleet(1, 3, false), kv("services/web", "{}", 4)], 10));
    view.follow(list(vec![], 2), &Continuity::Emptied, &me());
    assert_eq!((view.remembered(), view.rejected().len()), (0, 0));
}

/// An older copy of the same generation: changed records are remembered, deleted ones are resurrected.
#[test]
fn older_copy_gives_way_to_what_the_fleet_knows() {
    let mut view = view();
    let with = |more: Vec<KeyValue>| [vec![fleet(1, 3, false), mark("m", 5)], more].concat();
    view.apply_list(list(with(vec![kv("cidrs/10.0.1.0-24", &claim("other", "live"), 8)]), 10));
    let copy = || {
        with(vec![
            kv("cidrs/10.0.1.0-24", &claim("third", "live"), 6),
            kv("cidrs/10.0.2.0-24", &claim("third", "live"), 6),
            kv("cidrs/10.0.3.0-24", &claim("third", "live"), 9),
        ])
    };
    let mut same = view.clone();
    same.follow(list(copy(), 9), &Continuity::Older(String::new()), &me());
    let owner = |view: &FleetView, cidr: &str| {
        view.cidrs().get(&cidr.parse().unwrap()).map(|claim| claim.record.node.to_string())
    };
    assert_eq!(owner(&same, "10.0.1.0/24").as_deref(), Some("other"), "the later claim");
    assert_eq!(owner(&same, "10.0.2.0/24"), None, "deleted since");
    assert_eq!((remembered(&same).len(), same.resurrected.len()), (1, 2));
    assert!(same.life().restoring);
    assert_eq!(same.remembered(), 3);
    // The same list again brings nothing. What the copy loses is forgotten, but for what is remembered.
    let mut later = same.clone();
    assert_eq!(later.apply_list(list(copy(), 9)), []);
    assert_eq!((remembered(&later).len(), later.resurrected.len()), (1, 2));
    let shorter = with(vec![kv("cidrs/10.0.3.0-24", &claim("third", "live"), 9)]);
    later.apply_list(list(shorter[1..].to_vec(), 12));
    assert_eq!((remembered(&later).len(), later.resurrected.len()), (1, 1));
    assert_eq!(owner(&later, "10.0.1.0/24").as_deref(), Some("other"));
    assert!(later.fleet().is_none());

    // Of a former generation: its lack of a record is no deletion.
    let mut former = copy();
    former[0] = fleet(0, 0, false);
    view.follow(list(former, 9), &Continuity::Older(String::new()), &me());
    assert_eq!(owner(&view, "10.0.2.0/24").as_deref(), Some("third"));
    assert_eq!(view.resurrected.len(), 0);
}

/// This node's own record is taken as the list has it, also an older one; where revisions name one value, a record at a known
/// revision is not told again.
#[test]
fn own_record_of_an_older_copy_is_taken_as_listed() {
    let mut view = view();
    view.apply_list(list(vec![fleet(1, 3, false), kv("nodes/me", NODE, 8), kv("nodes/other", NODE, 8)], 10));
    let moved = NODE.replace("\"b\"", "\"another boot\"");
    let follow = |revision: i64, store: u64| {
        let mut view = view.clone();
        let entries =
            vec![fleet(1, 3, false), kv("nodes/me", &moved, revision), kv("nodes/other", &moved, revision)];
        let page = ListPage { store: StoreIdentity(store), ..list(entries, 9) };
        view.follow(page, &Continuity::Older(String::new()), &me());
        let boot = |node: &str| view.nodes()[&node.parse().unwrap()].record.boot_id == "another boot";
        (boot("me"), boot("other"), view.remembered())
    };
    assert_eq!(follow(6, 1), (true, false, 1));
    assert_eq!(follow(6, 2), (true, false, 1));
    assert_eq!(follow(8, 1), (false, false, 0), "the same revision of the same store");
    assert_eq!(follow(8, 2), (true, false, 0), "the same revision of another store");
}

/// Newer records of a list that is older as a whole: written after the copy was recognised.
#[test]
fn newer_record_of_a_founded_store_is_taken() {
    let mut view = view();
    view.apply_list(list(vec![fleet(1, 3, false), kv("nodes/other", NODE, 8)], 20));
    let moved = NODE.replace("\"b\"", "\"another boot\"");
    let entries = vec![fleet(2, 9, true), kv("nodes/other", &moved, 10), kv("nodes/new", NODE, 10)];
    view.follow(list(entries, 12), &Continuity::FoundedAnew, &me());
    assert_eq!(view.nodes()[&"other".parse().unwrap()].record.boot_id, "another boot");
    assert_eq!((view.nodes().len(), view.remembered()), (2, 0));
}

#[test]
fn claim_keeps_its_age_through_generations() {
    let mut view = view();
    let block = "10.0.1.0/24".parse().unwrap();
    view.apply_list(list(vec![fleet(1, 3, false), kv("cidrs/10.0.1.0-24", &claim("other", "live"), 8)], 20));
    let age = view.epoch_of(&view.cidrs()[&block]);
    assert_eq!(age, ClaimEpoch { life: 1, revision: Revision(8) });
    let founded = KeyValue { mod_revision: Revision(31), ..fleet(4, 30, true) };
    view.follow(list(vec![founded], 31), &Continuity::FoundedAnew, &me());
    assert_eq!((view.life().number, view.remembered()), (4, 1));
    assert_eq!(view.epoch_of(&view.cidrs()[&block]), age);
}

#[test]
fn founded_store_is_restoring_for_as_long_as_its_record_says() {
    let mut view = known(true);
    let fleet = |restoring| KeyValue { mod_revision: Revision(11), ..fleet(2, 9, restoring) };
    let mut founded = view.clone();
    founded.follow(list(vec![fleet(true)], 11), &Continuity::FoundedAnew, &me());
    assert_eq!(founded.life(), Life { number: 2, founded_on: Revision(9), restoring: true });
    view.follow(list(vec![fleet(false)], 11), &Continuity::FoundedAnew, &me());
    assert!(!view.life().restoring && view.is_complete());
}

#[test]
fn list_has_the_last_word_on_what_is_this_nodes_own() {
    let view = all_known();
    let check = |path: &str, value: &str, for_list: bool, own: bool| {
        let kv = kv(path, value, 1);
        let key = view.schema().parse(&kv.key).unwrap();
        assert_eq!(view.is_for_list(&key, &kv, &me()), for_list, "{path}");
        assert_eq!(view.is_own(&key, &me()), own, "{path}");
    };
    let (mine, others) = (claim("me", "live"), claim("other", "live"));
    check("fleet", "", true, false);
    check("alive/other", "", true, true);
    check("mark", "", true, true);
    check("nodes/me", "", true, true);
    check("nodes/other", "", false, false);
    check("endpoints/me/10.0.0.2", "", true, true);
    check("endpoints/other/10.0.1.2", "", false, false);
    check("cidrs/10.0.0.0-24", &others, true, true);
    check("cidrs/10.0.1.0-24", &mine, false, false);
    check("cidrs/10.0.2.0-24", &mine, false, false);
    check("cidrs/10.0.9.0-24", &mine, true, false);
    check("cidrs/10.0.9.0-24", &others, false, false);
    check("identities/refs/256/me", "", true, true);
    check("identities/refs/256/other", "", false, false);
    check("identities/refs/257/me", "", false, true);
    check("services/web", "", false, false);
}

#[test]
fn deleted_records_are_told_from_those_that_were_never_seen() {
    let listed = all_known();
    let mut snapshot = view();
    let entries = everything().into_iter();
    snapshot.remember(StoreIdentity(1), Life::default(), Revision(10), entries);
    let check = |view: &FleetView, path: &str, value: &str, deletions: bool, expected: bool| {
        let kv = kv(path, value, 1);
        let key = view.schema().parse(&kv.key).unwrap();
        assert_eq!(view.was_deleted(&key, &kv, deletions), expected, "{path} {value} {deletions}");
    };
    let text = |kv: &KeyValue| {
        let path = kv.key.as_str().trim_start_matches("/warren/v1/t/").to_owned();
        (path, String::from_utf8(kv.value.to_vec()).unwrap())
    };
    for deletions in [true, false] {
        // The number is another label set's by now; the label set has another number by now; neither.
        for (record, expected) in [
            (&number(256, "db", 1)[1], true),
            (&number(257, "web", 1)[0], true),
            (&number(256, "web", 1)[1], false),
            (&number(256, "web", 1)[0], false),
            (&number(257, "db", 1)[1], false),
            (&number(257, "db", 1)[0], false),
        ] {
            let (path, value) = text(record);
            check(&listed, &path, &value, deletions, expected);
        }
        check(&listed, "vips/10.201.0.1", r#"{"v":1,"service":"web"}"#, deletions, false);
        check(&listed, "vips/10.201.0.2", r#"{"v":1,"service":"web"}"#, deletions, true);
        check(&listed, "vips/10.201.0.2", r#"{"v":1,"service":"lost"}"#, deletions, deletions);
        check(&listed, "nodes/lost", NODE, deletions, deletions);
        check(&snapshot, "nodes/lost", NODE, deletions, deletions);
        for path in ["policies/lost", "keyring", "identities/refs/257/other"] {
            check(&listed, path, REF, deletions, deletions);
            check(&snapshot, path, REF, deletions, false);
        }
    }
    let mut with_number = snapshot.clone();
    let [id, _] = number(257, "db", 1);
    with_number.resurrected.insert(id.key.clone(), id);
    check(&with_number, "identities/refs/257/other", REF, false, true);
    check(&with_number, "identities/refs/258/other", REF, false, false);
}
