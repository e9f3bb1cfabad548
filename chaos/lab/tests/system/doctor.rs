//! The doctor in a fleet: what it learns from other nodes and from the kernel.

use crate::support::TestLab;

/// Verdict and text of one finding of `warren doctor` on n1.
fn finding(lab: &TestLab, check: &str) -> (String, String) {
    let (_, stdout, stderr) = lab.warren("n1", &["doctor", "-o", "json"]);
    let report: serde_json::Value =
        serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{error}: {stdout}{stderr}"));
    let findings = report["findings"].as_array().expect("findings");
    let found = findings.iter().find(|finding| finding["check"] == check).expect("the check has a finding");
    let text = |field: &str| found[field].as_str().expect("a text").to_owned();
    (text("verdict"), text("seen"))
}

/// Checks one finding of the doctor on n1.
#[track_caller]
pub fn check(lab: &TestLab, name: &str, verdict: &str, seen: &str) {
    let (actual, text) = finding(lab, name);
    assert_eq!(actual, verdict, "{name}: {text}");
    assert!(text.contains(seen), "{name} says {text:?}, not {seen:?}");
}

fn run(lab: &TestLab, node: &str, words: &str) {
    let mut command = lab.command(node, "sh").unwrap();
    assert!(command.args(["-c", words]).status().unwrap().success(), "{words}");
}

#[test]
fn doctor_finds_a_blocked_tunnel_and_foreign_programs() {
    let Some(lab) = TestLab::up("doctor", 2, 1) else { return };
    check(&lab, "tunnel", "ok", "1 node answer");
    check(&lab, "path-mtu", "ok", "1450 bytes pass to 1 node");
    check(&lab, "clock-skew", "ok", "1 node");
    check(&lab, "hooks", "ok", "no others");

    run(&lab, "n2", "nft add table inet blocked");
    run(&lab, "n2", "nft add chain inet blocked in '{ type filter hook input priority 0; }'");
    run(&lab, "n2", "nft add rule inet blocked in udp dport 8472 drop");
    check(&lab, "tunnel", "fail", "n2");
    check(&lab, "clock-skew", "unknown", "reported its time");
    let (code, ..) = lab.warren("n1", &["doctor"]);
    assert_eq!(code, 1, "a failure is an exit code");
    run(&lab, "n2", "nft flush chain inet blocked in");
    run(&lab, "n2", "nft add rule inet blocked in udp dport 8472 udp length gt 1400 drop");
    check(&lab, "tunnel", "ok", "1 node answer");
    check(&lab, "path-mtu", "fail", "1450 bytes do not pass, small ones do: n2");
    run(&lab, "n2", "nft delete table inet blocked");
    check(&lab, "path-mtu", "ok", "1450 bytes");
    check(&lab, "tunnel", "ok", "1 node answer");

    run(&lab, "n1", "tc qdisc add dev warren_net clsact");
    run(&lab, "n1", "tc filter add dev warren_net ingress bpf bytecode '1,6 0 0 4294967295' classid 1:1");
    check(&lab, "hooks", "warn", "bpf at tc ingress of warren_net");
}
