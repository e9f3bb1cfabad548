//! The agent's own files: configuration, snapshot, and endpoint files.

use std::path::Path;

use chaos_sim::carry_out;
use datapath_plan::FakeDatapath;
use node_agent::{
    config, endpoints,
    sealed::{Form, HEADER_BYTES},
    snapshot,
};
use node_core::{Event, Node, SavedEndpoint, Snapshot};
use serde::{Serialize, de::DeserializeOwned};

use super::{Target, handle::node_config, sample};

/// The configuration file. An accepted one is shown by `check` and read back as equal.
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

/// The snapshot's file (first byte even), or the content under a correct checksum (odd). An accepted one is written
/// and read back as equal, and a node starts with it.
pub const SNAPSHOT: Target = Target {
    name: "snapshot",
    run: snapshot_file,
    seeds: snapshot_seeds,
    words: &["WRNSNAP\n", "n1", "n2", "test", "machine-1", "f00", "app", "web"],
    rounds: 1_500,
};

fn snapshot_file(bytes: &[u8]) {
    if let Some(taken) = sealed::<Snapshot>(snapshot::FORM, bytes) {
        start(Some(Box::new(taken)), vec![sample::saved_endpoint()]);
    }
}

fn snapshot_seeds() -> Vec<Vec<u8>> {
    seeds(snapshot::FORM, &sample::snapshot())
}

/// An endpoint file, in the same two ways.
pub const ENDPOINT_FILE: Target = Target {
    name: "endpoint-file",
    run: endpoint_file,
    seeds: endpoint_seeds,
    words: &["WRNENDP\n", "web-1", "eth0", "/run/netns/web", "app"],
    rounds: 1_500,
};

fn endpoint_file(bytes: &[u8]) {
    if let Some(taken) = sealed::<SavedEndpoint>(endpoints::FORM, bytes) {
        start(Some(Box::new(sample::snapshot())), vec![taken]);
    }
}

fn endpoint_seeds() -> Vec<Vec<u8>> {
    seeds(endpoints::FORM, &sample::saved_endpoint())
}

/// The content of a file, if it is valid.
fn sealed<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(
    form: Form,
    bytes: &[u8],
) -> Option<T> {
    let (kind, bytes) = bytes.split_first()?;
    let taken = if kind & 1 == 0 { form.decode(bytes) } else { form.decode(&form.seal(bytes)) };
    let taken: T = taken.ok()?;
    let again = form.encode(&taken).expect("what was read can be written");
    assert_eq!(form.decode::<T>(&again).as_ref().ok(), Some(&taken));
    Some(taken)
}

fn seeds(form: Form, sample: &impl Serialize) -> Vec<Vec<u8>> {
    let file = form.encode(sample).expect("a sample is small");
    vec![[&[0], &file[..]].concat(), [&[1], &file[HEADER_BYTES..]].concat()]
}

/// A node accepts them or not; either way it starts, on an empty kernel.
fn start(snapshot: Option<Box<Snapshot>>, endpoints: Vec<SavedEndpoint>) {
    let mut node = Node::new(node_config());
    let mut kernel = FakeDatapath::new();
    carry_out(&mut node, &mut kernel, Event::Started { snapshot, endpoints });
    node.status();
}
