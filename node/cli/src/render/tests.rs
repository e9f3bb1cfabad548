//! Rendered answers, compared with the files in `golden/`. `UPDATE_GOLDEN=1 cargo test -p node-cli` rewrites the files; read
//! their diff like code.

use std::{env, fs, path::Path};

use node_api::{KindName, Listing, Object, StateDiff, testing};

use super::*;

const PLAIN: Style = Style { colour: false };

/// Compares a text with its golden file.
fn check(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(format!("{name}.txt"));
    if env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, text).unwrap();
    }
    let golden = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, golden, "{} differs; UPDATE_GOLDEN=1 rewrites it", path.display());
    for line in text.lines() {
        assert_eq!(line, line.trim_end(), "blanks at the end of a line of {name}");
    }
}

#[test]
fn status_of_a_healthy_node() {
    check("status-healthy", &status(&testing::status(), PLAIN));
}

#[test]
fn status_of_a_troubled_node() {
    check("status-troubled", &status(&sample::troubled(), PLAIN));
}

#[test]
fn status_of_a_starting_node() {
    check("status-starting", &status(&sample::starting(), PLAIN));
}

#[test]
fn doctor_findings_with_their_remedies() {
    check("doctor", &doctor(&sample::report(), PLAIN));
}

#[test]
fn status_text_is_the_same_with_colours() {
    let coloured = status(&sample::troubled(), Style { colour: true });
    assert!(coloured.contains("\x1b[31mFAIL\x1b[0m") && coloured.contains("\x1b[33mWARN\x1b[0m"));
    let mut plain = coloured;
    for code in ["\x1b[31m", "\x1b[32m", "\x1b[33m", "\x1b[0m"] {
        plain = plain.replace(code, "");
    }
    assert_eq!(plain, status(&sample::troubled(), PLAIN));
}

#[test]
fn listings() {
    check("nodes", &nodes(&sample::nodes(), PLAIN));
    let all = vec![sample::endpoint(), sample::failing_endpoint(), sample::waiting_endpoint()];
    check("endpoints", &endpoints(&Listing::new(all, None), PLAIN));
    check("endpoints-none", &endpoints(&Listing::new(Vec::new(), None), PLAIN));
    check("identities", &identities(&sample::identities(), PLAIN));
    check("ips", &ips(&sample::ips(), PLAIN));
    check("maps", &maps(&sample::maps(), PLAIN));
    check("map-dump", &map_dump(&sample::map_dump(), PLAIN));
    check("flows", &flows(&sample::flows(), PLAIN));
    check("drops", &drops(&sample::drops(), PLAIN));
}

#[test]
fn endpoint_details() {
    check("endpoint", &endpoint(&sample::endpoint(), PLAIN));
    check("endpoint-failing", &endpoint(&sample::failing_endpoint(), PLAIN));
    check("endpoint-waiting", &endpoint(&sample::waiting_endpoint(), PLAIN));
    let added = [false, true].map(|existed| endpoint_added(&sample::endpoint_added(existed), PLAIN));
    check("endpoint-added", &added.concat());
}

#[test]
fn observe_prints_one_line_per_event() {
    let lines: Vec<String> = sample::events().iter().map(|one| event(one, PLAIN) + "\n").collect();
    check("observe", &lines.concat());
}

#[test]
fn state_and_its_differences() {
    check("state", &state(&sample::state(), PLAIN));
    check("state-empty", &state(&node_api::State::default(), PLAIN));
    let diff = |repaired| StateDiff {
        differences: vec![
            "ipcache 10.200.2.2/32: missing in the kernel".to_owned(),
            "route 10.200.9.0/24: not wanted".to_owned(),
        ],
        repaired,
    };
    check("state-diff", &state_diff(&diff(false), PLAIN));
    check("state-diff-repaired", &state_diff(&diff(true), PLAIN));
    check("state-diff-none", &state_diff(&StateDiff { differences: Vec::new(), repaired: false }, PLAIN));
}

#[test]
fn numbers_have_readable_units() {
    assert_eq!(duration(340), "340ms");
    assert_eq!(duration(12_000), "12s");
    assert_eq!(duration(184_000), "3m 4s");
    assert_eq!(duration(93_600_000), "1d 2h");
    assert_eq!([0, 1, 2].map(|number| count(number, "node")), ["0 nodes", "1 node", "2 nodes"]);
    assert_eq!(bytes(900), "900 B");
    assert_eq!(bytes(1_536), "1.5 KiB");
    assert_eq!(bytes(5 << 30), "5.0 GiB");
    assert_eq!(time(1_700_000_000_123_456), "2023-11-14T22:13:20.123Z");
}

#[test]
fn service_frontends_and_backends() {
    let services = sample::services().items;
    let each: Vec<String> = services.iter().map(|one| service(one, PLAIN)).collect();
    check("service", &each.concat());
    let objects_of = |services: Vec<node_api::Service>| {
        let items = services.into_iter().map(Object::Service).collect();
        objects(KindName::Service, &Listing::new(items, None))
    };
    check("services", &objects_of(services));
    check("services-none", &objects_of(Vec::new()));
}
