//! Manifests, and the mistakes in them.

use super::*;

/// The manifests of a text without mistakes.
fn parse(text: &str) -> Vec<Manifest> {
    let Manifests { manifests, mistakes } = Manifests::parse(text);
    assert_eq!(mistakes, [""; 0], "{text}");
    manifests
}

const HEAD: &str = "apiVersion: warren/v1\nkind: Service\nmetadata:\n  name: web\nspec:\n";

#[test]
fn manifests_are_parsed_in_order_and_serialise_as_they_are_parsed() {
    let text = format!(
        "{HEAD}  selector: {{matchLabels: {{app: web}}}}\n  ports:\n  - port: 80\n---\n# nothing here\n---\n{}",
        HEAD.replace("web", "db")
            + "  virtualIp: 10.201.0.9\n  backends: [{address: 192.0.2.7}]\n  ports: [{port: 5432}]\n"
    );
    let manifests = parse(&text);
    let names: Vec<&str> = manifests.iter().map(|manifest| manifest.name.as_str()).collect();
    assert_eq!(names, ["web", "db"]);
    let golden = "apiVersion: warren/v1\nkind: Service\nmetadata:\n  name: web\nspec:\n  virtualIp: auto\n  ports:\n  - protocol: tcp\n    port: 80\n    targetPort: 80\n  selector:\n    matchLabels:\n      app: web\n  algorithm: maglev\n  trafficPolicy: fleet\n  mode: snat\n  topology: any\n";
    assert_eq!(manifests[0].to_yaml(), golden);
    for manifest in &manifests {
        assert_eq!(parse(&manifest.to_yaml()), std::slice::from_ref(manifest));
        let json = serde_json::to_string(manifest).unwrap();
        assert_eq!(parse(&json), std::slice::from_ref(manifest));
    }
    assert_eq!(parse("# nothing\n"), []);
    assert_eq!(parse(&"---\n".repeat(100_000)), []);
}

#[test]
fn manifests_of_the_documentation_are_valid() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
    let mut kinds = std::collections::BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "md") {
            continue;
        }
        let page = std::fs::read_to_string(path).unwrap();
        for example in page.split("```").filter(|block| block.trim_start().starts_with("apiVersion:")) {
            let [manifest] = &parse(example)[..] else { panic!("more than one manifest: {example}") };
            *kinds.entry(manifest.spec.kind()).or_insert(0) += 1;
        }
    }
    assert!(KindName::ALL.iter().all(|kind| kinds.contains_key(kind)), "a kind has no example: {kinds:?}");
    assert!(kinds[&KindName::Service] >= 6, "{kinds:?}");
}

#[test]
fn manifests_of_ten_thousand_services_fit_one_text() {
    let document = |number: usize| {
        format!(
            "{}  ports: [{{name: a, port: 80, targetPort: 8080}}, {{name: b, port: 81}}]\n  \
             backends: [{{address: 192.0.2.1, weight: 2}}, {{address: 192.0.2.2, weight: 3}}]\n---\n",
            HEAD.replace("web", &format!("web-{number}"))
        )
    };
    let text: String = (0..10_000).map(document).collect();
    let manifests = parse(&text);
    assert_eq!(manifests.len(), 10_000);
    assert_eq!(manifests[9_999].name.as_str(), "web-9999");
}

#[test]
fn manifest_with_a_mistake_does_not_affect_the_others() {
    let document = |name: &str, lines: &str| HEAD.replace("web", name) + lines;
    let ports = "  selector: {}\n  ports: [{port: 80}]\n";
    let text = [
        document("first", ports),
        document("other-form", "  ports: {}\n  mode: snat\n"),
        document("no-sense", "  selector: {}\n  ports: [{port: 0}]\n"),
        document("second", ports),
        document("no-yaml", "  ports: [}\n"),
        document("third", ports),
    ]
    .join("---\n");
    let Manifests { manifests, mistakes } = Manifests::parse(&text);
    let names: Vec<&str> = manifests.iter().map(|manifest| manifest.name.as_str()).collect();
    assert_eq!(names, ["first", "second"]);
    let [form, sense, yaml] = &mistakes[..] else { panic!("{mistakes:#?}") };
    assert!(form.starts_with("line 14, column 10: ports: a list is expected here"), "{form}");
    assert!(sense.starts_with("line 17: service no-sense: spec.ports[0].port: 0 is none"), "{sense}");
    assert!(yaml.starts_with("line 38, column "), "{yaml}");
}

/// Anchors make a short text expand.
#[test]
fn manifest_cannot_expand_without_bound() {
    let mut text = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n".to_owned();
    for level in 1..8 {
        let again = format!("*a{}, ", level - 1).repeat(10);
        text += &format!("a{level}: &a{level} [{again}]\n");
    }
    assert_eq!(Manifests::parse(&text).manifests, []);
    let ports = "{port: 80}, ".repeat(MAX_NODES / 2);
    let Manifests { manifests, mistakes } = Manifests::parse(&format!("{HEAD}  ports: [{ports}]\n"));
    assert_eq!(manifests, []);
    assert!(mistakes[0].ends_with("the document has more values than any valid manifest"), "{mistakes:?}");
}

