//! Each case changes one answer of a healthy node: exactly the check concerned must report it.

use node_api::{Halted, Warning};

use super::{sample, *};
use crate::{
    check::expect::expect,
    finding::Verdict::{self, Fail, Ok, Unknown, Warn},
};

fn by_name(findings: Vec<Finding>, name: &str) -> Finding {
    findings.into_iter().find(|finding| finding.check == name).expect("every check has its finding")
}

/// Changes a healthy node's answers: the named check reports it, and no other does.
#[track_caller]
fn check(spoil: impl FnOnce(&mut Answers), name: &str, verdict: Verdict, seen: &str, remedy: &str) {
    let mut answers = sample::answers();
    spoil(&mut answers);
    let findings = all(&Agent::Answers(Box::new(answers)));
    let others: Vec<_> = findings.iter().filter(|it| it.verdict != Ok && it.check != name).collect();
    assert!(others.is_empty(), "{others:?}");
    expect(by_name(findings, name), verdict, seen, remedy);
}

#[test]
fn agent_checks_of_a_healthy_node_are_ok() {
    check(|_| (), "agent", Ok, "n1 0.1.0 answers", "");
    check(|_| (), "node", Ok, "ready, 2 endpoints", "");
    check(|_| (), "gossip", Ok, "2 peers alive", "");
    check(|_| (), "mtu", Ok, "endpoints 1450, eth0 1500", "");
    check(|_| (), "state", Ok, "desired and observed state are equal", "");
}

#[test]
fn agent_checks_are_all_reported_with_and_without_an_agent() {
    let names = |agent: Agent| all(&agent).into_iter().map(|finding| finding.check).collect::<Vec<_>>();
    let answered = names(Agent::Answers(Box::new(sample::answers())));
    assert_eq!(answered[1..], NAMES);
    assert_eq!(answered, names(Agent::Absent("no".to_owned())));
}

#[test]
fn agent_that_does_not_answer() {
    let check = |agent: Agent, verdict, seen, remedy| {
        let findings = all(&agent);
        expect(by_name(findings.clone(), "agent"), verdict, seen, remedy);
        expect(by_name(findings, "lease"), Unknown, "needs an agent", remedy);
    };
    check(Agent::Absent("no answer on a.sock".to_owned()), Unknown, "a.sock", "warrend --config");
    check(Agent::Forbidden("no permission".to_owned()), Unknown, "no permission", "sudo warren doctor");
    check(Agent::Broken("no answer within 15 s".to_owned()), Fail, "within 15 s", "journalctl -u warrend");
}

#[test]
fn node_is_ready_or_not() {
    let reason = "fleet.pools here is 10.9.0.0/16: correct warren.toml".to_owned();
    check(
        |it| it.status.halted = Some(Halted { reason }),
        "node",
        Fail,
        "halted: fleet.pools",
        "warrend check",
    );
    check(|it| it.status.ready = false, "node", Warn, "not ready", "warren status");
    let warning = |text: &str| Warning { text: text.to_owned() };
    let warned = vec![warning("claims wait"), warning("no key")];
    check(|it| it.status.warnings = warned, "warnings", Warn, "claims wait; no key", "follow the warning");
}

#[test]
fn gossip_peers() {
    check(
        |it| it.status.gossip.peers[1].alive = false,
        "gossip",
        Warn,
        "1 of 2 peers silent: n3 at 172.30.1.3:7950",
        "warren node remove",
    );
    check(|it| it.status.gossip.refused_datagrams = 1, "gossip", Warn, "1 datagram rejected", "gossip.key");
    check(|it| it.status.gossip.enabled = false, "gossip", Ok, "one node", "");
}

#[test]
fn mtu_must_fit_the_underlay() {
    check(|it| it.underlay_mtu_bytes = Some(1_499), "mtu", Fail, "eth0 1499", "ip link set eth0 mtu 1500");
    check(|it| it.underlay_mtu_bytes = Some(9_000), "mtu", Ok, "eth0 9000", "");
    check(|it| it.underlay_mtu_bytes = None, "mtu", Unknown, "eth0 is not in this", "ip link show eth0");
    check(|it| it.base = Result::Ok(None), "mtu", Unknown, "no pod CIDR", "warren status");
    check(|it| it.base = Err("broke".to_owned()), "mtu", Unknown, "broke", "warren state");
}

#[test]
fn underlay_that_is_gone() {
    check(|_| (), "underlay", Ok, "eth0 172.30.1.1: the configured address", "");
    let problem = "no interface has a default route".to_owned();
    check(
        |it| it.status.underlay.problem = Some(problem),
        "underlay",
        Fail,
        "no interface has",
        "ip -br addr",
    );
}

#[test]
fn maps_and_plan() {
    let with_entries = |entries| MapFill { name: "WARREN_EP_V4".to_owned(), entries, max_entries: 100 };
    check(|it| it.status.maps[0] = with_entries(89), "maps", Ok, "none at 90%", "");
    check(|it| it.status.maps[0] = with_entries(97), "maps", Warn, "WARREN_EP_V4 at 97%", "warren map list");
    let full = vec!["WARREN_NODES".to_owned()];
    check(|it| it.status.apply.full = full, "maps", Fail, "full: WARREN_NODES", "warren map list");
    let failing = vec!["attach endpoint 3: no such device".to_owned()];
    check(|it| it.status.apply.failing = failing, "plan", Fail, "no such device", "warren endpoint delete");
    check(|it| it.status.apply.pending = 2, "plan", Warn, "2 keys still", "warren doctor");
}

#[test]
fn state_differences_are_counted_and_the_first_shown() {
    let differences: Vec<_> = (1..=6).map(|number| format!("ipcache 10.0.0.{number}/32: missing")).collect();
    let diff =
        |count: usize| Result::Ok(StateDiff { differences: differences[..count].to_vec(), repaired: false });
    check(|it| it.diff = diff(1), "state", Warn, "1 difference: ipcache 10.0.0.1/32: missing", "--repair");
    check(|it| it.diff = diff(6), "state", Warn, "10.0.0.4/32: missing and 2 more", "--repair");
    check(|it| it.diff = Err("broke".to_owned()), "state", Unknown, "broke", "warren state diff");
}

#[test]
fn store_is_checked() {
    check(|it| it.status.store.connected = false, "store", Fail, "the watch does not run", "etcdctl");
    check(|it| it.status.store.lease_held = false, "lease", Warn, "not requested yet", "etcdctl");
    let old = Some("3.4.23".to_owned());
    check(|it| it.status.store.members[0].version = old, "etcd-version", Warn, "3.4.23", "upgrade etcd");
}
