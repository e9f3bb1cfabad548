//! The facts survive their codec; invalid parts are rejected alone, and missing parts are waited for.

use std::{collections::BTreeMap, net::IpAddr};

use identity::{EndpointName, Identity, Labels, NodeName};
use node_facts::{
    CidrFact, Decoded, FACTS_KEY, FactsError, MAX_PENDING_CHUNKS, MAX_REASON_BYTES, MAX_UNWELL,
    MAX_VALUE_BYTES, MAX_WHY_BYTES, NodeFacts, NodeHealth, PendingEndpoint, PendingOp, UNWELL_KEY, Unwell,
    decode, encode, pending_key,
};
use proptest::prelude::*;

type Values = BTreeMap<String, String>;

fn entry(number: u32) -> PendingEndpoint {
    let labels = Labels::parse([format!("app=web-{number}"), "tier=front".to_owned()]).unwrap();
    PendingEndpoint {
        ip: IpAddr::from((0x0a00_0000_u32 + number).to_be_bytes()),
        identity: Identity::new(256 + number).unwrap(),
        labels_digest: labels.digest(),
        labels,
        name: EndpointName::new(&format!("ep-{number}")).unwrap(),
        terminating: false,
        op: if number.is_multiple_of(3) { PendingOp::Removed } else { PendingOp::Added },
        sequence: u64::from(number),
        recorded: number.is_multiple_of(5).then_some(i64::from(number)),
    }
}

fn facts(pending: u32) -> NodeFacts {
    NodeFacts {
        fleet_id: "5f".repeat(16),
        node: NodeName::new("node-1").unwrap(),
        incarnation: 1_700_000_000_000,
        underlay: vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
        moves: 0,
        gateway: Some("10.0.0.1".parse().unwrap()),
        cidrs: vec![CidrFact { cidr: "10.0.0.0/16".parse().unwrap(), life: 0, epoch: 7 }],
        applied_generation: 42,
        recorded_life: 0,
        cut_off: false,
        recorded_revision: 0,
        health: NodeHealth::Ok,
        pending: (0..pending).map(entry).collect(),
        unwell: vec![],
    }
}

fn unwell(service: &str, last: u8, why: &str) -> Unwell {
    let address = [10, 0, 0, last].into();
    Unwell { service: service.parse().unwrap(), address, port: 8080, why: why.to_owned() }
}

fn values(facts: &NodeFacts) -> Values {
    encode(facts).expect("valid facts").into_iter().collect()
}

fn read(values: &Values) -> Result<Decoded, FactsError> {
    decode(|key| values.get(key).map(String::as_str))
}

/// Replaces a text in one value; fails if it is absent, so that no test edits nothing.
fn edit(values: &mut Values, key: &str, from: &str, to: &str) {
    let value = values.get_mut(key).expect("key is there");
    assert!(value.contains(from), "{from} not in {value}");
    *value = value.replacen(from, to, 1);
}

#[test]
fn facts_survive_the_codec() {
    for pending in [0, 1, 1_000] {
        let facts = facts(pending);
        assert_eq!(read(&values(&facts)), Ok(Decoded { facts, rejected: vec![] }));
    }
}

#[test]
fn facts_value_is_written_last_and_values_are_ascii_keyed_and_short() {
    let written = encode(&facts(1_000)).unwrap();
    assert!(written.len() > 3, "a thousand entries take several chunks");
    assert_eq!(written.last().unwrap().0, FACTS_KEY);
    for (key, value) in &written {
        assert!(key.is_ascii(), "{key}");
        assert!(value.len() < MAX_VALUE_BYTES, "{key}: {}", value.len());
    }
}

#[test]
fn facts_that_are_equal_have_equal_values() {
    assert_eq!(values(&facts(3)), values(&facts(3)));
    let (before, after) = (values(&facts(3)), values(&NodeFacts { applied_generation: 43, ..facts(3) }));
    assert_eq!(before[&pending_key(0)], after[&pending_key(0)]);
    assert_ne!(before[FACTS_KEY], after[FACTS_KEY]);
}

