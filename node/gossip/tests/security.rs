//! Nothing gets in without a key: strangers, forgers, recorders; and the damage that a member can do heals.

mod common;

use std::{
    net::{SocketAddr, UdpSocket},
    time::{SystemTime, UNIX_EPOCH},
};

use chitchat::{ChitchatId, Serializable};
use common::{Member, config, facts, fleet, fleet_at, key, until};
use identity::FleetName;
use node_gossip::{
    GossipConfig, Keyring, KeyringError, MAX_INTERVAL, Refusal, replay::SessionId, wire::MAX_DATAGRAM_BYTES,
    wire::Sealer,
};

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64
}

/// A sealer of key 1, as a misbehaving member has it.
fn rogue_sealer(fleet: &str) -> Sealer {
    let session = SessionId(now_ms().to_le_bytes());
    Sealer::new(FleetName::new(fleet).unwrap(), Box::new(move || session))
}

fn outsider() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(common::DEADLINE)).unwrap();
    socket
}

/// The bytes of a SYN with these entries, in chitchat's protocol version 0.
fn syn(entries: &[(ChitchatId, [u64; 3])]) -> Vec<u8> {
    let mut bytes = vec![0x53, 0xb0, 0, 0];
    (entries.len() as u16).serialize(&mut bytes);
    for (id, numbers) in entries {
        id.serialize(&mut bytes);
        numbers.iter().for_each(|number| number.serialize(&mut bytes));
    }
    "alpha".serialize(&mut bytes);
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn join_requires_the_key() {
    let member = Member::start(config("n0", &[])).await;
    let mut stranger = config("n1", &[member.address()]);
    stranger.keyring = Keyring::new(key(2));
    let stranger = Member::start(stranger).await;
    stranger.gossip.set_facts(&facts("n1", 1)).unwrap();
    member.gossip.add_peer(stranger.address());
    let refused = |of: &Member| of.gossip.stats().refused_for(Refusal::UnknownKey);
    until("many refusals on both sides", || refused(&member) >= 10 && refused(&stranger) >= 10).await;
    for side in [&member, &stranger] {
        assert_eq!(side.gossip.stats().opened, 0);
        assert_eq!(side.gossip.peers(), vec![]);
        assert!(side.heard().live.is_empty() && side.heard().facts.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn key_rotation_has_no_gap() {
    let members = fleet(3).await;
    let drained = async |what: &str| {
        let before: Vec<u64> = members.iter().map(|member| member.gossip.stats().opened).collect();
        until(what, || members.iter().zip(&before).all(|(m, before)| m.gossip.stats().opened > before + 20))
            .await;
    };
    type Change = fn(&mut Keyring) -> Result<(), KeyringError>;
    let steps: [(&str, Change); 3] = [
        ("installed", |ring| ring.install(key(2))),
        ("used", |ring| ring.use_key(key(2).id())),
        ("removed", |ring| ring.remove(key(1).id())),
    ];
    for (step, change) in steps {
        for member in &members {
            member.gossip.update_keyring(change).unwrap();
            // Nodes rotate at different times: the fleet works with the mixture.
            drained(step).await;
        }
    }
    for member in &members {
        assert_eq!(member.gossip.key_ids(), [key(2).id()]);
        let stats = member.gossip.stats();
        assert!(stats.refused.iter().all(|(_, count)| *count == 0), "no datagram was lost: {stats:?}");
    }
    members[0].gossip.set_facts(&facts("n0", 5)).unwrap();
    until("facts under the new key", || {
        members[1].knows(&facts("n0", 5)) && members[2].knows(&facts("n0", 5))
    })
    .await;
    let late = Member::start(config("n3", &[members[0].address()])).await;
    let refused = || members[0].gossip.stats().refused_for(Refusal::UnknownKey) >= 5;
    until("the old key opens nothing any more", refused).await;
    assert_eq!(late.gossip.peers(), vec![]);
}

#[tokio::test(flavor = "multi_thread")]
async fn forged_datagrams_never_reach_the_parser() {
    let member = Member::start(config("n0", &[])).await;
    let attacker = outsider();
    let ring = Keyring::new(key(1));
    let mut forged: Vec<Vec<u8>> = vec![vec![], b"WG".to_vec(), syn(&[]), vec![0xff; MAX_DATAGRAM_BYTES]];
    let sealed = rogue_sealer("alpha").seal(&ring, now_ms(), &syn(&[])).remove(0);
    for at in 0..sealed.len() {
        let mut flipped = sealed.clone();
        flipped[at] ^= 1 << (at % 8);
        forged.push(flipped);
        forged.push(sealed[..at].to_vec());
    }
    forged.push(rogue_sealer("beta").seal(&ring, now_ms(), &syn(&[])).remove(0));
    forged.push(rogue_sealer("alpha").seal(&ring, now_ms() - 3_600_000, &syn(&[])).remove(0));
    let mut sent = 0;
    for datagram in &forged {
        attacker.send_to(datagram, member.address()).unwrap();
        sent += 1;
        // The socket's queue is short: wait for each datagram, so that none is lost before it is counted.
        until("received", || member.gossip.stats().datagrams_in == sent).await;
    }
    let refused = || member.gossip.stats().refused.iter().map(|(_, count)| count).sum::<u64>();
    until("each one refused", || refused() == sent).await;
    let stats = member.gossip.stats();
    assert_eq!((stats.opened, stats.unparsed, stats.restarts), (0, 0, 0));
    for reason in [
        Refusal::TooShort,
        Refusal::NotOurs,
        Refusal::WrongFleet,
        Refusal::UnknownKey,
        Refusal::Stale,
        Refusal::BadTag,
    ] {
        assert!(stats.refused_for(reason) > 0, "{reason}: {stats:?}");
    }
    assert_eq!(stats.datagrams_out, 0, "nothing is answered");

    attacker.send_to(&sealed, member.address()).unwrap();
    until("the real one passes", || member.gossip.stats().opened == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn datagram_that_was_recorded_passes_at_most_once() {
    // The victim learns the sender's address from the datagram; after its first round it does not contact that
    // address for a minute.
    let seed = outsider();
    let victim = GossipConfig { interval: MAX_INTERVAL, ..config("n0", &[seed.local_addr().unwrap()]) };
    let victim = Member::start(victim).await;
    until("first round", || victim.gossip.stats().datagrams_out == 1).await;
    let sender = Member::start(config("n1", &[])).await;
    let recorder = outsider();
    sender.gossip.add_peer(recorder.local_addr().unwrap());
    let mut buffer = vec![0; MAX_DATAGRAM_BYTES];
    let (length, _) = tokio::task::block_in_place(|| recorder.recv_from(&mut buffer)).unwrap();
    let replay_to = |address: SocketAddr| recorder.send_to(&buffer[..length], address).unwrap();
    let replays = |member: &Member| member.gossip.stats().refused_for(Refusal::Replay);
    for expected in 0..5 {
        replay_to(victim.address());
        until("judged", || victim.gossip.stats().opened == 1 && replays(&victim) == expected).await;
    }
    replay_to(sender.address());
    until("sent back to its sender", || replays(&sender) == 1).await;
    assert_eq!(sender.gossip.stats().opened, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn gossip_survives_a_member_that_crashes_the_task() {
    // Nodes that hear of the fake nodes take long for each round.
    let members = fleet_at(2, 10 * common::INTERVAL).await;
    members[0].gossip.set_facts(&facts("n0", 1)).unwrap();
    let incarnation = members[0].gossip.incarnation();
    // Thousands of fake nodes in the digest leave no room for a delta, so the handshake panics (FACTS), or make the
    // digest itself too long to send.
    let (rogue, ring) = (outsider(), Keyring::new(key(1)));
    let mut sealer = rogue_sealer("alpha");
    let mut number = 1_u64;
    let mut noise = || {
        number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        number
    };
    let crashed = || members[0].gossip.stats().restarts > 0;
    while !crashed() {
        // As many as one message holds, and two at once: more than the task can handle, before the other member hears
        // of them.
        for _ in 0..2 {
            let mut entry = || {
                let id = ChitchatId::new("x", noise(), ([192, 0, 2, 1], 9).into());
                (id, [noise() >> 1, 0, noise() >> 1])
            };
            let entries: Vec<_> = (0..1_400).map(|_| entry()).collect();
            for datagram in sealer.seal(&ring, now_ms(), &syn(&entries)) {
                rogue.send_to(&datagram, members[0].address()).unwrap();
            }
        }
        let opened = members[0].gossip.stats().opened;
        until("the flood is handled", || crashed() || members[0].gossip.stats().opened > opened).await;
    }
    assert!(members[0].gossip.incarnation() > incarnation, "never the same generation again");
    members[0].gossip.set_facts(&facts("n0", 2)).unwrap();
    members[1].gossip.set_facts(&facts("n1", 2)).unwrap();
    until("facts pass again", || members[1].knows(&facts("n0", 2)) && members[0].knows(&facts("n1", 2)))
        .await;
    until("alive again", || members[1].sees("n0", true) && members[0].sees("n1", true)).await;
}

#[test]
fn key_file_must_be_root_only_and_valid() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("gossip.key");
    let load = |text: &str, mode: u32| {
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        Keyring::load(&path)
    };
    let text = format!("# in use\n{}\n\n{}  # next\n", &*key(1).to_text(), "02".repeat(32));
    assert_eq!(load(&text, 0o600).unwrap().ids(), [key(1).id(), key(2).id()]);
    assert_eq!(load(&text, 0o400).unwrap().ids().len(), 2);
    let check = |text: &str, mode: u32, expected: &str| {
        let error = load(text, mode).expect_err(expected);
        let chain = format!(
            "{error}: {}",
            std::error::Error::source(&error).map_or(String::new(), ToString::to_string)
        );
        assert!(chain.contains(expected), "{chain}");
    };
    check(&text, 0o640, "chmod 600");
    check(&text, 0o604, "chmod 600");
    check("# nothing\n", 0o600, "put one per line");
    check("\nsecret!\n", 0o600, "line 2: not a gossip key");
    check(&"00".repeat(31), 0o600, "line 1: not a gossip key");
    check(
        &(0..9).map(|n| format!("{}\n", format!("{n:02x}").repeat(32))).collect::<String>(),
        0o600,
        "more than 8",
    );
    check(&"#".repeat(20_000), 0o600, "at most");
    std::fs::remove_file(&path).unwrap();
    assert!(Keyring::load(&path).unwrap_err().to_string().contains("warrend keygen"));
}

#[test]
fn keys_are_not_logged() {
    let ring = Keyring::generate().unwrap();
    let text = ring.primary().to_text();
    let shown = format!("{ring:?} {:?}", config("n0", &[]));
    assert!(!shown.contains(text.trim_end_matches('=')), "{shown}");
    assert!(!shown.contains("1, 1, 1") && !shown.contains("010101"), "{shown}");
    assert_ne!(Keyring::generate().unwrap().ids(), ring.ids());
}

#[test]
fn keyring_never_loses_the_key_in_use() {
    let mut ring = Keyring::new(key(1));
    assert!(ring.use_key(key(2).id()).is_err());
    assert!(ring.remove(key(1).id()).is_err());
    for number in 2..=8 {
        ring.install(key(number)).unwrap();
        ring.install(key(number)).unwrap();
    }
    assert!(ring.install(key(9)).is_err());
    ring.use_key(key(3).id()).unwrap();
    assert_eq!(ring.ids()[..4], [key(3).id(), key(1).id(), key(2).id(), key(4).id()]);
    ring.remove(key(1).id()).unwrap();
    assert!(ring.get(key(1).id()).is_none());
}
