//! Real gossipers on loopback: facts, liveness, rejoining, peers found late, oversized facts.

mod common;

use std::net::SocketAddr;

use common::{Member, config, facts, fleet, until};
use identity::{EndpointName, Identity, Labels};
use node_facts::{FactsError, PendingEndpoint, PendingOp};
use node_gossip::{GossipConfig, GossipError, PublishError, Refusal};

fn pending(number: u8) -> PendingEndpoint {
    let labels = Labels::parse([format!("app=a{number}")]).unwrap();
    PendingEndpoint {
        ip: [10, 0, 0, number].into(),
        identity: Identity::FLEET_MIN,
        labels_digest: labels.digest(),
        labels,
        name: EndpointName::new(&format!("e{number}")).unwrap(),
        terminating: false,
        op: PendingOp::Added,
        sequence: u64::from(number),
        recorded: None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn facts_and_their_changes_reach_every_node() {
    let members = fleet(4).await;
    for (index, member) in members.iter().enumerate() {
        member.gossip.set_facts(&facts(&format!("n{index}"), 1)).unwrap();
    }
    let all_know = |facts: &node_facts::NodeFacts, teller: usize| {
        members.iter().enumerate().all(|(me, member)| me == teller || member.knows(facts))
    };
    until("first facts", || (0..4).all(|teller| all_know(&facts(&format!("n{teller}"), 1), teller))).await;

    let mut changed = facts("n2", 2);
    changed.pending = (1..=250).map(pending).collect();
    members[2].gossip.set_facts(&changed).unwrap();
    until("several chunks of pending endpoints", || all_know(&changed, 2)).await;

    // Confirmed entries are removed: chunks are deleted, which chitchat does not report.
    let confirmed = facts("n2", 3);
    members[2].gossip.set_facts(&confirmed).unwrap();
    until("no pending endpoints", || all_know(&confirmed, 2)).await;
    for member in &members {
        assert_eq!(member.heard().rejected, vec![]);
        let stats = member.gossip.stats();
        assert_eq!((stats.unparsed, stats.restarts), (0, 0));
        assert!(stats.refused.iter().all(|(_, count)| *count == 0), "{stats:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn node_death_is_seen_and_a_new_incarnation_replaces_it() {
    let members = fleet(2).await;
    // An address whose port no other process takes while the node is dead.
    let at = |address: SocketAddr| GossipConfig {
        bind: address,
        advertise: address,
        ..config("n2", &[members[1].address()])
    };
    let dead = Member::start(at("127.77.0.1:0".parse().unwrap())).await;
    dead.gossip.set_facts(&facts("n2", 1)).unwrap();
    until("facts of the one to die", || members.iter().all(|member| member.knows(&facts("n2", 1)))).await;
    let (address, incarnation) = (dead.address(), dead.gossip.incarnation());
    dead.gossip.shutdown().await;
    until("death", || members.iter().all(|member| member.sees("n2", false))).await;
    assert!(members.iter().all(|member| member.knows(&facts("n2", 1))), "a death takes no facts away");

    let reborn = Member::start(at(address)).await;
    assert!(reborn.gossip.incarnation() > incarnation);
    reborn.gossip.set_facts(&facts("n2", 9)).unwrap();
    until("rebirth", || {
        members.iter().all(|member| member.sees("n2", true) && member.knows(&facts("n2", 9)))
    })
    .await;
    let peers = members[0].gossip.peers();
    let names: Vec<&str> = peers.iter().map(|peer| peer.node.as_str()).collect();
    assert_eq!(names, ["n1", "n2"], "one entry a node, whatever its incarnations");
    assert_eq!(peers[1].incarnation, reborn.gossip.incarnation());
    assert_eq!(peers[1].address, reborn.address());
    // Its former incarnation counts as one that may come back, but it is the node itself.
    until("rounds to go by", || reborn.gossip.stats().opened >= 100).await;
    assert_eq!(reborn.gossip.stats().refused_for(Refusal::Replay), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn node_address_change_is_followed() {
    let members = fleet(3).await;
    for (index, member) in members.iter().enumerate() {
        member.gossip.set_facts(&facts(&format!("n{index}"), 1)).unwrap();
    }
    // The others have only this node as their seed, and it has none: it must find them.
    let (moved, others) = members.split_first().unwrap();
    let incarnation = moved.gossip.incarnation();
    for host in ["127.0.0.2", "127.0.0.3"] {
        let address = SocketAddr::new(host.parse().unwrap(), moved.address().port());
        moved.gossip.move_to(address).await.unwrap();
        moved.gossip.move_to(address).await.unwrap();
        assert_eq!(moved.address(), address);
        until("the others see it there", || {
            others.iter().all(|other| {
                let peers = other.gossip.peers();
                peers.iter().any(|peer| peer.node.as_str() == "n0" && peer.alive && peer.address == address)
            })
        })
        .await;
    }
    assert!(moved.gossip.incarnation() > incarnation);
    moved.gossip.set_facts(&facts("n0", 2)).unwrap();
    until("they hear it", || others.iter().all(|other| other.knows(&facts("n0", 2)))).await;
    others[0].gossip.set_facts(&facts("n1", 2)).unwrap();
    until("it hears them", || moved.knows(&facts("n1", 2))).await;
    assert_eq!(moved.gossip.stats().restarts, 0);

    let taken = others[0].address();
    assert!(moved.gossip.move_to(taken).await.is_err());
    assert_ne!(moved.address(), taken, "it goes on where it was");
}

#[tokio::test(flavor = "multi_thread")]
async fn peer_added_later_is_contacted_until_it_answers() {
    let alone = Member::start(config("n0", &[])).await;
    // Nobody listens yet: the address is taken by a socket that does not answer.
    let placeholder = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = placeholder.local_addr().unwrap();
    alone.gossip.add_peer(address);
    let sent = || alone.gossip.stats().datagrams_out;
    until("several greetings", || sent() >= 3).await;
    drop(placeholder);
    let mut late = config("n1", &[]);
    (late.bind, late.advertise) = (address, address);
    let late = Member::start(late).await;
    until("both see each other", || alone.sees("n1", true) && late.sees("n0", true)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn facts_that_could_block_later_ones_are_rejected() {
    let members = fleet(2).await;
    members[0].gossip.set_facts(&facts("n0", 1)).unwrap();
    let mut endless = facts("n0", 2);
    endless.pending = (0..30_000).map(|number| pending((number % 250) as u8)).collect();
    let refused = members[0].gossip.set_facts(&endless);
    assert!(matches!(refused, Err(PublishError::Facts(FactsError::TooManyPending(_)))), "{refused:?}");
    let foreign = members[0].gossip.set_facts(&facts("n1", 2));
    assert!(matches!(foreign, Err(PublishError::OtherNode { .. })), "{foreign:?}");
    members[0].gossip.set_facts(&facts("n0", 3)).unwrap();
    until("facts after the refused ones", || members[1].knows(&facts("n0", 3))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn event_reader_that_never_reads_blocks_no_peer() {
    let busy = Member::start(config("n0", &[])).await;
    let (deaf, unread) = node_gossip::Gossip::start(config("n1", &[busy.address()])).await.unwrap();
    until("seen", || busy.sees("n1", true)).await;
    let enough = || deaf.stats().events_coalesced > 5;
    let mut generation = 0;
    let deadline = std::time::Instant::now() + common::DEADLINE;
    while !enough() {
        assert!(std::time::Instant::now() < deadline, "events are coalesced: {:?}", deaf.stats());
        generation += 1;
        busy.gossip.set_facts(&facts("n0", generation)).unwrap();
        tokio::time::sleep(common::INTERVAL / 10).await;
    }
    assert!(unread.len() <= unread.max_capacity());
    until("the deaf one still gossips", || busy.sees("n1", true)).await;
}

#[tokio::test]
async fn bind_error_names_the_remedy() {
    let first = Member::start(config("n0", &[])).await;
    let start = async |bind: std::net::SocketAddr| {
        let config = node_gossip::GossipConfig { bind, ..config("n1", &[]) };
        node_gossip::Gossip::start(config).await.map(|_| ()).expect_err("cannot bind")
    };
    let in_use = start(first.address()).await;
    assert!(matches!(in_use, GossipError::InUse(_)), "{in_use}");
    let not_local = start("192.0.2.77:7946".parse().unwrap()).await;
    assert!(matches!(not_local, GossipError::NotLocal(_)), "{not_local}");
    assert!(not_local.to_string().contains("not on this machine"), "{not_local}");
}

#[tokio::test]
async fn configuration_errors_are_reported_together() {
    let mut wrong = config("n0", &[]);
    wrong.incarnation = 0;
    wrong.advertise = "0.0.0.0:1".parse().unwrap();
    wrong.interval = std::time::Duration::ZERO;
    wrong.seeds = vec!["nowhere".to_owned(), "10.0.0.1:1".to_owned()];
    let Err(GossipError::Config(mistakes)) = node_gossip::Gossip::start(wrong).await.map(|_| ()) else {
        panic!("refused")
    };
    assert_eq!(mistakes.len(), 4, "{mistakes:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn fleet_with_another_id_is_rejected() {
    let mut ours = config("n0", &[]);
    ours.fleet_id = Some("f0".to_owned());
    let ours = Member::start(ours).await;
    let theirs = Member::start(config("n1", &[ours.address()])).await;
    theirs.gossip.set_facts(&facts("n1", 1)).unwrap();
    let rejected =
        || ours.heard().rejected.iter().any(|(node, reason)| node == "n1" && reason.contains("fleet id f1"));
    until("rejected", rejected).await;
    assert!(!ours.knows(&facts("n1", 1)));
    // Once we learn that f1 is our fleet, the rejected facts are read again.
    ours.gossip.set_facts(&facts("n0", 1)).unwrap();
    until("accepted", || ours.knows(&facts("n1", 1))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn node_name_used_by_two_machines_is_detected() {
    let first = Member::start(config("n0", &[])).await;
    let second = Member::start(config("n0", &[first.address()])).await;
    second.gossip.set_facts(&facts("n0", 1)).unwrap();
    let complaint =
        || first.heard().rejected.iter().any(|(_, reason)| reason.contains("under this node's name"));
    until("complaint", complaint).await;
    assert!(first.heard().facts.is_empty(), "facts in our name are ignored");
}

/// A new network namespace, in which the loopback device is down.
#[test]
fn loopback_device_that_is_down_is_reported() {
    let outcome = std::thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).ok()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let config = node_gossip::GossipConfig { bind: "0.0.0.0:0".parse().unwrap(), ..config("n0", &[]) };
        Some(runtime.block_on(node_gossip::Gossip::start(config)).map(|_| ()))
    });
    match outcome.join().unwrap() {
        None => println!("skipped: making a network namespace needs root"),
        Some(Err(error @ GossipError::Loopback(_))) => {
            assert!(error.to_string().contains("ip link set lo up"))
        }
        Some(other) => panic!("{other:?}"),
    }
}