#[test]
fn facts_entry_that_is_invalid_is_rejected_alone() {
    let mut values = values(&facts(3));
    edit(&mut values, "pending/0", "10.0.0.1\"", "192.168.0.1\"");
    let decoded = read(&values).unwrap();
    assert_eq!(decoded.facts.pending, vec![entry(0), entry(2)]);
    let [rejected] = &decoded.rejected[..] else { panic!("one entry: {:?}", decoded.rejected) };
    assert_eq!(rejected.key, "pending/0");
    assert_eq!(rejected.reason, "192.168.0.1 is outside the CIDRs of node-1");
}

#[test]
fn facts_chunk_that_is_invalid_is_rejected_alone() {
    let whole = facts(1_000);
    let mut values = values(&whole);
    values.insert(pending_key(1), "{".to_owned());
    let decoded = read(&values).unwrap();
    assert_eq!(decoded.rejected.len(), 1);
    assert_eq!(decoded.facts.cidrs, whole.cidrs);
    assert!(!decoded.facts.pending.is_empty() && decoded.facts.pending.len() < 1_000);
}

#[test]
fn facts_of_two_publications_are_incomplete_not_a_departure() {
    let mut torn = values(&facts(3));
    torn.insert(pending_key(0), values(&facts(2))[&pending_key(0)].clone());
    assert_eq!(read(&torn), Err(FactsError::Incomplete(pending_key(0))));
    torn.remove(&pending_key(0));
    assert_eq!(read(&torn), Err(FactsError::Incomplete(pending_key(0))));
    torn.remove(FACTS_KEY);
    assert_eq!(read(&torn), Err(FactsError::Absent));
}

#[test]
fn facts_ignore_chunks_beyond_the_count() {
    let mut values = values(&facts(0));
    values.insert(pending_key(0), "left from before".to_owned());
    assert_eq!(read(&values), Ok(Decoded { facts: facts(0), rejected: vec![] }));
}

#[test]
fn unhealthy_backends_belong_to_one_publication() {
    let sick = NodeFacts {
        unwell: vec![unwell("db", 1, "status 503"), unwell("web", 1, "refused"), unwell("web", 2, "refused")],
        ..facts(0)
    };
    let written = values(&sick);
    assert_eq!(read(&written), Ok(Decoded { facts: sick.clone(), rejected: vec![] }));
    assert!(!values(&facts(0)).contains_key(UNWELL_KEY), "all are well: nothing to tell");

    let mut torn = written.clone();
    torn.insert(UNWELL_KEY.to_owned(), {
        let one = NodeFacts { unwell: sick.unwell[..1].to_vec(), ..facts(0) };
        values(&one)[UNWELL_KEY].clone()
    });
    assert_eq!(read(&torn), Err(FactsError::Incomplete(UNWELL_KEY.to_owned())));
    torn.remove(UNWELL_KEY);
    assert_eq!(read(&torn), Err(FactsError::Incomplete(UNWELL_KEY.to_owned())));

    let mut bad = written;
    edit(&mut bad, UNWELL_KEY, "\"10.0.0.1\"", "\"10.0.0.256\"");
    let decoded = read(&bad).unwrap();
    assert_eq!((decoded.facts.unwell, decoded.rejected.len()), (vec![], 1));
}

#[test]
fn unhealthy_backends_at_the_limit_fit_one_value() {
    let name = |n: usize| format!("{n:0>63}").parse().unwrap();
    let address = "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff".parse().unwrap();
    let entry = |n| Unwell { service: name(n), address, port: 65_535, why: "x".repeat(MAX_WHY_BYTES) };
    let facts = |count| NodeFacts { unwell: (0..count).map(entry).collect(), ..facts(0) };
    assert!(values(&facts(MAX_UNWELL))[UNWELL_KEY].len() <= MAX_VALUE_BYTES);
    let error = encode(&facts(MAX_UNWELL + 1)).unwrap_err().to_string();
    assert!(error.contains("321 backends that are not well, at most 320 are told"), "{error}");
}

