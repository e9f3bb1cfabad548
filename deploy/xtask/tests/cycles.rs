//! Files of a crate import each other in one direction, except for a module and its own parent.

use std::collections::BTreeMap;

use deploy_xtask::{Imports, root, workspace};

/// The number of imports that are part of a cycle, of each crate that still has some. A number only ever decreases, and a crate
/// without cycles leaves the list.
const KNOWN: [(&str, usize); 9] = [
    ("chaos-lab", 4),
    ("chaos-sim", 2),
    ("datapath-ebpf", 2),
    ("datapath-linux", 38),
    ("datapath-plan", 21),
    ("kvstore-etcd", 2),
    ("kvstore-schema", 8),
    ("kvstore-store", 2),
    ("node-facts", 2),
];

#[test]
fn files_have_no_import_cycles() {
    let root = root();
    let mut counts = BTreeMap::new();
    let mut report = String::new();
    for package in workspace() {
        for target in package.targets.iter().filter(|target| target.is_shipped()) {
            let imports = Imports::of_crate(&target.src_path);
            let cycles = imports.in_cycles();
            if cycles.is_empty() {
                continue;
            }
            *counts.entry(package.name.clone()).or_insert(0) += cycles.len();
            let short =
                |path: &std::path::Path| path.strip_prefix(&root).unwrap_or(path).display().to_string();
            for (from, to) in cycles {
                report += &format!("  {} imports from {}\n", short(from), short(to));
            }
        }
    }
    let known: BTreeMap<String, usize> = KNOWN.map(|(name, count)| (name.to_owned(), count)).into();
    assert_eq!(counts, known, "KNOWN must be exact, and may only shrink; imports in cycles:\n{report}");
}
