//! Golden texts of every record: what `etcdctl get` shows, and what older and newer agents must agree on.

use identity::{Identity, Labels};
use kvstore_schema::{Revision, record::*};

fn check<R: Record + PartialEq + std::fmt::Debug>(record: R, golden: &str) {
    let text = String::from_utf8(record.encode().to_vec()).unwrap();
    assert_eq!(text, golden);
    assert_eq!(R::decode(golden.as_bytes()), Ok(record));
}

fn fleet() -> FleetRecord {
    FleetRecord {
        fleet_id: "f00d".to_owned(),
        pools: vec!["10.0.0.0/16".parse().unwrap(), "fd00::/48".parse().unwrap()],
        service_pools: vec!["10.201.0.0/16".parse().unwrap()],
        block_prefix_v4: 24,
        block_prefix_v6: 64,
        tunnel_port: 8472,
        life: Default::default(),
        unknown: Unknown::new(),
    }
}

fn labels() -> Labels {
    "app=web".parse().unwrap()
}

#[test]
fn record_texts_are_golden() {
    let unknown = Unknown::new();
    check(
        fleet(),
        r#"{"v":1,"fleet_id":"f00d","pools":["10.0.0.0/16","fd00::/48"],"service_pools":["10.201.0.0/16"],"block_prefix_v4":24,"block_prefix_v6":64,"tunnel_port":8472,"life":{"number":0,"founded_on":0,"restoring":false}}"#,
    );
    check(
        NodeRecord {
            underlay: vec!["192.0.2.1".parse().unwrap()],
            moves: 0,
            datapath_mode: Some("tunnel".to_owned()),
            cidrs: vec!["10.0.1.0/24".parse().unwrap()],
            gateway: Some("10.0.1.1".parse().unwrap()),
            gossip_port: 7946,
            labels: labels(),
            boot_id: "b".to_owned(),
            machine_id: "m".to_owned(),
            incarnation: 1_700_000_000_000,
            agent_version: "0.1.0".to_owned(),
            unknown: unknown.clone(),
        },
        r#"{"v":1,"underlay":["192.0.2.1"],"moves":0,"datapath_mode":"tunnel","cidrs":["10.0.1.0/24"],"gateway":"10.0.1.1","gossip_port":7946,"labels":{"app":"web"},"boot_id":"b","machine_id":"m","incarnation":1700000000000,"agent_version":"0.1.0"}"#,
    );
    check(
        AliveRecord { incarnation: 7, machine_id: "m".to_owned(), unknown: unknown.clone() },
        r#"{"v":1,"incarnation":7,"machine_id":"m"}"#,
    );
    check(
        CidrRecord {
            node: "n1".parse().unwrap(),
            state: ClaimState::Quarantined,
            token: "m/7/0".to_owned(),
            since: None,
            unknown: unknown.clone(),
        },
        r#"{"v":1,"node":"n1","state":"quarantined","token":"m/7/0"}"#,
    );
    check(
        IdentityLabelsRecord { id: Identity::FLEET_MIN, labels: labels(), unknown: unknown.clone() },
        r#"{"v":1,"id":256,"labels":{"app":"web"}}"#,
    );
    check(
        IdentityIdRecord { labels: labels(), state: ClaimState::Live, unknown: unknown.clone() },
        r#"{"v":1,"labels":{"app":"web"},"state":"live"}"#,
    );
    check(IdentityRefRecord { incarnation: 7, unknown: unknown.clone() }, r#"{"v":1,"incarnation":7}"#);
    check(
        EndpointRecord {
            name: "web-1".parse().unwrap(),
            identity: Identity::FLEET_MIN,
            labels_digest: Labels::default().digest(),
            labels: labels(),
            terminating: false,
            unknown,
        },
        r#"{"v":1,"name":"web-1","identity":256,"labels_digest":"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","labels":{"app":"web"}}"#,
    );
}

#[test]
fn unknown_fields_survive_a_rewrite() {
    let text = r#"{"v":1,"incarnation":7,"colour":{"deep":["blue",1]}}"#;
    let record = IdentityRefRecord::decode(text.as_bytes()).unwrap();
    assert_eq!(record.unknown.keys().collect::<Vec<_>>(), ["colour"]);
    assert!(!std::str::from_utf8(&record.encode()).unwrap().contains("service_pools"));
}

#[test]
fn record_values_that_are_hostile_are_refused() {
    let check = |text: &[u8], expected: fn(&RecordError) -> bool| {
        let found = FleetRecord::decode(text).unwrap_err();
        assert!(expected(&found), "{:?}: {found:?}", String::from_utf8_lossy(text));
    };
    check(b"", |error| matches!(error, RecordError::Malformed(_)));
    check(b"\xff\xfe", |error| matches!(error, RecordError::Malformed(_)));
    check(b"[1]", |error| matches!(error, RecordError::Malformed(_)));
    check(br#"{"v":1}"#, |error| matches!(error, RecordError::Malformed(_)));
    check(br#"{"v":-1}"#, |error| matches!(error, RecordError::Malformed(_)));
    check(br#"{"v":2,"anything":true}"#, |error| *error == RecordError::Version(2));
    check(&vec![b' '; MAX_RECORD_BYTES + 1], |error| matches!(error, RecordError::TooLong(_)));
    check("[".repeat(100_000).as_bytes(), |error| matches!(error, RecordError::Malformed(_)));
}

/// A counter that cannot be raised any more would wrap, or sort above everything that comes later.
#[test]
fn record_counters_are_bounded() {
    fn check<R: Record + std::fmt::Debug>(record: impl Fn(u64) -> R) {
        assert!(R::decode(&record(MAX_COUNTER).encode()).is_ok());
        for counter in [MAX_COUNTER + 1, u64::MAX] {
            let refused = R::decode(&record(counter).encode());
            assert!(
                matches!(&refused, Err(RecordError::Invalid(text)) if text.contains("is above")),
                "{refused:?}"
            );
        }
    }
    let unknown = Unknown::new;
    check(|number| FleetRecord { life: Life { number, ..Life::default() }, ..fleet() });
    check(|incarnation| AliveRecord { incarnation, machine_id: "m".to_owned(), unknown: unknown() });
    check(|incarnation| IdentityRefRecord { incarnation, unknown: unknown() });
    check(|life| CidrRecord {
        node: "n1".parse().unwrap(),
        state: ClaimState::Live,
        token: "t".to_owned(),
        since: Some(ClaimEpoch { life, revision: Revision(1) }),
        unknown: unknown(),
    });
    let node = |incarnation: u64, moves: u64| {
        let text = format!(
            r#"{{"v":1,"underlay":["192.0.2.1"],"moves":{moves},"cidrs":[],"gateway":null,"gossip_port":7946,"boot_id":"b","machine_id":"m","incarnation":{incarnation},"agent_version":"t"}}"#
        );
        NodeRecord::decode(text.as_bytes()).map(|record| (record.incarnation, record.moves))
    };
    assert_eq!(node(MAX_COUNTER, MAX_COUNTER), Ok((MAX_COUNTER, MAX_COUNTER)));
    assert!(node(MAX_COUNTER + 1, 0).is_err() && node(0, MAX_COUNTER + 1).is_err());
}

#[test]
fn fleet_record_rules_are_checked() {
    let check = |change: fn(&mut FleetRecord), expected: &str| {
        let mut record = fleet();
        change(&mut record);
        let found = FleetRecord::decode(&record.encode()).unwrap_err().to_string();
        assert!(found.contains(expected), "{found}");
    };
    check(|fleet| fleet.pools.clear(), "no pool");
    check(|fleet| fleet.pools[0] = "10.0.0.1/16".parse().unwrap(), "host bits");
    check(|fleet| fleet.pools[1] = "10.0.128.0/20".parse().unwrap(), "overlap");
    check(|fleet| fleet.service_pools[0] = "10.0.128.0/20".parse().unwrap(), "overlap");
    check(|fleet| fleet.service_pools[0] = "10.201.0.1/16".parse().unwrap(), "host bits");
    check(|fleet| fleet.block_prefix_v4 = 31, "use /16 to /30");
    check(|fleet| fleet.block_prefix_v4 = 15, "use /16 to /30");
    check(|fleet| fleet.block_prefix_v6 = 127, "use /48 to /126");
    check(|fleet| fleet.tunnel_port = 0, "tunnel port 0");
    check(|fleet| fleet.fleet_id.clear(), "fleet id");
}

#[test]
fn fleet_record_without_service_pools_has_none() {
    let text = r#"{"v":1,"fleet_id":"f00d","pools":["10.0.0.0/16"],"block_prefix_v4":24,"block_prefix_v6":64,"tunnel_port":8472}"#;
    let record = FleetRecord::decode(text.as_bytes()).unwrap();
    assert_eq!(record.service_pools, []);
    assert!(!std::str::from_utf8(&record.encode()).unwrap().contains("service_pools"));
}

#[test]
fn identity_records_of_reserved_numbers_are_refused() {
    let text = br#"{"v":1,"id":255,"labels":{}}"#;
    assert!(matches!(IdentityLabelsRecord::decode(text), Err(RecordError::Invalid(_))));
}
