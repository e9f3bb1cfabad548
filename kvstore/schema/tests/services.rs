//! Specs and records of services: their texts, their rules, and what is refused.

use kvstore_schema::{
    record::Record,
    service::{ServiceRecord, ServiceSpec, VipRecord, VirtualIp},
};

fn spec(json: &str) -> ServiceSpec {
    serde_json::from_str(json).unwrap_or_else(|error| panic!("{json}: {error}"))
}

#[test]
fn what_is_left_out_is_filled_in() {
    let check = |json: &str, golden: &str| {
        let spec = spec(json);
        assert_eq!(spec.validate(), Ok(()), "{json}");
        let text = serde_json::to_string(&spec.normalised()).unwrap();
        assert_eq!(text, golden);
        assert_eq!(serde_json::to_string(&self::spec(&text).normalised()).unwrap(), golden);
    };
    check(
        r#"{"ports":[{"port":80}],"selector":{"matchLabels":{"app":"web"}}}"#,
        r#"{"virtualIp":"auto","ports":[{"protocol":"tcp","port":80,"targetPort":80}],"selector":{"matchLabels":{"app":"web"}},"algorithm":"maglev"}"#,
    );
    check(
        r#"{"virtualIp":"10.201.0.9","algorithm":"random","ports":[{"name":"dns","protocol":"udp","port":53,"targetPort":5353},
            {"name":"dns-tcp","port":53}],"backends":[{"address":"192.0.2.9"},{"address":"192.0.2.8","port":5300,"weight":7}]}"#,
        r#"{"virtualIp":"10.201.0.9","ports":[{"name":"dns","protocol":"udp","port":53,"targetPort":5353},{"name":"dns-tcp","protocol":"tcp","port":53,"targetPort":53}],"backends":[{"address":"192.0.2.8","port":5300,"weight":7},{"address":"192.0.2.9","weight":1}],"algorithm":"random"}"#,
    );
}

#[test]
fn every_mistake_is_named_with_its_place() {
    let check = |json: &str, expected: &[&str]| {
        assert_eq!(spec(json).validate().unwrap_err().0, expected, "{json}");
    };
    check(
        r#"{"virtualIp":"127.0.0.1","ports":[]}"#,
        &[
            "spec.virtualIp: 127.0.0.1 is no address of one machine that others reach",
            "spec.ports: has 0; use 1 to 64",
            "spec: needs a selector, or backends",
        ],
    );
    check(
        r#"{"ports":[{"port":0,"name":"a"},{"port":1,"targetPort":0},{"port":1,"name":"a"},{"port":2,"name":"A b"}],"selector":{}}"#,
        &[
            "spec.ports[0].port: 0 is none; use 1 to 65535",
            "spec.ports[1].targetPort: 0 is none; use 1 to 65535",
            "spec.ports[1].name: needed, since there are several ports",
            "spec.ports[2].port: 1/tcp is there twice",
            "spec.ports[2].name: \"a\" is there twice",
            "spec.ports[3].name: name \"A b\" is not valid: use a-z, 0-9, '-', '_' and '.', beginning and ending with a letter or digit",
        ],
    );
    check(
        r#"{"ports":[{"port":1}],"selector":{},"backends":[{"address":"fd00::1","weight":0},{"address":"192.0.2.1","port":0},{"address":"192.0.2.1","port":0}]}"#,
        &[
            "spec: has a selector and backends; use one of them",
            "spec.backends[0].address: not there yet: IPv6 (fd00::1)",
            "spec.backends[0].weight: 0 is out of range; use 1 to 1000",
            "spec.backends[1].port: 0 is none; use 1 to 65535",
            "spec.backends[2].port: 0 is none; use 1 to 65535",
            "spec.backends[2]: 192.0.2.1 is there twice",
        ],
    );
    check(
        r#"{"ports":[{"port":1}],"selector":{"matchExpressions":[{"key":"app","operator":"In"}]}}"#,
        &["spec.selector: In on \"app\" needs values"],
    );
}

#[test]
fn what_is_not_there_yet_or_not_known_is_refused() {
    let check = |field: &str, expected: &str| {
        let json = format!(r#"{{"selector":{{}},"ports":[{{"port":80}}],{field}}}"#);
        let error = serde_json::from_str::<ServiceSpec>(&json).unwrap_err().to_string();
        assert!(error.contains(expected), "{field}: {error}");
    };
    for field in
        ["externalIps", "affinity", "trafficPolicy", "sourceRanges", "mode", "healthCheck", "topology"]
    {
        check(&format!(r#""{field}":null"#), &format!("not there yet: {field}"));
    }
    check(r#""colour":"red""#, "unknown field `colour`");
    check(r#""virtualIp":"none""#, "virtualIp \"none\" is not valid: use auto, or an address");
    check(r#""algorithm":"best""#, "unknown variant `best`, expected `maglev` or `random`");
    for field in ["nodePort", "hostPort"] {
        let json = format!(r#"{{"selector":{{}},"ports":[{{"port":80,"{field}":30080}}]}}"#);
        let error = serde_json::from_str::<ServiceSpec>(&json).unwrap_err().to_string();
        assert!(error.contains(&format!("not there yet: {field}")), "{error}");
    }
}

#[test]
fn golden_records() {
    let record = ServiceRecord {
        spec: spec(r#"{"ports":[{"port":80}],"selector":{}}"#).normalised(),
        virtual_ip: "10.201.0.5".parse().unwrap(),
        unknown: Default::default(),
    };
    let golden = r#"{"v":1,"spec":{"virtualIp":"auto","ports":[{"protocol":"tcp","port":80,"targetPort":80}],"selector":{},"algorithm":"maglev"},"virtual_ip":"10.201.0.5"}"#;
    assert_eq!(std::str::from_utf8(&record.encode()).unwrap(), golden);
    assert_eq!(ServiceRecord::decode(golden.as_bytes()), Ok(record));
    let vip = VipRecord { service: "web".parse().unwrap(), unknown: Default::default() };
    assert_eq!(std::str::from_utf8(&vip.encode()).unwrap(), r#"{"v":1,"service":"web"}"#);
    assert_eq!(VipRecord::decode(&vip.encode()), Ok(vip));
}

/// An agent that does not know `sourceRanges` must not serve the service to everybody.
#[test]
fn a_record_with_a_field_of_a_newer_version_in_its_spec_is_rejected_alone() {
    let check = |text: &str, expected: &str| {
        let error = ServiceRecord::decode(text.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    check(
        r#"{"v":1,"spec":{"ports":[{"port":80}],"selector":{},"sourceRanges":["192.0.2.0/24"]},"virtual_ip":"10.201.0.5"}"#,
        "not there yet: sourceRanges",
    );
    check(
        r#"{"v":1,"spec":{"ports":[{"port":80}],"selector":{},"virtualIp":"10.201.0.6"},"virtual_ip":"10.201.0.5"}"#,
        "is not the one that the spec wants",
    );
    check(r#"{"v":1,"spec":{"ports":[{"port":80}],"selector":{}},"virtual_ip":"fd00::5"}"#, "IPv6");
    check(r#"{"v":1,"spec":{"ports":[],"selector":{}},"virtual_ip":"10.201.0.5"}"#, "spec.ports: has 0");
    assert_eq!(VirtualIp::try_from("10.0.0.1".to_owned()), Ok(VirtualIp::Address([10, 0, 0, 1].into())));
}
