//! Manifests: what people write down to be applied, in YAML (or JSON, which is YAML too).
//!
//! Reading one needs no agent: mistakes are told with their line before anything is asked for.

use identity::ServiceName;
use kvstore_schema::service::ServiceSpec;
use serde::{Deserialize, Serialize};
use serde_saphyr::Spanned;

/// The most bytes of a file of manifests: some ten thousand services.
pub const MAX_MANIFEST_BYTES: usize = 8 * 1024 * 1024;
/// Values and lists of one document: several times what a service has when all is said of it. This bounds what anchors that
/// are used again and again make of a short text.
const MAX_NODES: usize = 50_000;

/// One thing to be applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Manifest {
    /// The version of the form.
    pub api_version: ApiVersion,
    /// What it is.
    pub kind: Kind,
    /// Which one it is.
    pub metadata: Metadata,
    /// How it is to be.
    pub spec: ServiceSpec,
}

/// The versions of the form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ApiVersion {
    /// The first.
    #[serde(rename = "warren/v1")]
    V1,
}

/// The kinds of things.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// A service.
    Service,
}

/// Which one it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metadata {
    /// Unique among those of its kind in the fleet.
    pub name: ServiceName,
}

/// What a text holds. A document with a mistake does not hold up the others.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Manifests {
    /// Those that make sense, normalised, in their order.
    pub manifests: Vec<Manifest>,
    /// A line for each mistake in the others, with where it was made.
    pub mistakes: Vec<String>,
}

impl Manifests {
    /// Reads the documents of a text. Of a document of another form the first mistake is told, of one that makes no sense all.
    /// What is no YAML ends the text, as nobody knows where the next document begins.
    pub fn parse(text: &str) -> Self {
        let mut read = Self::default();
        if text.len() > MAX_MANIFEST_BYTES {
            let size = text.len();
            read.mistakes
                .push(format!("{size} bytes; at most {MAX_MANIFEST_BYTES} are read: use several files"));
            return read;
        }
        let options = serde_saphyr::options! {
            with_snippet: false,
            // Of a document each.
            budget: serde_saphyr::budget! {
                max_nodes: MAX_NODES,
                // A list has a beginning and an end.
                max_events: 2 * MAX_NODES,
            },
        };
        let lines: Vec<&str> = text.lines().collect();
        let mut bytes = text.as_bytes();
        for document in serde_saphyr::read_with_options(&mut bytes, options) {
            let document: Spanned<Manifest> = match document {
                Ok(document) => document,
                Err(error) => {
                    read.mistakes.push(explain(&error, &lines));
                    continue;
                }
            };
            let (line, Manifest { metadata, spec, .. }) = (document.referenced.line(), &document.value);
            match spec.validate() {
                Ok(()) => {
                    let spec = spec.clone().normalised();
                    read.manifests.push(Manifest { spec, ..document.value });
                }
                Err(error) => {
                    let told = |mistake| format!("line {line}: service {}: {mistake}", metadata.name);
                    read.mistakes.extend(error.0.into_iter().map(told));
                }
            }
        }
        read
    }
}

impl Manifest {
    /// The manifest of a service.
    pub fn service(name: ServiceName, spec: ServiceSpec) -> Self {
        Self { api_version: ApiVersion::V1, kind: Kind::Service, metadata: Metadata { name }, spec }
    }

    /// The manifest as a text that can be applied.
    pub fn to_yaml(&self) -> String {
        serde_saphyr::to_string(self).expect("a manifest is plain data with text keys")
    }
}

/// What is wrong, in our words, with the place and the field first.
fn explain(error: &serde_saphyr::Error, lines: &[&str]) -> String {
    let text = error.to_string();
    let Some(location) = error.location() else { return text };
    let (line, column) = (location.line(), location.column());
    let place = format!("line {line}, column {column}");
    let text = text.strip_suffix(&format!(" at {place}")).unwrap_or(&text);
    let twice = |rest: &str| Some(format!("`{}` is there twice", rest.split_once(',')?.0));
    let words = match text {
        "invalid u16" => "not a whole number from 0 to 65535",
        "invalid u32" => "not a whole number from 0 to 4294967295",
        "invalid IP address syntax" => "not an IP address",
        // Only a document of its own begins there.
        "expected mapping start" if column == 1 => {
            "not a manifest: write apiVersion, kind, metadata and spec"
        }
        "expected mapping start" => {
            "fields are wanted here: write {name: value}, or name: value on lines below"
        }
        "expected sequence start" => {
            "a list is wanted here: write [one, another], or - before each on lines below"
        }
        breach
            if ["Nodes", "Events"].iter().any(|it| breach.starts_with(&format!("budget breached: {it}"))) =>
        {
            "there is more in this document than a service can have"
        }
        "cannot deserialize null into string; use Option<String>" => "nothing is written here",
        "expected string scalar" => "one word or number is wanted here",
        other => other,
    };
    let words = words
        .strip_prefix("duplicate mapping key: ")
        .and_then(twice)
        .or_else(|| {
            Some(format!(
                "{:?} is no network: write it as 192.0.2.0/24",
                words.strip_prefix("invalid address: ")?
            ))
        })
        .unwrap_or_else(|| words.to_owned());
    let source = (line as usize).checked_sub(1).and_then(|line| lines.get(line));
    match source.and_then(|line| field_before(line, column as usize)) {
        Some(field) if !words.starts_with(field) => format!("{place}: {field}: {words}"),
        _ => format!("{place}: {words}"),
    }
}

