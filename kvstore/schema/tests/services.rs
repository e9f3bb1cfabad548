//! Specs and records of services: their texts, their rules, and what is refused.

use kvstore_schema::{
    record::Record,
    service::{NodePortGiven, ServiceClaimRecord, ServiceProtocol, ServiceRecord, ServiceSpec, VirtualIp},
};

fn spec(json: &str) -> ServiceSpec {
    serde_json::from_str(json).unwrap_or_else(|error| panic!("{json}: {error}"))
}

#[test]
fn spec_defaults_are_filled_in() {
    let check = |json: &str, golden: &str| {
        let spec = spec(json);
        assert_eq!(spec.validate(), Ok(()), "{json}");
        let text = serde_json::to_string(&spec.normalised()).unwrap();
        assert_eq!(text, golden);
        assert_eq!(serde_json::to_string(&self::spec(&text).normalised()).unwrap(), golden);
    };
    check(
        r#"{"ports":[{"port":80}],"selector":{"matchLabels":{"app":"web"}}}"#,
        r#"{"virtualIp":"auto","ports":[{"protocol":"tcp","port":80,"targetPort":80}],"selector":{"matchLabels":{"app":"web"}},"algorithm":"maglev","trafficPolicy":"fleet","mode":"snat","topology":"any"}"#,
    );
    check(
        r#"{"virtualIp":"10.201.0.9","algorithm":"random","ports":[{"name":"dns","protocol":"udp","port":53,"targetPort":5353},
            {"name":"dns-tcp","port":53}],"backends":[{"address":"192.0.2.9"},{"address":"192.0.2.8","port":5300,"weight":7}]}"#,
        r#"{"virtualIp":"10.201.0.9","ports":[{"name":"dns","protocol":"udp","port":53,"targetPort":5353},{"name":"dns-tcp","protocol":"tcp","port":53,"targetPort":53}],"backends":[{"address":"192.0.2.8","port":5300,"weight":7},{"address":"192.0.2.9","weight":1}],"algorithm":"random","trafficPolicy":"fleet","mode":"snat","topology":"any"}"#,
    );
    check(
        r#"{"selector":{},"ports":[{"port":80,"nodePort":"auto","hostPort":8080}],"externalIps":["198.51.100.8","198.51.100.7"],
            "affinity":{},"trafficPolicy":"local","sourceRanges":["203.0.113.0/24","192.0.2.1","192.0.2.1/32"],"mode":"dsr","topology":"zone"}"#,
        r#"{"virtualIp":"auto","ports":[{"protocol":"tcp","port":80,"targetPort":80,"nodePort":"auto","hostPort":8080}],"selector":{},"algorithm":"maglev","externalIps":["198.51.100.7","198.51.100.8"],"affinity":{"by":"clientIp","timeoutSeconds":10800},"trafficPolicy":"local","sourceRanges":["192.0.2.1/32","203.0.113.0/24"],"mode":"dsr","topology":"zone"}"#,
    );
    check(
        r#"{"selector":{},"ports":[{"port":80,"protocol":"sctp","name":"s"},{"port":81,"nodePort":30080,"name":"a"}],"affinity":{"timeoutSeconds":60}}"#,
        r#"{"virtualIp":"auto","ports":[{"name":"s","protocol":"sctp","port":80,"targetPort":80},{"name":"a","protocol":"tcp","port":81,"targetPort":81,"nodePort":30080}],"selector":{},"algorithm":"maglev","affinity":{"by":"clientIp","timeoutSeconds":60},"trafficPolicy":"fleet","mode":"snat","topology":"any"}"#,
    );
}

