//! Names, labels, patterns and selectors.

use identity::{Identity, LabelPattern, Labels, Selector, check_name};

use super::Target;

/// The first byte selects the kind. An accepted text is written and read back as equal.
pub const LABEL: Target = Target {
    name: "label",
    run,
    seeds,
    words: &[
        "app=web",
        "=",
        ",",
        "matchLabels",
        "\"operator\":\"NotIn\"",
        "\"values\":[]",
        "k8s:",
        "*",
        "\u{e9}",
    ],
    rounds: 10_000,
};

fn run(bytes: &[u8]) {
    let Some((kind, bytes)) = bytes.split_first() else { return };
    let text = String::from_utf8_lossy(bytes);
    match kind {
        b'0' => {
            let Ok(labels) = text.parse::<Labels>() else { return };
            assert_eq!(labels.to_string().parse().as_ref(), Ok(&labels));
            let json = serde_json::to_string(&labels).expect("labels are JSON");
            let again: Labels = serde_json::from_str(&json).expect("our own labels are taken");
            assert_eq!((again.digest(), &again), (labels.digest(), &labels));
        }
        b'1' => {
            let Ok(selector) = serde_json::from_slice::<Selector>(bytes) else { return };
            let json = serde_json::to_vec(&selector).expect("a selector is JSON");
            assert_eq!(serde_json::from_slice::<Selector>(&json).ok().as_ref(), Some(&selector));
            drop(selector.validate());
            selector.matches(&Labels::default());
            selector.matches(&selector.match_labels);
        }
        b'2' => drop(text.parse::<LabelPattern>()),
        b'3' => {
            // A name becomes a part of keys, file names and commands.
            if check_name(&text).is_ok() {
                assert!(text.is_ascii() && !text.contains(['/', ' ', '\0', '"', '\'']), "{text:?}");
            }
        }
        _ => {
            if let Ok(identity) = serde_json::from_slice::<Identity>(bytes) {
                assert!(identity.get() < Identity::LOCAL_BIT << 1);
            }
        }
    }
}

fn seeds() -> Vec<Vec<u8>> {
    [
        "0app=web,version=2",
        "0app.example.org/name=",
        r#"1{"matchLabels":{"app":"web"},"matchExpressions":[{"key":"zone","operator":"In","values":["a","b"]}]}"#,
        "2app",
        "2!version",
        "3web-1.example",
        "4256",
    ]
    .map(|text| text.as_bytes().to_vec())
    .into()
}
