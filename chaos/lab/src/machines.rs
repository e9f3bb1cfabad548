//! Sets of machines, as in faults and scenarios.

use anyhow::{Result, bail};

use crate::Spec;

/// Parses the names of machines: `n1`, `e2`, `nodes`, `etcd`, `all`, `majority` and `minority` (of the etcd members),
/// or several of these separated by commas. Each machine appears once, in order.
///
/// # Errors
/// When the lab has no such machine.
pub fn parse(spec: &Spec, text: &str) -> Result<Vec<String>> {
    let nodes: Vec<String> = spec.node_names().collect();
    let members: Vec<String> = spec.etcd_names().collect();
    let majority = members.len() / 2 + 1;
    let mut found = Vec::new();
    for word in text.split(',') {
        let named: Vec<String> = match word {
            "nodes" => nodes.clone(),
            "etcd" => members.clone(),
            "all" => nodes.iter().chain(&members).cloned().collect(),
            "majority" => members.iter().take(majority).cloned().collect(),
            "minority" => members.iter().skip(majority).cloned().collect(),
            name => nodes.iter().chain(&members).filter(|it| *it == name).cloned().collect(),
        };
        if named.is_empty() {
            bail!(
                "this lab has no machine {word:?}: it has {}; nodes, etcd, all, majority and minority (of the etcd members) name several",
                nodes.iter().chain(&members).cloned().collect::<Vec<_>>().join(", ")
            );
        }
        for name in named {
            if !found.contains(&name) {
                found.push(name);
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machine_sets_are_parsed() {
        let spec = Spec {
            nodes: 2,
            etcd: 3,
            pools: Vec::new(),
            block_prefix_v4: 24,
            programs: "/".into(),
            agent_flags: Vec::new(),
        };
        for (text, expected) in [
            ("n2", "n2"),
            ("e3,n1", "e3 n1"),
            ("nodes", "n1 n2"),
            ("etcd,e1", "e1 e2 e3"),
            ("all", "n1 n2 e1 e2 e3"),
            ("majority", "e1 e2"),
            ("minority,nodes", "e3 n1 n2"),
        ] {
            assert_eq!(parse(&spec, text).unwrap().join(" "), expected, "{text}");
        }
        for text in ["", "n3", "n1,", "e", "N1"] {
            let error = parse(&spec, text).unwrap_err().to_string();
            assert!(error.contains("it has n1, n2, e1, e2, e3"), "{error}");
        }
        assert!(parse(&Spec { etcd: 1, ..spec }, "minority").is_err());
    }
}