/// The name of the field whose value begins at a column, if it stands on the same line: `port` of `{port: here}`.
fn field_before(line: &str, column: usize) -> Option<&str> {
    let (end, _) = line.char_indices().nth(column.checked_sub(1)?)?;
    let before = line[..end].trim_end().trim_end_matches('[').trim_end();
    // A value that is not there is looked for at the colon.
    let before = before.strip_suffix(':').or_else(|| line[end..].starts_with(':').then_some(before))?;
    let name = before.rsplit(|c: char| !c.is_ascii_alphanumeric() && c != '"').next()?.trim_matches('"');
    (!name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a text without a mistake holds.
    fn parse(text: &str) -> Vec<Manifest> {
        let Manifests { manifests, mistakes } = Manifests::parse(text);
        assert_eq!(mistakes, [""; 0], "{text}");
        manifests
    }

    const HEAD: &str = "apiVersion: warren/v1\nkind: Service\nmetadata:\n  name: web\nspec:\n";

    #[test]
    fn documents_of_a_text_are_read_in_order_and_written_as_they_are_read() {
        let text = format!(
            "{HEAD}  selector: {{matchLabels: {{app: web}}}}\n  ports:\n  - port: 80\n---\n# nothing here\n---\n{}",
            HEAD.replace("web", "db")
                + "  virtualIp: 10.201.0.9\n  backends: [{address: 192.0.2.7}]\n  ports: [{port: 5432}]\n"
        );
        let manifests = parse(&text);
        let names: Vec<&str> = manifests.iter().map(|manifest| manifest.metadata.name.as_str()).collect();
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

    /// They say so themselves.
    #[test]
    fn examples_of_the_documentation_can_be_applied_as_they_are() {
        let page = include_str!("../../../docs/SERVICES.md");
        let examples: Vec<&str> =
            page.split("```").filter(|block| block.trim_start().starts_with("apiVersion:")).collect();
        assert!(examples.len() >= 6, "{} examples", examples.len());
        for example in examples {
            assert_eq!(parse(example).len(), 1, "{example}");
        }
    }

    #[test]
    fn ten_thousand_services_are_one_text() {
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
        assert_eq!(manifests[9_999].metadata.name.as_str(), "web-9999");
    }

    #[test]
    fn a_document_with_a_mistake_does_not_hold_up_the_others() {
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
        let names: Vec<&str> = manifests.iter().map(|manifest| manifest.metadata.name.as_str()).collect();
        assert_eq!(names, ["first", "second"]);
        let [form, sense, yaml] = &mistakes[..] else { panic!("{mistakes:#?}") };
        assert!(form.starts_with("line 14, column 10: ports: a list is wanted here"), "{form}");
        assert!(sense.starts_with("line 17: service no-sense: spec.ports[0].port: 0 is none"), "{sense}");
        assert!(yaml.starts_with("line 38, column "), "{yaml}");
    }

    /// What anchors make of a short text.
    #[test]
    fn a_document_cannot_grow_without_bound() {
        let mut text = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n".to_owned();
        for level in 1..8 {
            let again = format!("*a{}, ", level - 1).repeat(10);
            text += &format!("a{level}: &a{level} [{again}]\n");
        }
        assert_eq!(Manifests::parse(&text).manifests, []);
        let ports = "{port: 80}, ".repeat(MAX_NODES / 2);
        let Manifests { manifests, mistakes } = Manifests::parse(&format!("{HEAD}  ports: [{ports}]\n"));
        assert_eq!(manifests, []);
        assert!(
            mistakes[0].ends_with("there is more in this document than a service can have"),
            "{mistakes:?}"
        );
    }

    #[test]
    fn mistakes_are_told_with_their_line() {
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
            "line 6, column 18: sourceRanges: \"here\" is no network: write it as 192.0.2.0/24",
        );
        check(
            &spec("  sourceRanges: [192.0.2.0/24, 192.0.2.0/33]\n"),
            "line 6, column 32: \"192.0.2.0/33\" is no network",
        );
        check(
            &spec("  colour: 1\n"),
            "line 6, column 3: unknown field `colour`, expected one of virtualIp, ",
        );
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
        check(&spec("  ports: {port: 80}\n"), "line 6, column 10: ports: a list is wanted here");
        check(&spec("  affinity: clientIp\n"), "line 6, column 13: affinity: fields are wanted here");
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
        check("metadata: {name: }\n", "line 1, column 16: name: nothing is written here");
        check("[1]", "line 1, column 1: not a manifest");
        check("hello", "line 1, column 1: not a manifest");
        check("apiVersion: [", "line 1");
        check(&" ".repeat(MAX_MANIFEST_BYTES + 1), "8388609 bytes; at most 8388608 are read");
    }
}
