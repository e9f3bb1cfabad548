//! The difference between the kernel and the desired state: none on an idle fleet, and repaired where there is one.

use std::time::Duration;

use anyhow::{Context, ensure};
use chaos_lab::{Endpoint, ask, process, wait};
use node_api::{AuditStatus, StateDiff, Status};

use crate::support::{SOON, TestLab, ipcache_identity};

/// Long enough that a test sees a difference before the audit repairs it, short enough to wait for it.
const AUDIT_INTERVAL: Duration = Duration::from_secs(4);

#[test]
fn audit_shows_and_repairs_deleted_entries() {
    let flags = ["--datapath-audit-interval".to_owned(), format!("{}s", AUDIT_INTERVAL.as_secs())];
    let Some(lab) = TestLab::up_with("drift", 2, 1, |spec| spec.agent_flags = flags.into()) else { return };
    let endpoint = lab.endpoint("n2", "web", "app=web");
    lab.wait_in_ipcache("n1", [&endpoint]);

    for node in ["n1", "n2"] {
        let (code, text, _) = lab.warren(node, &["state", "diff"]);
        assert_eq!((code, text.as_str()), (0, "desired and observed state are equal\n"), "{node}");
    }

    // Right after an audit there is time until the next one.
    let audit = || audit(&lab);
    let earlier = audit().unix_ms;
    let before = wait::until("an audit", SOON, || {
        let now = audit();
        ensure!(now.unix_ms != earlier, "there was none");
        Ok(now)
    })
    .unwrap();
    delete_from_ipcache(&lab, "n1", &endpoint);
    let (code, text, _) = lab.warren("n1", &["state", "diff", "-o", "json"]);
    let shown: StateDiff = serde_json::from_str(&text).unwrap();
    assert_eq!(code, 1, "{text}");
    assert!(!shown.repaired);
    assert_eq!(shown.differences.len(), 1, "{text}");
    assert!(shown.differences[0].contains(&endpoint.address.to_string()), "{text}");
    assert_eq!(ipcache_identity(&lab.api("n1"), &endpoint).unwrap(), None, "showing repairs nothing");

    wait::until("the audit to repair the entry", SOON, || {
        let identity = ipcache_identity(&lab.api("n1"), &endpoint)?.context("it is not there")?;
        ensure!(identity == endpoint.identity, "it has identity {identity}");
        let repaired = audit().repaired_total;
        ensure!(repaired == before.repaired_total + 1, "{repaired} are counted as repaired");
        Ok(())
    })
    .unwrap();

    // An audit on request repairs the difference at once.
    delete_from_ipcache(&lab, "n1", &endpoint);
    let (code, text, _) = lab.warren("n1", &["state", "diff", "--repair"]);
    assert_eq!(code, 0, "{text}");
    wait::until("the entry", SOON, || {
        ipcache_identity(&lab.api("n1"), &endpoint)?.context("it is not there").map(drop)
    })
    .unwrap();
    let (code, text, _) = lab.warren("n1", &["state", "diff"]);
    assert_eq!(code, 0, "{text}");
}

fn audit(lab: &TestLab) -> AuditStatus {
    let status: Status = ask(lab.api("n1").status()).unwrap();
    status.audit
}

/// Deletes an entry as an operator would: with bpftool, from the pinned map.
fn delete_from_ipcache(lab: &TestLab, node: &str, endpoint: &Endpoint) {
    let std::net::IpAddr::V4(address) = endpoint.address else { panic!("IPv4 only") };
    let pin = find_pin(&lab.pin_path(node), "WARREN_IPC_V4").expect("the ipcache is pinned");
    let key = address.octets().map(|byte| format!("{byte:02x}"));
    let mut arguments = vec!["map", "delete", "pinned", pin.to_str().unwrap(), "key", "hex"];
    arguments.extend(key.iter().map(String::as_str));
    process::run(&lab.name().machine_namespace(node), "bpftool", &arguments).unwrap();
}

fn find_pin(folder: &std::path::Path, name: &str) -> Option<std::path::PathBuf> {
    let entries: Vec<_> = std::fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path()).collect();
    let here = entries.iter().find(|path| path.file_name().is_some_and(|it| it == name)).cloned();
    here.or_else(|| entries.iter().filter(|path| path.is_dir()).find_map(|path| find_pin(path, name)))
}
