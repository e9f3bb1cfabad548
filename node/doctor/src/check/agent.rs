//! The checks that need the agent. Without an agent each of them is unknown, so that programs find every name in every report.

use node_api::{ApplyStatus, GossipStatus, MapFill, StateDiff, Status, UnderlayStatus};

use super::{
    etcd, hooks, peers,
    text::{count, some},
};
use crate::{
    finding::Finding,
    gather::{Agent, Answers},
};

/// The fill of a map that is reported, in percent.
pub const FULL_MAP_PERCENT: u64 = 90;

/// The names of these checks, without `agent` itself.
const NAMES: [&str; 18] = [
    "node",
    "warnings",
    "store",
    "etcd-members",
    "etcd-version",
    "lease",
    "gossip",
    "underlay",
    "tunnel",
    "path-mtu",
    "clock-skew",
    "mtu",
    "hooks",
    "sockets",
    "xdp",
    "maps",
    "plan",
    "state",
];
const START: &str = "warrend check, then start it: warrend --config /etc/warren/warren.toml";

pub(super) fn all(agent: &Agent) -> Vec<Finding> {
    const CHECK: &str = "agent";
    let (first, remedy) = match agent {
        Agent::Answers(answers) => return of_answers(answers),
        Agent::Absent(error) => (Finding::unknown(CHECK, error, START), START),
        Agent::Forbidden(error) => {
            (Finding::unknown(CHECK, error, "sudo warren doctor"), "sudo warren doctor")
        }
        Agent::Broken(error) => {
            let remedy = "look at its log (journalctl -u warrend -n 100), and restart it: flows go on";
            (Finding::fail(CHECK, error, remedy), remedy)
        }
    };
    let unknown = NAMES.map(|name| Finding::unknown(name, "needs an agent", remedy));
    [first].into_iter().chain(unknown).collect()
}

fn of_answers(answers: &Answers) -> Vec<Finding> {
    let status = &answers.status;
    vec![
        Finding::ok("agent", format!("{} {} answers", status.node, status.agent_version)),
        node(status),
        warnings(status),
        etcd::connection(&status.store),
        etcd::members(&status.store),
        etcd::versions(&status.store),
        etcd::lease(&status.store),
        gossip(&status.gossip),
        underlay(&status.underlay),
        peers::tunnel(answers),
        peers::path_mtu(answers),
        peers::clock_skew(answers),
        mtu(answers),
        hooks::hooks(&answers.hooks),
        hooks::sockets(&status.programs),
        hooks::xdp(&status.programs),
        maps(&status.maps, &status.apply.full),
        plan(&status.apply),
        state(&answers.diff),
    ]
}

fn node(status: &Status) -> Finding {
    const CHECK: &str = "node";
    match &status.halted {
        Some(halted) => Finding::fail(
            CHECK,
            format!("halted: {}", halted.reason),
            "correct that, verify with `warrend check`, and restart warrend",
        ),
        None if status.ready => Finding::ok(CHECK, format!("ready, {}", count(status.endpoints, "endpoint"))),
        None => Finding::warn(
            CHECK,
            "not ready: no pod CIDR, or no devices yet",
            "warren status; if this persists: is a block free in fleet.pools, and does etcd answer?",
        ),
    }
}

fn warnings(status: &Status) -> Finding {
    const CHECK: &str = "warnings";
    if status.warnings.is_empty() {
        return Finding::ok(CHECK, "none");
    }
    let texts: Vec<&str> = status.warnings.iter().map(|warning| warning.text.as_str()).collect();
    Finding::warn(CHECK, texts.join("; "), "follow the warning; `warren status` shows when it has ended")
}

fn gossip(gossip: &GossipStatus) -> Finding {
    const CHECK: &str = "gossip";
    if !gossip.enabled {
        return Finding::ok(CHECK, "off: a fleet of one node");
    }
    let silent: Vec<String> = (gossip.peers.iter())
        .filter(|peer| !peer.alive)
        .map(|peer| format!("{} at {}", peer.node, peer.address))
        .collect();
    if !silent.is_empty() {
        return Finding::warn(
            CHECK,
            format!("{} of {} silent: {}", silent.len(), count(gossip.peers.len(), "peer"), some(&silent)),
            "on the silent node: warren status; is its gossip port (UDP) open between the nodes, and the gossip key the same? A node that is gone for good: warren node remove NAME",
        );
    }
    if gossip.refused_datagrams > 0 {
        return Finding::warn(
            CHECK,
            format!("{} rejected since start", count(gossip.refused_datagrams, "datagram")),
            "sha256sum /etc/warren/gossip.key on every node: the keys must be equal; otherwise a stranger sends to the gossip port",
        );
    }
    Finding::ok(CHECK, format!("{} alive", count(gossip.peers.len(), "peer")))
}

