//! `warren status`: the state of the node at a glance.

use node_api::{Status, StoreStatus};
use node_doctor::FULL_MAP_PERCENT;

use super::{Mark, Style, bytes, count, duration, time};

/// The silence of the watch that is reported: the agent requests progress every 2 s.
const SILENT_WATCH_MS: u64 = 10_000;

/// The maximum number of devices, interfaces or differences shown; further ones are only counted.
const SHOWN: usize = 6;

struct Lines {
    style: Style,
    text: String,
}

impl Lines {
    fn line(&mut self, mark: Mark, name: &str, value: &str) {
        self.text += &format!("{} {name:<11} {value}\n", self.style.mark(mark));
    }

    fn detail(&mut self, value: &str) {
        self.text += &format!("{:17}{value}\n", "");
    }
}

pub fn status(status: &Status, style: Style) -> String {
    let mut lines = Lines { style, text: String::new() };
    node(&mut lines, status);
    store(&mut lines, &status.store);
    gossip(&mut lines, status);
    addresses(&mut lines, status);
    kernel(&mut lines, status);
    for warning in &status.warnings {
        lines.line(Mark::Warn, "warning", &warning.text);
    }
    if let Some(error) = &status.last_error {
        lines.line(Mark::Warn, "last error", &format!("{} {}", time(error.unix_ms * 1_000), error.text));
    }
    lines.text
}

fn node(lines: &mut Lines, status: &Status) {
    let up = duration(status.uptime_ms);
    let value = format!("{} of fleet {}, agent {} up {up}", status.node, status.fleet, status.agent_version);
    match &status.halted {
        Some(halted) => {
            lines.line(Mark::Fail, "node", &value);
            lines.detail(&format!("halted: {}", halted.reason));
        }
        None if status.ready => lines.line(Mark::Ok, "node", &value),
        None => {
            lines.line(Mark::Warn, "node", &value);
            lines.detail("not ready: no pod CIDR, or no devices yet");
        }
    }
    let underlay = &status.underlay;
    let mark = if underlay.problem.is_some() { Mark::Fail } else { Mark::Ok };
    lines.line(
        mark,
        "underlay",
        &format!(
            "{} {} MTU {}, endpoints {} ({})",
            underlay.interface, underlay.address, underlay.mtu_bytes, underlay.pod_mtu_bytes, underlay.reason
        ),
    );
    if let Some(problem) = &underlay.problem {
        lines.detail(problem);
    }
    for other in underlay.passed_over.iter().take(SHOWN) {
        lines.detail(&format!("not {}: {}", other.interface, other.reason));
    }
}

fn store(lines: &mut Lines, store: &StoreStatus) {
    let healthy = store.members.iter().filter(|member| member.healthy).count();
    let silent = store.silent_ms.unwrap_or(0);
    let mut value = store.kind.clone();
    if !store.members.is_empty() {
        value += &format!(", {healthy} of {} members healthy", store.members.len());
    }
    match store.revision {
        Some(revision) => value += &format!(", revision {revision}, last message {} ago", duration(silent)),
        None => value += ", not listed yet",
    }
    let mark = match () {
        () if !store.connected => Mark::Fail,
        () if healthy < store.members.len() || silent > SILENT_WATCH_MS => Mark::Warn,
        () => Mark::Ok,
    };
    lines.line(mark, "store", &value);
    if let Some(error) = &store.error {
        lines.detail(&format!("{error}; flows go on, and endpoints with known labels can be added"));
    }
    for member in &store.members {
        let leader = if member.leader == Some(true) { " leader" } else { "" };
        match (&member.error, &member.version, member.db_bytes) {
            (Some(error), _, _) => lines.detail(&format!("{} {error}", member.endpoint)),
            (None, version, size) => lines.detail(&format!(
                "{} {}{leader} {}",
                member.endpoint,
                version.as_deref().unwrap_or("?"),
                size.map(bytes).unwrap_or_default()
            )),
        }
    }
    match (&store.lease_error, store.lease_held) {
        (None, true) => lines.line(Mark::Ok, "lease", "held"),
        (error, held) => {
            let word = if held { "held" } else { "not held" };
            let why = error.as_deref().unwrap_or("not requested yet");
            lines.line(Mark::Warn, "lease", &format!("{word}: {why}"));
        }
    }
    for record in &store.rejected {
        lines.line(Mark::Warn, "record", &format!("rejected: {record}"));
    }
}