#[test]
fn spec_mistakes_are_named_with_their_place() {
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
fn spec_mistakes_about_external_clients_are_named_with_their_place() {
    let check = |fields: &str, expected: &[&str]| {
        let json = format!(r#"{{"selector":{{}},{fields}}}"#);
        assert_eq!(spec(&json).validate().unwrap_err().0, expected, "{json}");
    };
    check(
        r#""ports":[{"port":1,"name":"a","nodePort":80},{"port":2,"name":"b","nodePort":30001,"hostPort":30002},
            {"port":3,"name":"c","nodePort":30001,"hostPort":0},{"port":4,"name":"d","hostPort":443},
            {"port":5,"name":"e","hostPort":443},{"port":5,"name":"f","protocol":"udp","hostPort":443,"nodePort":30001}]"#,
        &[
            "spec.ports[0].nodePort: 80 is out of range; use 30000 to 32767, or auto",
            "spec.ports[1].hostPort: 30002 is one of the node ports (30000 to 32767); use another",
            "spec.ports[2].nodePort: 30001/tcp is there twice",
            "spec.ports[2].hostPort: 0 is none; use 1 to 65535",
            "spec.ports[4].hostPort: 443/tcp is there twice",
        ],
    );
    check(
        r#""ports":[{"port":1}],"virtualIp":"192.0.2.1","externalIps":["192.0.2.1","224.0.0.1","fd00::1","192.0.2.1"],
            "sourceRanges":["192.0.2.1/24","fd00::/8"],"affinity":{"timeoutSeconds":86401}"#,
        &[
            "spec.externalIps[0]: 192.0.2.1 is the virtualIp",
            "spec.externalIps[1]: 224.0.0.1 is no address of one machine that others reach",
            "spec.externalIps[2]: not there yet: IPv6 (fd00::1)",
            "spec.externalIps[3]: 192.0.2.1 is there twice",
            "spec.externalIps[3]: 192.0.2.1 is the virtualIp",
            "spec.sourceRanges[0]: 192.0.2.1/24 has host bits set; write 192.0.2.0/24",
            "spec.sourceRanges[1]: not there yet: IPv6 (fd00::/8)",
            "spec.affinity.timeoutSeconds: 86401 is out of range; use 1 to 86400",
        ],
    );
    check(
        r#""ports":[{"port":1,"targetPort":2,"protocol":"sctp","nodePort":"auto"}]"#,
        &[
            "spec.ports[0].targetPort: SCTP keeps its port: the backends' must be the same",
            "spec.ports[0].protocol: not there yet: SCTP of clients outside the fleet; leave out nodePort, hostPort and externalIps",
        ],
    );
    let many: Vec<String> = (0..49).map(|last| format!("\"192.0.2.{last}\"")).collect();
    check(
        &format!(r#""ports":[{{"port":1}}],"externalIps":[{}]"#, many.join(",")),
        &[
            "spec: has 49 node ports, host ports and ports of external addresses; at most 48 are allowed: make several services",
        ],
    );
}

#[test]
fn health_check_defaults_are_filled_in() {
    let check = |given: &str, golden: &str| {
        let spec = spec(&format!(r#"{{"ports":[{{"port":80}}],"selector":{{}},"healthCheck":{given}}}"#));
        assert_eq!(spec.validate(), Ok(()), "{given}");
        assert_eq!(serde_json::to_string(&spec.health_check).unwrap(), golden);
        assert_eq!(serde_json::from_str(golden).ok(), Some(spec.health_check));
    };
    let usual = r#"{"tcp":{},"interval":"2s","timeout":"1s","unhealthyThreshold":3,"healthyThreshold":2}"#;
    check("{}", usual);
    check(r#"{"tcp":{}}"#, usual);
    check(
        r#"{"http":{"path":"/healthz","host":"web.example"},"port":8081,"interval":"500ms","unhealthyThreshold":1}"#,
        r#"{"http":{"path":"/healthz","host":"web.example"},"port":8081,"interval":"500ms","timeout":"500ms","unhealthyThreshold":1,"healthyThreshold":2}"#,
    );
    check(
        r#"{"interval":"60s","timeout":"1500ms"}"#,
        r#"{"tcp":{},"interval":"1m","timeout":"1500ms","unhealthyThreshold":3,"healthyThreshold":2}"#,
    );
}

#[test]
fn health_check_mistakes_are_named() {
    let spec_with = |given: &str| {
        let json = format!(
            r#"{{"ports":[{{"name":"a","port":80}},{{"name":"b","port":53,"protocol":"udp"}}],"selector":{{}},"healthCheck":{given}}}"#
        );
        serde_json::from_str::<ServiceSpec>(&json)
    };
    let check = |given: &str, expected: &[&str]| {
        assert_eq!(spec_with(given).unwrap().validate().unwrap_err().0, expected, "{given}");
    };
    check("{}", &["spec.healthCheck.port: needed, since spec.ports[1] is udp and checks are made over TCP"]);
    check(
        r#"{"port":0,"interval":"1ms","timeout":"2s","unhealthyThreshold":0,"healthyThreshold":101}"#,
        &[
            "spec.healthCheck.port: 0 is none; use 1 to 65535",
            "spec.healthCheck.interval: 1ms is out of range; use 200ms to 10m",
            "spec.healthCheck.unhealthyThreshold: 0 is out of range; use 1 to 100",
            "spec.healthCheck.healthyThreshold: 101 is out of range; use 1 to 100",
        ],
    );
    // The timeout that nobody named is no second mistake.
    check(
        r#"{"port":1,"interval":"0s"}"#,
        &["spec.healthCheck.interval: 0ms is out of range; use 200ms to 10m"],
    );
    check(
        r#"{"port":1,"interval":"1s","timeout":"2s"}"#,
        &["spec.healthCheck.timeout: 2s is out of range; use 10ms to the interval, 1s"],
    );
    check(
        r#"{"port":1,"http":{"path":"x y","host":"a\r\nb"}}"#,
        &[
            r#"spec.healthCheck.http.path: "x y" is no path of a page: begin with /, percent-encode what is not ASCII, and use at most 1024 bytes"#,
            r#"spec.healthCheck.http.host: "a\r\nb" is no name of a host"#,
        ],
    );
    let refused = |given: &str, expected: &str| {
        let error = spec_with(given).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    refused(r#"{"tcp":{},"http":{"path":"/"}}"#, "has tcp and http; use one of them");
    refused(r#"{"interval":"2"}"#, "\"2\" is no span of time: use a whole number with ms, s, m or h");
    refused(r#"{"interval":"99999999999999999999h"}"#, "no span of time");
    refused(r#"{"expect":200}"#, "unknown field `expect`");
    refused(r#"{"tcp":{"port":1}}"#, "unknown field `port`");
}

#[test]
fn spec_with_an_unknown_field_is_refused() {
    let check = |field: &str, expected: &str| {
        let json = format!(r#"{{"selector":{{}},"ports":[{{"port":80}}],{field}}}"#);
        let error = serde_json::from_str::<ServiceSpec>(&json).unwrap_err().to_string();
        assert!(error.contains(expected), "{field}: {error}");
    };
    check(r#""colour":"red""#, "unknown field `colour`");
    check(r#""virtualIp":"none""#, "virtualIp \"none\" is not valid: use auto, or an address");
    check(r#""algorithm":"best""#, "unknown variant `best`, expected `maglev` or `random`");
    check(r#""mode":"ipip""#, "unknown variant `ipip`, expected `snat` or `dsr`");
    check(r#""topology":"rack""#, "unknown variant `rack`, expected one of `any`, `zone`, `node`");
    check(r#""trafficPolicy":"cluster""#, "unknown variant `cluster`, expected `fleet` or `local`");
    check(r#""sourceRanges":["here"]"#, "invalid address: here");
    check(r#""affinity":{"timeout":3}"#, "unknown field `timeout`, expected `by` or `timeoutSeconds`");
    for (port, expected) in [
        (r#""nodePort":"some""#, "nodePort \"some\" is not valid: use auto, or a number"),
        (r#""nodePort":70000"#, "not a whole number from 0 to 65535"),
        (r#""nodePort":-1"#, "not a whole number from 0 to 65535"),
        (r#""nodePort":{}"#, "expected auto, or a number"),
    ] {
        let json = format!(r#"{{"selector":{{}},"ports":[{{"port":80,{port}}}]}}"#);
        let error = serde_json::from_str::<ServiceSpec>(&json).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn service_records_are_golden() {
    let record = ServiceRecord {
        spec: spec(
            r#"{"ports":[{"port":80,"nodePort":"auto"}],"selector":{},"externalIps":["198.51.100.7"]}"#,
        )
        .normalised(),
        virtual_ip: "10.201.0.5".parse().unwrap(),
        node_ports: vec![NodePortGiven { protocol: ServiceProtocol::Tcp, port: 80, node_port: 30_080 }],
        unknown: Default::default(),
    };
    let golden = r#"{"v":1,"spec":{"virtualIp":"auto","ports":[{"protocol":"tcp","port":80,"targetPort":80,"nodePort":"auto"}],"selector":{},"algorithm":"maglev","externalIps":["198.51.100.7"],"trafficPolicy":"fleet","mode":"snat","topology":"any"},"virtual_ip":"10.201.0.5","node_ports":[{"protocol":"tcp","port":80,"node_port":30080}]}"#;
    assert_eq!(std::str::from_utf8(&record.encode()).unwrap(), golden);
    assert_eq!(ServiceRecord::decode(golden.as_bytes()), Ok(record.clone()));
    let claims: Vec<String> = record.claims().iter().map(ToString::to_string).collect();
    assert_eq!(claims, ["address 10.201.0.5", "node port 30080/tcp", "198.51.100.7:80/tcp"]);
    let claim = ServiceClaimRecord { service: "web".parse().unwrap(), unknown: Default::default() };
    assert_eq!(std::str::from_utf8(&claim.encode()).unwrap(), r#"{"v":1,"service":"web"}"#);
    assert_eq!(ServiceClaimRecord::decode(&claim.encode()), Ok(claim));
}

/// An agent that did not know `sourceRanges`, say, would serve the service to everybody.
#[test]
fn service_record_with_an_unknown_spec_field_is_rejected_alone() {
    let check = |text: &str, expected: &str| {
        let error = ServiceRecord::decode(text.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    check(
        r#"{"v":1,"spec":{"ports":[{"port":80}],"selector":{},"onlyFor":["192.0.2.0/24"]},"virtual_ip":"10.201.0.5"}"#,
        "unknown field `onlyFor`",
    );
    check(
        r#"{"v":1,"spec":{"ports":[{"port":80}],"selector":{},"virtualIp":"10.201.0.6"},"virtual_ip":"10.201.0.5"}"#,
        "is not the one that the spec wants",
    );
    check(r#"{"v":1,"spec":{"ports":[{"port":80}],"selector":{}},"virtual_ip":"fd00::5"}"#, "IPv6");
    check(r#"{"v":1,"spec":{"ports":[],"selector":{}},"virtual_ip":"10.201.0.5"}"#, "spec.ports: has 0");
    let given = |given: &str, expected: &str| {
        check(
            &format!(
                r#"{{"v":1,"spec":{{"ports":[{{"port":80,"nodePort":30080}}],"selector":{{}}}},"virtual_ip":"10.201.0.5","node_ports":[{given}]}}"#
            ),
            expected,
        );
    };
    given("", "node port of 80/tcp: none is given");
    given(r#"{"protocol":"udp","port":80,"node_port":30080}"#, "node port of 80/tcp: none is given");
    given(r#"{"protocol":"tcp","port":80,"node_port":30081}"#, "30081 is given, 30080 wanted");
    let right = r#"{"protocol":"tcp","port":80,"node_port":30080}"#;
    given(&format!("{right},{right}"), "node port 30080 is given, and not wanted");
    assert_eq!(VirtualIp::try_from("10.0.0.1".to_owned()), Ok(VirtualIp::Address([10, 0, 0, 1].into())));
}