#[test]
fn unhealthy_reason_is_truncated_to_fit() {
    for (given, fits) in [
        ("connection refused", "connection refused"),
        ("a \"b\" \\ \n", "a ?b? ? ?"),
        (&"é".repeat(20)[..], &"é".repeat(16)[..]),
    ] {
        assert_eq!(Unwell::reason(given), fits);
        let facts = NodeFacts { unwell: vec![unwell("web", 1, given)], ..facts(0) };
        assert_eq!(encode(&facts).is_ok(), given == fits, "{given:?}");
    }
}

#[test]
fn facts_of_another_version_are_rejected() {
    let mut values = values(&facts(0));
    edit(&mut values, FACTS_KEY, "\"v\":1", "\"v\":2");
    assert_eq!(read(&values), Err(FactsError::Version(2)));
}

#[test]
fn facts_of_hostile_sizes_are_rejected_on_both_sides() {
    assert!(matches!(encode(&facts(60_000)), Err(FactsError::TooManyPending(n)) if n > MAX_PENDING_CHUNKS));

    let mut long = values(&facts(0));
    long.insert(FACTS_KEY.to_owned(), " ".repeat(MAX_VALUE_BYTES + 1));
    assert!(matches!(read(&long), Err(FactsError::TooLong { .. })));

    let mut many = values(&facts(0));
    edit(&mut many, FACTS_KEY, "\"pending_chunks\":0", "\"pending_chunks\":99999999");
    assert_eq!(read(&many), Err(FactsError::TooManyPending(99_999_999)));
}

#[test]
fn facts_rules_hold_on_both_sides() {
    let check = |change: &dyn Fn(&mut NodeFacts), complaint: &str| {
        let mut broken = facts(0);
        change(&mut broken);
        let error = encode(&broken).expect_err(complaint).to_string();
        assert!(error.contains(complaint), "{error}");
    };
    check(&|f| f.underlay = vec!["0.0.0.0".parse().unwrap()], "not the address of one node");
    check(&|f| f.underlay = vec!["192.0.2.1".parse().unwrap(); 17], "17 underlay addresses");
    check(&|f| f.cidrs[0].cidr = "10.0.0.1/16".parse().unwrap(), "host bits");
    check(&|f| f.cidrs[0].cidr = "0.0.0.0/0".parse().unwrap(), "whole address space");
    check(&|f| f.cidrs[0].epoch = 0, "no etcd revision");
    check(&|f| f.health = NodeHealth::Degraded { reason: "x".repeat(300) }, "health reason");
    check(
        &|f| f.pending = vec![PendingEndpoint { identity: Identity::HOST, ..entry(1) }],
        "cannot be an endpoint's",
    );

    let mut received = values(&facts(0));
    edit(&mut received, FACTS_KEY, "10.0.0.0/16", "10.0.0.1/16");
    assert!(matches!(read(&received), Err(FactsError::Invalid(_))));
}

#[test]
fn unhealthy_reason_is_truncated_at_a_character() {
    let NodeHealth::Degraded { reason } = NodeHealth::degraded(&"é".repeat(MAX_REASON_BYTES)) else {
        panic!("degraded")
    };
    assert_eq!(reason.len(), MAX_REASON_BYTES);
}

proptest! {
    /// Whatever a member sends, decoding it ends in a value or an error, never in a panic, and the resulting facts
    /// keep every rule.
    #[test]
    fn facts_decoder_accepts_any_text_safely(cut in 0usize..2_000, junk in ".{0,40}", chunk in ".{0,60}") {
        let mut values = values(&facts(4));
        for (key, insert) in [(FACTS_KEY.to_owned(), &junk), (pending_key(0), &chunk)] {
            let value = values.get_mut(&key).unwrap();
            let at = value.floor_char_boundary(cut.min(value.len()));
            value.insert_str(at, insert);
        }
        if let Ok(decoded) = read(&values) {
            prop_assert!(decoded.facts.validate().is_ok());
            for entry in &decoded.facts.pending {
                prop_assert!(entry.validate(&decoded.facts).is_ok());
            }
        }
    }
}