fn underlay(underlay: &UnderlayStatus) -> Finding {
    const CHECK: &str = "underlay";
    match &underlay.problem {
        None => {
            Finding::ok(CHECK, format!("{} {}: {}", underlay.interface, underlay.address, underlay.reason))
        }
        Some(problem) => Finding::fail(
            CHECK,
            format!("{problem}; {} {} remains in use", underlay.interface, underlay.address),
            "ip -br addr; give the node its address back, or correct datapath.underlay_address or datapath.underlay_interface and restart warrend",
        ),
    }
}

fn mtu(answers: &Answers) -> Finding {
    const CHECK: &str = "mtu";
    let underlay = &answers.status.underlay;
    let interface = &underlay.interface;
    let base = match &answers.base {
        Err(error) => return Finding::unknown(CHECK, error, "warren state"),
        Ok(None) => return Finding::unknown(CHECK, "the node has no pod CIDR yet", "warren status"),
        Ok(Some(base)) => base,
    };
    let Some(underlay_bytes) = answers.underlay_mtu_bytes else {
        return Finding::unknown(
            CHECK,
            format!("the underlay device {interface} is not in this network namespace"),
            format!(
                "ip link show {interface}; if it exists elsewhere, run in the agent's namespace: nsenter --net=... warren doctor"
            ),
        );
    };
    let overhead_bytes = underlay.mtu_bytes.saturating_sub(underlay.pod_mtu_bytes);
    let needed_bytes = base.mtu_bytes + overhead_bytes;
    let seen = format!("endpoints {}, {interface} {underlay_bytes}", base.mtu_bytes);
    if needed_bytes <= underlay_bytes {
        return Finding::ok(CHECK, seen);
    }
    Finding::fail(
        CHECK,
        format!("{seen}: large packets do not fit, as the tunnel adds {overhead_bytes} bytes"),
        format!(
            "repeat warren doctor: warrend follows {interface} within seconds; if it does not, see its log, or if the network allows: ip link set {interface} mtu {needed_bytes}"
        ),
    )
}

fn maps(maps: &[MapFill], full: &[String]) -> Finding {
    const CHECK: &str = "maps";
    if !full.is_empty() {
        return Finding::fail(
            CHECK,
            format!("full: {}", full.join(", ")),
            "warren map list; move endpoints to other nodes, or remove stale nodes (warren node list)",
        );
    }
    let nearly: Vec<String> = (maps.iter())
        .map(|map| (map, map.entries * 100 / u64::from(map.max_entries.max(1))))
        .filter(|(_, percent)| *percent >= FULL_MAP_PERCENT)
        .map(|(map, percent)| format!("{} at {percent}%", map.name))
        .collect();
    if nearly.is_empty() {
        return Finding::ok(CHECK, format!("none at {FULL_MAP_PERCENT}%"));
    }
    Finding::warn(
        CHECK,
        nearly.join(", "),
        "warren map list; for flows, find who opens so many: warren flow list",
    )
}

fn plan(apply: &ApplyStatus) -> Finding {
    const CHECK: &str = "plan";
    if !apply.failing.is_empty() {
        return Finding::fail(
            CHECK,
            some(&apply.failing),
            "warren status shows all of them; warren endpoint delete NAME for a workload that is gone",
        );
    }
    if apply.pending > 0 {
        return Finding::warn(
            CHECK,
            format!("{} still to be written", count(apply.pending, "key")),
            "repeat warren doctor: writing takes less than a second, unless it fails",
        );
    }
    Finding::ok(CHECK, format!("all applied, generation {}", apply.applied_generation))
}

fn state(diff: &Result<StateDiff, String>) -> Finding {
    const CHECK: &str = "state";
    match diff {
        Err(error) => Finding::unknown(CHECK, error, "warren state diff"),
        Ok(diff) if diff.differences.is_empty() => Finding::ok(CHECK, "desired and observed state are equal"),
        Ok(diff) => Finding::warn(
            CHECK,
            format!("{}: {}", count(diff.differences.len(), "difference"), some(&diff.differences)),
            "warren state diff --repair; if they come back, another program changes maps, devices or routes",
        ),
    }
}

/// The answers of a healthy node.
#[cfg(test)]
pub(super) mod sample;

#[cfg(test)]
mod tests;
