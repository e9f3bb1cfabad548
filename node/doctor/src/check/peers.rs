//! The other nodes, asked by this one: do packets get there and back, by the tunnel where there is one, and do the clocks
//! agree?

use super::text::{count, some};
use crate::{
    finding::Finding,
    gather::{Answers, Peer, tunnels},
};

/// From this difference on events and logs of two nodes cannot be put in order; NTP keeps far below it.
const SKEW_LIMIT_MS: u64 = 1_000;

/// Gossip and the tunnel take the same way under different ports: who is heard by one and not by the other is
/// kept from us by a rule for the port. Without a tunnel it is a rule, or a route, for the pods' addresses.
pub(super) fn tunnel(answers: &Answers) -> Finding {
    const CHECK: &str = "tunnel";
    let peers = match living(CHECK, answers) {
        Ok(peers) => peers,
        Err(finding) => return finding,
    };
    let silent: Vec<&Peer> = peers.iter().filter(|peer| !peer.heard.ping).collect();
    let Some(first) = silent.first() else {
        return Finding::ok(CHECK, format!("{} heard by the pods' way", count(peers.len(), "node")));
    };
    let names: Vec<String> =
        silent.iter().map(|peer| format!("{} ({} at {})", peer.node, peer.gateway, peer.underlay)).collect();
    let interface = &answers.status.underlay.interface;
    let base = answers.base.as_ref().ok().and_then(Option::as_ref);
    let remedy = if base.is_none_or(tunnels) {
        let port = base.map_or(0, |base| base.tunnel_port);
        format!(
            "let UDP {port} pass between the nodes in both directions (nft list ruleset; the cloud's security groups), and pings on warren_host; where packets end, on both nodes: tcpdump -ni {interface} udp port {port} and host {}, while: ping {}",
            first.underlay, first.gateway
        )
    } else {
        format!(
            "let the pods' addresses pass between the nodes as they are (nft list ruleset; the cloud's security groups and checks of sources), with a route to each node's pod CIDR on the way: ip route get {}; where packets end, on both nodes: tcpdump -ni {interface} host {}, while: ping {}",
            first.gateway, first.gateway, first.gateway
        )
    };
    Finding::fail(
        CHECK,
        format!(
            "{} of {} silent, though gossip hears them: {}",
            silent.len(),
            count(peers.len(), "node"),
            some(&names)
        ),
        remedy,
    )
}

/// Who answers small packets and not those as long as an endpoint's may be: something on the way carries less than
/// the underlay's interface says, and TCP connections begin well and then stand.
pub(super) fn path_mtu(answers: &Answers) -> Finding {
    const CHECK: &str = "path-mtu";
    let peers = match living(CHECK, answers) {
        Ok(peers) => peers,
        Err(finding) => return finding,
    };
    let heard: Vec<&Peer> = peers.iter().filter(|peer| peer.heard.ping).collect();
    if heard.is_empty() {
        return Finding::unknown(
            CHECK,
            "no other node is heard by the pods' way",
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
            "find what the network carries: tracepath -n {}; then on every node: ip link set {interface} mtu <that>, which warrend follows",
            first.underlay
        ),
    )
}

pub(super) fn clock_skew(answers: &Answers) -> Finding {
    const CHECK: &str = "clock-skew";
    let peers = match living(CHECK, answers) {
        Ok(peers) => peers,
        Err(finding) => return finding,
    };
    let mut known: Vec<(&Peer, i64)> =
        peers.iter().filter_map(|peer| Some((peer, peer.heard.clock_ahead_ms?))).collect();
    known.sort_by_key(|(_, ahead_ms)| std::cmp::Reverse(ahead_ms.unsigned_abs()));
    let Some((_, widest_ms)) = known.first() else {
        return Finding::unknown(
            CHECK,
            format!("none of {} told its time", count(peers.len(), "node")),
            "compare by hand: date -u on every node; that nodes answer needs the pods' way (`tunnel`), and ICMP timestamps let in on warren_host",
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
        return Finding::ok(
            CHECK,
            format!("at most {widest_ms} ms between here and {}", count(known.len(), "node")),
        );
    }
    Finding::warn(
        CHECK,
        format!(
            "{}: events and logs cannot be put in order, and certificates may seem not yet valid",
            some(&apart)
        ),
        "on whichever node is wrong (date -u): timedatectl set-ntp true, or: apt-get install chrony; then: chronyc makestep",
    )
}

/// The nodes that were asked, or why there is nothing to judge.
fn living<'a>(check: &'static str, answers: &'a Answers) -> Result<&'a [Peer], Finding> {
    match &answers.peers {
        Err(error) => {
            Err(Finding::unknown(check, error, "warren status; run the doctor as root, on the node itself"))
        }
        Ok(peers) if peers.is_empty() => Err(Finding::ok(check, "no other node that gossip hears")),
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
    fn who_is_silent_in_the_tunnel_is_named() {
        let check =
            |heard: &[Heard], verdict, seen, remedy| expect(tunnel(&with(heard)), verdict, seen, remedy);
        check(&[heard(true, 0), heard(true, None)], Ok, "2 nodes heard", "");
        check(&[], Ok, "no other node", "");
        check(
            &[heard(true, 0), heard(false, 0)],
            Fail,
            "1 of 2 nodes silent, though gossip hears them: n2 (10.200.2.1 at 172.30.1.2)",
            "let UDP 8472 pass",
        );
        check(&[heard(false, 0)], Fail, "1 of 1 node", "tcpdump -ni eth0 udp port 8472 and host 172.30.1.2");
        let mut native = with(&[heard(false, 0)]);
        native.base.as_mut().unwrap().as_mut().unwrap().mode = "native".to_owned();
        expect(tunnel(&native), Fail, "1 of 1 node silent", "ip route get 10.200.2.1");
    }

    #[test]
    fn a_way_that_carries_less_than_it_should() {
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
        check(&[heard(false, None)], Unknown, "no other node is heard", "tunnel");
        check(&[], Ok, "no other node", "");
    }

    #[test]
    fn clocks_that_differ_are_named_the_widest_first() {
        let check =
            |heard: &[Heard], verdict, seen, remedy| expect(clock_skew(&with(heard)), verdict, seen, remedy);
        check(
            &[heard(true, 3), heard(true, -12), heard(true, None)],
            Ok,
            "at most 12 ms between here and 2",
            "",
        );
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
    fn what_could_not_be_asked_is_unknown() {
        let answers = Answers { peers: Err("no warren_host".to_owned()), ..sample::answers() };
        expect(tunnel(&answers), Unknown, "no warren_host", "as root");
        expect(clock_skew(&answers), Unknown, "no warren_host", "as root");
    }
}
