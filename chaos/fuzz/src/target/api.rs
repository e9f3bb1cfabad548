//! Input of callers of the local API: bodies and query parameters, as the agent decodes them.

use axum::{extract::Query, http::Uri};
use node_api::{
    DiffQuery, EndpointAdd, FlowQuery, LimitQuery, Manifest, Manifests, ObserveQuery, RevisionQuery,
    ServicePut, Spec,
};
use node_observe::EventFilter;
use serde::de::DeserializeOwned;

use super::{Target, sample};

/// A body or a query; the first byte selects the request. An accepted one is written and read back as equal.
pub const API: Target = Target {
    name: "api",
    run: request,
    seeds,
    words: &[
        "\"netns\":",
        "\"labels\":{",
        "\"address\":\"10.0.0.5\"",
        "\\u0000",
        "follow=true",
        "from=identity:300",
        "%00",
        "%ff",
        "to=app%3Dweb",
        "protocol=tcp",
        "port=65536",
        "limit=18446744073709551616",
        "kind=drop",
    ],
    rounds: 5_000,
};

fn query<T: DeserializeOwned>(text: &str) -> Option<T> {
    let uri: Uri = format!("http://localhost/v1/x?{text}").parse().ok()?;
    Query::try_from_uri(&uri).ok().map(|Query(value)| value)
}

fn request(bytes: &[u8]) {
    let Some((kind, bytes)) = bytes.split_first() else { return };
    let text = String::from_utf8_lossy(bytes);
    match kind {
        b'0' => {
            let Ok(request) = serde_json::from_slice::<EndpointAdd>(bytes) else { return };
            let again = serde_json::to_vec(&request).expect("a request is JSON");
            assert_eq!(serde_json::from_slice::<EndpointAdd>(&again).ok(), Some(request));
        }
        b'1' => {
            let Some(flows) = query::<FlowQuery>(&text) else { return };
            filter(&EventFilter::from(flows));
        }
        b'2' => {
            let Some(observe) = query::<ObserveQuery>(&text) else { return };
            filter(&EventFilter::from(observe));
        }
        b'3' => drop(query::<LimitQuery>(&text)),
        b'5' => {
            let Ok(request) = serde_json::from_slice::<ServicePut>(bytes) else { return };
            let again = serde_json::to_vec(&request).expect("a request is JSON");
            assert_eq!(serde_json::from_slice::<ServicePut>(&again).ok(), Some(request));
        }
        b'6' => drop(query::<RevisionQuery>(&text)),
        _ => drop(query::<DiffQuery>(&text)),
    }
}

/// Filters are written as they are read.
fn filter(filter: &EventFilter) {
    for party in [&filter.from, &filter.to].into_iter().flatten() {
        let text = serde_json::to_string(party).expect("a filter is JSON");
        let again =
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("{text} is not read back: {error}"));
        assert_eq!(party, &again);
    }
    if let Some(protocol) = filter.protocol {
        assert_eq!(protocol.to_string().parse(), Ok(protocol));
    }
}

fn seeds() -> Vec<Vec<u8>> {
    [
        r#"0{"name":"web-1","labels":{"app":"web"},"attachment":{"netns":{"path":"/run/netns/web"}}}"#,
        r#"0{"name":"a","attachment":{"netns":{"path":"/proc/1/ns/net","interface":"eth1"}},"address":"10.0.0.5"}"#,
        "1limit=10&from=10.0.0.0/8&to=web-1&protocol=tcp&port=80",
        "2follow=true&last=5&verdict=dropped&kind=drop&reason=source-spoofed&from=app%3Dweb&to=identity:300",
        "3limit=5",
        "4repair=true",
        r#"5{"spec":{"ports":[{"port":80,"targetPort":8080}],"selector":{"matchLabels":{"app":"web"}}},"revision":7}"#,
        "6revision=7",
    ]
    .map(|text| text.as_bytes().to_vec())
    .into()
}

/// A file of manifests. An accepted one is written and read back as equal.
pub const MANIFEST: Target = Target {
    name: "manifest",
    run: manifest,
    seeds: manifest_seeds,
    words: &[
        "apiVersion: warren/v1\n",
        "kind: Service\n",
        "---\n",
        "&a ",
        "*a",
        "<<: ",
        "!!binary ",
        "matchLabels: {",
        "virtualIp: 10.201.0.9",
        "- {port: 80}",
        "nodePort: 1",
        "{",
        "[",
        "|\n",
        "\t",
    ],
    rounds: 1_500,
};

fn manifest(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    for manifest in Manifests::parse(text).manifests {
        let again = manifest.to_yaml();
        let expected = Manifests { manifests: vec![manifest], mistakes: Vec::new() };
        assert_eq!(Manifests::parse(&again), expected, "{again}");
    }
}

fn manifest_seeds() -> Vec<Vec<u8>> {
    let manifest = |name: &str, spec| {
        Manifest { name: name.parse().expect("a name"), spec: Spec::Service(spec) }.to_yaml()
    };
    let fixed = r#"{"virtualIp":"10.201.0.9","ports":[{"port":443}],"backends":[{"address":"192.0.2.9","weight":7}]}"#;
    let fixed = serde_json::from_str(fixed).expect("a spec");
    let (web, db) = (manifest("web", sample::service_spec()), manifest("db", fixed));
    vec![web.clone().into_bytes(), format!("{web}---\n{db}").into_bytes()]
}
