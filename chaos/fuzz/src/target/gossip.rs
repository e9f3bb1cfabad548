//! Input from the network: from anybody, and from a member.

use std::collections::BTreeMap;

use node_facts::{FACTS_KEY, FactsError, decode, encode, pending_key};
use node_gossip::{
    GossipKey, Keyring,
    replay::SessionId,
    wire::{Opener, Sealer},
};
use zeroize::Zeroizing;

use super::{Target, sample};
use crate::draw::Draw;

const NOW_MS: u64 = 1_800_000_000_000;

/// Datagrams: raw ones, real ones, damaged ones, some of them twice. A sealed one opens once and unchanged; a changed
/// one never opens.
pub const GOSSIP: Target =
    Target { name: "gossip", run: datagrams, seeds: datagram_seeds, words: &["WG"], rounds: 2_000 };

fn keyring() -> Keyring {
    Keyring::new(GossipKey::new(Zeroizing::new([7; 32])))
}

fn sealer(session: u8) -> Sealer {
    Sealer::new("test".parse().expect("a name"), Box::new(move || SessionId([session; 8])))
}

fn datagrams(bytes: &[u8]) {
    let (keyring, mut sealer) = (keyring(), sealer(1));
    let mut opener = Opener::new("test".parse().expect("a name"));
    let mut draw = Draw::new(bytes);
    for _ in 0..8 {
        if draw.is_empty() {
            return;
        }
        match draw.byte() % 4 {
            // The real datagram among the seeds opens, changed ones do not: the tag decides, not this target.
            0 => drop(opener.open(&keyring, NOW_MS, draw.bytes())),
            1 => {
                let message = draw.bytes();
                for datagram in sealer.seal(&keyring, NOW_MS, message) {
                    let opened = opener.open(&keyring, NOW_MS, &datagram);
                    assert_eq!(opened, Ok(Some(message.to_vec())));
                    assert!(opener.open(&keyring, NOW_MS, &datagram).is_err(), "opened twice");
                }
            }
            2 => {
                let Some(mut datagram) = sealer.seal(&keyring, NOW_MS, draw.bytes()).pop() else { continue };
                let at = draw.below(datagram.len());
                match draw.byte() {
                    0 => datagram.truncate(at),
                    mask => datagram[at] ^= mask,
                }
                assert!(opener.open(&keyring, NOW_MS, &datagram).is_err(), "opened what was changed");
            }
            _ => {
                // Halves of a long message, in any order; the receiver's clock is off.
                let message = [draw.bytes(), &[0; 65_480]].concat();
                let skew_ms = draw.u64();
                for datagram in sealer.seal(&keyring, NOW_MS, &message).iter().rev() {
                    drop(opener.open(&keyring, NOW_MS.wrapping_add(skew_ms), datagram));
                }
            }
        }
    }
}

fn datagram_seeds() -> Vec<Vec<u8>> {
    let message = b"\x01\x05hello";
    let sealed = sealer(2).seal(&keyring(), NOW_MS, message).remove(0);
    vec![
        [&[0, sealed.len() as u8], &sealed[..]].concat(),
        [&[1, message.len() as u8], &message[..]].concat(),
        [&[2, message.len() as u8], &message[..], &[40, 1]].concat(),
        [&[3, message.len() as u8], &message[..], &[0; 8]].concat(),
    ]
}

/// A member's facts: values separated by a line of their own (`facts`, then pending chunks).
pub const FACTS: Target = Target {
    name: "facts",
    run: facts,
    seeds: facts_seeds,
    words: &[
        "\"epoch\":",
        "\"pending_chunks\":",
        "\"10.0.1.0/24\"",
        "10.0.1.0/33",
        "::/0",
        "\"removed\"",
        "null",
        "\n--\n",
    ],
    rounds: 3_000,
};

const SEPARATOR: &str = "\n--\n";

fn facts(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let names = std::iter::once(FACTS_KEY.to_owned()).chain((0..).map(pending_key));
    let values: BTreeMap<String, &str> = names.zip(text.split(SEPARATOR)).collect();
    let Ok(decoded) = decode(|key| values.get(key).copied()) else { return };
    assert!(decoded.facts.validate().is_ok(), "took what is not valid");
    // Accepted facts can be encoded again, unless they are too long.
    let again = match encode(&decoded.facts) {
        Ok(again) => again.into_iter().collect::<BTreeMap<_, _>>(),
        Err(FactsError::TooLong { .. } | FactsError::EntryTooLong { .. } | FactsError::TooManyPending(_)) => {
            return;
        }
        Err(error) => panic!("what was taken cannot be told on: {error}"),
    };
    let second = decode(|key| again.get(key).map(String::as_str)).expect("our own facts are taken");
    assert_eq!(second.facts, decoded.facts);
    assert!(second.rejected.is_empty());
}

fn facts_seeds() -> Vec<Vec<u8>> {
    let values = |facts| {
        let mut values = encode(&facts).expect("a sample is valid");
        values.rotate_right(1); // `facts` is written last, and stands first here
        values.into_iter().map(|(_, value)| value).collect::<Vec<_>>().join(SEPARATOR).into_bytes()
    };
    let quiet = node_facts::NodeFacts { pending: Vec::new(), ..sample::facts() };
    vec![values(sample::facts()), values(quiet)]
}

/// A line of a key file. An accepted one is written back as an equal key.
pub const KEY_FILE: Target =
    Target { name: "key-file", run: key_line, seeds: key_seeds, words: &["="], rounds: 5_000 };

fn key_line(bytes: &[u8]) {
    if let Ok(key) = GossipKey::parse(&String::from_utf8_lossy(bytes)) {
        assert_eq!(GossipKey::parse(&key.to_text()).map(|again| again.id()).ok(), Some(key.id()));
    }
}

fn key_seeds() -> Vec<Vec<u8>> {
    let key = GossipKey::new(Zeroizing::new([7; 32]));
    vec![key.to_text().as_bytes().to_vec(), [b'0'; 64].to_vec()]
}