#[test]
fn manifest_mistakes_have_line_and_column() {
    let check = |text: &str, expected: &str| {
        let Manifests { mistakes, .. } = Manifests::parse(text);
        let found = mistakes.join("\n");
        assert!(found.starts_with(expected), "{text:?} says {found}");
    };
    let spec = |lines: &str| format!("{HEAD}{lines}");
    check(&spec("  healthCheck: {interval: 2}\n"), "line 6, column 27: ");
    check(
        &spec("  healthCheck: {interval: 2x}\n"),
        "line 6, column 27: interval: \"2x\" is no span of time: use",
    );
    check(
        &spec("  selector: {}\n  ports: [{port: 80, nodePort: some}]\n"),
        "line 7, column 32: nodePort \"some\" is not valid: use auto, or a number",
    );
    check(
        &spec("  selector: {}\n  ports: [{port: 80, nodePort: 3}]\n"),
        "line 1: service web: spec.ports[0].nodePort: 3 is out of range; use 30000 to 32767, or auto",
    );
    check(
        &spec("  sourceRanges: [here]\n"),
        "line 6, column 18: sourceRanges: \"here\" is not a network: write it as 192.0.2.0/24",
    );
    check(
        &spec("  sourceRanges: [192.0.2.0/24, 192.0.2.0/33]\n"),
        "line 6, column 32: \"192.0.2.0/33\" is not a network",
    );
    check(&spec("  colour: 1\n"), "line 6, column 3: unknown field `colour`, expected one of virtualIp, ");
    for number in ["http", "70000", "-1", "8.5"] {
        check(
            &spec(&format!("  ports: [{{port: {number}}}]\n")),
            "line 6, column 18: port: not a whole number from 0 to 65535",
        );
    }
    check(
        &spec("  affinity: {timeoutSeconds: -1}\n"),
        "line 6, column 30: timeoutSeconds: not a whole number from 0 to 4294967295",
    );
    check(
        &spec("  ports: [{protocol: icmp, port: 1}]\n"),
        "line 6, column 22: protocol: unknown variant `icmp`, expected one of tcp, udp, sctp",
    );
    check(&spec("  ports: {port: 80}\n"), "line 6, column 10: ports: a list is expected here");
    check(&spec("  affinity: clientIp\n"), "line 6, column 13: affinity: fields are expected here");
    check(&spec("  selector: {matchLabels: {app: [a]}}\n"), "line 6, column 33: app: one word or number");
    check(&spec("  mode: dsr\n  mode: dsr\n"), "line 7, column 3: `mode` is there twice");
    check(&spec("  backends: [{address: here}]\n"), "line 6, column 24: address: not an IP address");
    check(&spec("  healthCheck: {http: {}}\n"), "line 6, column 23: http: missing field `path`");
    check(
        &spec("  virtualIp: none\n"),
        "line 6, column 14: virtualIp \"none\" is not valid: use auto, or an address",
    );
    check(
        &format!("{}---\n{}", spec("  selector: {}\n  ports: [{port: 80}]\n"), spec("  ports: []\n")),
        "line 9: service web: spec.ports: has 0; use 1 to 64\nline 9: service web: spec: needs a selector, or backends",
    );
    check(
        "apiVersion: v1\nkind: Service\n",
        "line 1, column 13: apiVersion: unknown variant `v1`, expected one of warren/v1",
    );
    check("kind: Pod\n", "line 1, column 7: kind: unknown variant `Pod`, expected one of Service");
    check(
        "apiVersion: warren/v1\nkind: Service\nmetadata: {name: Web}\n",
        "line 3, column 18: name \"Web\" is not valid",
    );
    check("metadata: {name: }\n", "line 1, column 16: name: the value is missing");
    check("[1]", "line 1, column 1: not a manifest");
    check("hello", "line 1, column 1: not a manifest");
    check(
        "apiVersion: warren/v1\nspec: {}\nkind: Service\n",
        "line 2, column 7: spec: write kind before spec",
    );
    check("kind: Service\n", "line 1, column 1: missing field `apiVersion`");
    check("apiVersion: warren/v1\n", "line 1, column 1: missing field `kind`");
    check("apiVersion: warren/v1\nkind: Service\n", "line 2, column 1: missing field `metadata`");
    check(HEAD.trim_end().strip_suffix("spec:").unwrap(), "line 3, column 1: missing field `spec`");
    check("apiVersion: [", "line 1");
    check(&" ".repeat(MAX_MANIFEST_BYTES + 1), "8388609 bytes; the limit is 8388608");
}