fn gossip(lines: &mut Lines, status: &Status) {
    if !status.gossip.enabled {
        lines.line(Mark::Ok, "gossip", "off: a fleet of one node");
        return;
    }
    let peers = &status.gossip.peers;
    let alive = peers.iter().filter(|peer| peer.alive).count();
    let mark = if alive < peers.len() { Mark::Warn } else { Mark::Ok };
    let mut value = format!("{alive} of {} peers alive", peers.len());
    if status.gossip.refused_datagrams > 0 {
        value += &format!(", {} datagrams rejected", status.gossip.refused_datagrams);
    }
    lines.line(mark, "gossip", &value);
    for peer in peers.iter().filter(|peer| !peer.alive) {
        lines.detail(&format!("{} at {} is silent", peer.node, peer.address));
    }
}

fn addresses(lines: &mut Lines, status: &Status) {
    for cidr in &status.cidrs {
        let mark = if cidr.free == 0 { Mark::Warn } else { Mark::Ok };
        let mut value = format!(
            "{}: {} of {} addresses used",
            cidr.cidr,
            cidr.used,
            cidr.used + cidr.cooling + cidr.free
        );
        if cidr.cooling > 0 {
            value += &format!(", {} cooling down", cidr.cooling);
        }
        lines.line(mark, "pod CIDR", &value);
    }
    if status.cidrs.is_empty() {
        lines.line(Mark::Warn, "pod CIDR", "none yet");
    }
    lines.line(
        Mark::Ok,
        "fleet",
        &format!(
            "{}, {}; {} here",
            count(status.nodes as u64, "node"),
            match status.identities {
                1 => "1 identity".to_owned(),
                identities => format!("{identities} identities"),
            },
            count(status.endpoints as u64, "endpoint")
        ),
    );
}

fn kernel(lines: &mut Lines, status: &Status) {
    let apply = &status.apply;
    let mark = if apply.failing.is_empty() && apply.full.is_empty() { Mark::Ok } else { Mark::Fail };
    let behind = apply.wanted_generation.saturating_sub(apply.applied_generation);
    let value = match behind {
        0 => format!("as desired (generation {})", apply.applied_generation),
        behind => format!("{} behind {}", count(behind, "generation"), apply.wanted_generation),
    };
    lines.line(mark, "kernel", &value);
    for failing in &apply.failing {
        lines.detail(failing);
    }
    for full in &apply.full {
        lines.detail(&format!("{full} is full"));
    }
    let audit = &status.audit;
    let when = audit.unix_ms.map_or_else(|| "not yet".to_owned(), |ms| time(ms * 1_000));
    let mark = if audit.differences.is_empty() { Mark::Ok } else { Mark::Warn };
    lines.line(
        mark,
        "audit",
        &format!(
            "{when}: {}, {} repaired since start",
            count(audit.differences.len() as u64, "difference"),
            audit.repaired_total
        ),
    );
    for difference in audit.differences.iter().take(SHOWN) {
        lines.detail(difference);
    }
    for program in &status.programs {
        let devices = match program.devices.len() {
            0..=SHOWN => program.devices.join(" "),
            many => format!("{many} devices"),
        };
        lines.line(Mark::Ok, "program", &format!("{} by {} on {devices}", program.name, program.hook));
    }
    for map in &status.maps {
        let percent = map.entries * 100 / u64::from(map.max_entries.max(1));
        let mark = if percent >= FULL_MAP_PERCENT { Mark::Warn } else { Mark::Ok };
        lines.line(
            mark,
            "map",
            &format!("{:<18} {:>8} of {} ({percent}%)", map.name, map.entries, map.max_entries),
        );
    }
}
