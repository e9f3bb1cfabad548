//! The path to other nodes: whether packets get there and back (through the tunnel, if the fleet has one), of which size, and
//! whether clocks agree.

use super::text::{count, some};
use crate::{
    finding::Finding,
    gather::{Answers, Peer, tunnels},
};

/// The clock difference above which events and logs of two nodes cannot be ordered. NTP keeps clocks much closer.
const SKEW_LIMIT_MS: u64 = 1_000;

/// Gossip and the tunnel take the same path with different ports: if a node answers only gossip, a rule blocks the tunnel's
/// port. Without a tunnel, a rule or a missing route blocks the pods' addresses.
pub(super) fn tunnel(answers: &Answers) -> Finding {
    const CHECK: &str = "tunnel";
    let peers = match probed(CHECK, answers) {
        Ok(peers) => peers,
        Err(finding) => return finding,
    };
    let silent: Vec<&Peer> = peers.iter().filter(|peer| !peer.heard.ping).collect();
    let Some(first) = silent.first() else {
        return Finding::ok(CHECK, format!("{} answer on the pods' path", count(peers.len(), "node")));
    };
    let names: Vec<String> =
        silent.iter().map(|peer| format!("{} ({} at {})", peer.node, peer.gateway, peer.underlay)).collect();
    let interface = &answers.status.underlay.interface;
    let base = answers.base.as_ref().ok().and_then(Option::as_ref);
    let remedy = if base.is_none_or(tunnels) {
        let port = base.map_or(0, |base| base.tunnel_port);
        format!(
            "allow UDP {port} between the nodes in both directions (nft list ruleset; the cloud's security groups), and pings on warren_host; to see where packets are lost, on both nodes: tcpdump -ni {interface} udp port {port} and host {}, while: ping {}",
            first.underlay, first.gateway
        )
    } else {
        format!(
            "allow the pods' addresses between the nodes (nft list ruleset; the cloud's security groups and source checks), and route each node's pod CIDR: ip route get {}; to see where packets are lost, on both nodes: tcpdump -ni {interface} host {}, while: ping {}",
            first.gateway, first.gateway, first.gateway
        )
    };
    Finding::fail(
        CHECK,
        format!(
            "no answer from {} of {}, although alive in gossip: {}",
            silent.len(),
            count(peers.len(), "node"),
            some(&names)
        ),
        remedy,
    )
}

/// Nodes that answer small packets, but not packets of the endpoints' MTU: the path carries less than the underlay interface's
/// MTU, so that TCP connections are established and then stall.
pub(super) fn path_mtu(answers: &Answers) -> Finding {
    const CHECK: &str = "path-mtu";
    let peers = match probed(CHECK, answers) {
        Ok(peers) => peers,
        Err(finding) => return finding,
    };
    let heard: Vec<&Peer> = peers.iter().filter(|peer| peer.heard.ping).collect();
    if heard.is_empty() {
        return Finding::unknown(
            CHECK,
            "no other node answers on the pods' path",
            "see the finding `tunnel`",
        );
    }
    let mtu_bytes = answers.base.as_ref().ok().and_then(Option::as_ref).map_or(0, |base| base.mtu_bytes);
    let short: Vec<&Peer> = heard.iter().filter(|peer| !peer.heard.full_size).copied().collect();
    let Some(first) = short.first() else {
        return Finding::ok(
            CHECK,
            format!("{mtu_bytes} bytes pass to {} and back", count(heard.len(), "node")),
        );
    };
    let names: Vec<String> = short.iter().map(|peer| format!("{} at {}", peer.node, peer.underlay)).collect();
    let interface = &answers.status.underlay.interface;
    Finding::fail(
        CHECK,
        format!("packets of {mtu_bytes} bytes do not pass, small ones do: {}", some(&names)),
        format!(
            "find the MTU of the path: tracepath -n {}; then on every node: ip link set {interface} mtu <that MTU>, which warrend follows",
            first.underlay
        ),
    )
}

pub(super) fn clock_skew(answers: &Answers) -> Finding {
    const CHECK: &str = "clock-skew";
    let peers = match probed(CHECK, answers) {
        Ok(peers) => peers,
        Err(finding) => return finding,
    };
    let mut known: Vec<(&Peer, i64)> =
        peers.iter().filter_map(|peer| Some((peer, peer.heard.clock_ahead_ms?))).collect();
    known.sort_by_key(|(_, ahead_ms)| std::cmp::Reverse(ahead_ms.unsigned_abs()));
    let Some((_, widest_ms)) = known.first() else {
        return Finding::unknown(
            CHECK,
            format!("none of {} reported its time", count(peers.len(), "node")),
            "compare by hand: date -u on every node; the check needs the pods' path (`tunnel`), and ICMP timestamps allowed on warren_host",
        );
    };
    let apart: Vec<String> = (known.iter())
        .filter(|(_, ahead_ms)| ahead_ms.unsigned_abs() > SKEW_LIMIT_MS)
        .map(|(peer, ahead_ms)| {
            let side = if *ahead_ms > 0 { "ahead" } else { "behind" };
            format!("{} {:.1} s {side}", peer.node, ahead_ms.unsigned_abs() as f64 / 1e3)
        })
        .collect();
    if apart.is_empty() {
        let widest_ms = widest_ms.unsigned_abs();
        return Finding::ok(CHECK, format!("at most {widest_ms} ms to {}", count(known.len(), "node")));
    }
    Finding::warn(
        CHECK,
        format!(
            "{}: events and logs cannot be ordered, and certificates may appear not yet valid",
            some(&apart)
        ),
        "on the node whose clock is wrong (date -u): timedatectl set-ntp true, or: apt-get install chrony; then: chronyc makestep",
    )
}

