//! The agent's own files: configuration and snapshot.

use std::path::Path;

use chaos_sim::carry_out;
use datapath_plan::FakeDatapath;
use node_agent::{config, snapshot};
use node_core::{Event, Node};

use super::{Target, handle::node_config, sample};

/// The configuration file. What is taken is shown by `check` and read again as the same.
pub const CONFIG: Target = Target {
    name: "config",
    run: configuration,
    seeds: configuration_seeds,
    words: &[
        "[etcd]\n",
        "[fleet]\n",
        "pools = ",
        "[",
        "]",
        "\"10.0.0.0/8\"",
        " = -1\n",
        "\"0s\"",
        "\"99999999999999999999h\"",
        "= {",
    ],
    rounds: 300,
};

fn configuration(bytes: &[u8]) {
    let path = Path::new("/etc/warren/warren.toml");
    match config::load(Some((path, &String::from_utf8_lossy(bytes))), &[]) {
        Ok(taken) => {
            let shown = config::render(&taken);
            let again = config::load(Some((path, &shown)), &[]);
            assert_eq!(again.as_ref(), Ok(&taken), "what `check` shows is another configuration:\n{shown}");
            assert!(config::to_json(&taken).is_object());
        }
        Err(mistakes) => assert!(!mistakes.to_string().is_empty(), "refused without a reason"),
    }
}

fn configuration_seeds() -> Vec<Vec<u8>> {
    let default = config::load(
        None,
        &[config::Override {
            key: "etcd.endpoints",
            place: "a test".to_owned(),
            text: "http://127.0.0.1:2379".to_owned(),
        }],
    );
    let whole = default.map(|config| config::render(&config)).unwrap_or_default();
    let small = "store = \"memory\"\n[fleet]\npools = [\"10.0.0.0/8\"]\nblock_prefix_v4 = 24\n[node]\nname = \"n1\"\nlabels = { rack = \"r1\" }\n";
    vec![whole.into_bytes(), small.as_bytes().to_vec()]
}

/// The snapshot's file (first byte even), or what lies under a right checksum (odd). What is taken is written back
/// and read as the same, and a node starts with it.
pub const SNAPSHOT: Target = Target {
    name: "snapshot",
    run: snapshot_file,
    seeds: snapshot_seeds,
    words: &["WRNSNAP\n", "n1", "n2", "test", "machine-1", "f00", "app", "web"],
    rounds: 1_500,
};

fn snapshot_file(bytes: &[u8]) {
    let Some((kind, bytes)) = bytes.split_first() else { return };
    let taken =
        if kind & 1 == 0 { snapshot::decode(bytes) } else { snapshot::decode(&snapshot::seal(bytes)) };
    let Ok(taken) = taken else { return };
    let again = snapshot::encode(&taken).expect("what was read can be written");
    assert_eq!(snapshot::decode(&again).as_ref().ok(), Some(&taken));
    start(taken);
}

/// A node takes it, or not; either way it starts, on an empty kernel.
fn start(snapshot: node_core::Snapshot) {
    let mut node = Node::new(node_config());
    let mut kernel = FakeDatapath::new();
    carry_out(&mut node, &mut kernel, Event::Started { snapshot: Some(Box::new(snapshot)) });
    node.status();
}

fn snapshot_seeds() -> Vec<Vec<u8>> {
    let file = snapshot::encode(&sample::snapshot()).expect("a sample is small");
    vec![[&[0], &file[..]].concat(), [&[1], &file[snapshot::HEADER_BYTES..]].concat()]
}