/// The nodes that were probed, or the finding that none was.
fn probed<'a>(check: &'static str, answers: &'a Answers) -> Result<&'a [Peer], Finding> {
    match &answers.peers {
        Err(error) => {
            Err(Finding::unknown(check, error, "warren status; run the doctor as root, on the node itself"))
        }
        Ok(peers) if peers.is_empty() => Err(Finding::ok(check, "gossip has no other node")),
        Ok(peers) => Ok(peers),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        check::{agent::sample, expect::expect},
        finding::Verdict::{Fail, Ok, Unknown, Warn},
        gather::Heard,
    };

    fn with(heard: &[Heard]) -> Answers {
        let mut answers = sample::answers();
        let template = answers.peers.as_ref().unwrap()[0].clone();
        answers.peers =
            Result::Ok(heard.iter().map(|heard| Peer { heard: *heard, ..template.clone() }).collect());
        answers
    }

    fn heard(ping: bool, clock_ahead_ms: impl Into<Option<i64>>) -> Heard {
        Heard { ping, full_size: ping, clock_ahead_ms: clock_ahead_ms.into() }
    }

    #[test]
    fn tunnel_names_the_nodes_that_do_not_answer() {
        let check =
            |heard: &[Heard], verdict, seen, remedy| expect(tunnel(&with(heard)), verdict, seen, remedy);
        check(&[heard(true, 0), heard(true, None)], Ok, "2 nodes answer", "");
        check(&[], Ok, "no other node", "");
        check(
            &[heard(true, 0), heard(false, 0)],
            Fail,
            "no answer from 1 of 2 nodes, although alive in gossip: n2 (10.200.2.1 at 172.30.1.2)",
            "allow UDP 8472 between",
        );
        check(&[heard(false, 0)], Fail, "1 of 1 node", "tcpdump -ni eth0 udp port 8472 and host 172.30.1.2");
        let mut native = with(&[heard(false, 0)]);
        native.base.as_mut().unwrap().as_mut().unwrap().mode = "native".to_owned();
        expect(tunnel(&native), Fail, "1 of 1 node,", "ip route get 10.200.2.1");
    }

    #[test]
    fn path_mtu_below_that_of_the_endpoints() {
        let check =
            |heard: &[Heard], verdict, seen, remedy| expect(path_mtu(&with(heard)), verdict, seen, remedy);
        let short = Heard { full_size: false, ..heard(true, 0) };
        check(&[heard(true, 0), heard(false, None)], Ok, "1450 bytes pass to 1 node and back", "");
        check(
            &[heard(true, 0), short],
            Fail,
            "1450 bytes do not pass, small ones do: n2 at",
            "tracepath -n 172.30.1.2",
        );
        check(&[heard(false, None)], Unknown, "no other node answers", "tunnel");
        check(&[], Ok, "no other node", "");
    }

    #[test]
    fn clock_skew_names_the_widest_first() {
        let check =
            |heard: &[Heard], verdict, seen, remedy| expect(clock_skew(&with(heard)), verdict, seen, remedy);
        check(&[heard(true, 3), heard(true, -12), heard(true, None)], Ok, "at most 12 ms to 2", "");
        check(&[heard(true, 1_000)], Ok, "1000 ms", "");
        check(&[heard(true, 1_001)], Warn, "n2 1.0 s ahead", "set-ntp true");
        check(
            &[heard(true, 2_000), heard(true, -65_040)],
            Warn,
            "n2 65.0 s behind, n2 2.0 s ahead",
            "chronyc",
        );
        check(&[heard(true, None)], Unknown, "none of 1 node", "date -u");
        check(&[], Ok, "no other node", "");
    }

    #[test]
    fn peers_that_cannot_be_probed_are_unknown() {
        let answers = Answers { peers: Err("no warren_host".to_owned()), ..sample::answers() };
        expect(tunnel(&answers), Unknown, "no warren_host", "as root");
        expect(clock_skew(&answers), Unknown, "no warren_host", "as root");
    }
}
