//! What the opener accepts: exactly what a member sealed, once, and nothing else.

use proptest::prelude::*;

use super::*;
use crate::keyring::GossipKey;

const NOW_MS: u64 = 1_700_000_000_000;

fn fleet() -> FleetName {
    FleetName::new("alpha").unwrap()
}

fn key(seed: u8) -> GossipKey {
    GossipKey::new(zeroize::Zeroizing::new([seed; 32]))
}

fn ring(seed: u8) -> Keyring {
    Keyring::new(key(seed))
}

fn sealer(name: FleetName) -> Sealer {
    let mut number = 0_u64;
    Sealer::new(
        name,
        Box::new(move || {
            number += 1;
            SessionId(number.to_be_bytes())
        }),
    )
}

fn seal_one(message: &[u8]) -> Vec<u8> {
    let mut datagrams = sealer(fleet()).seal(&ring(1), NOW_MS, message);
    assert_eq!(datagrams.len(), 1);
    datagrams.remove(0)
}

fn check(keyring: &Keyring, now_ms: u64, datagram: &[u8], expected: Result<&[u8], Refusal>) {
    let opened = Opener::new(fleet()).open(keyring, now_ms, datagram);
    assert_eq!(opened, expected.map(|message| Some(message.to_vec())));
}

#[test]
fn sealed_message_opens_and_hides_its_content() {
    for message in [&b""[..], b"x", &[7; 1_400], &[9; MAX_PART_BYTES]] {
        let datagram = seal_one(message);
        assert_eq!(datagram.len(), HEADER_BYTES + message.len() + TAG_BYTES);
        check(&ring(1), NOW_MS, &datagram, Ok(message));
    }
    let datagram = seal_one(b"attack at dawn");
    assert!(!datagram.windows(6).any(|window| window == b"attack"));
}

#[test]
fn refusals_name_their_reason() {
    let datagram = seal_one(b"hello");
    let edited = |at: usize, byte: u8| {
        let mut copy = datagram.clone();
        copy[at] = byte;
        copy
    };
    check(&ring(1), NOW_MS, &[], Err(Refusal::TooShort));
    check(&ring(1), NOW_MS, &datagram[..HEADER_BYTES + TAG_BYTES - 1], Err(Refusal::TooShort));
    check(&ring(1), NOW_MS, &vec![0; MAX_DATAGRAM_BYTES + 1], Err(Refusal::Oversized));
    check(&ring(1), NOW_MS, &edited(0, b'X'), Err(Refusal::NotOurs));
    check(&ring(1), NOW_MS, &edited(2, 9), Err(Refusal::NotOurs));
    check(&ring(1), NOW_MS, &edited(3, 9), Err(Refusal::NotOurs));
    check(&ring(1), NOW_MS, &edited(4, !datagram[4]), Err(Refusal::WrongFleet));
    check(&ring(2), NOW_MS, &datagram, Err(Refusal::UnknownKey));
    check(&ring(1), NOW_MS, &edited(40, !datagram[40]), Err(Refusal::BadTag));
    check(&ring(1), NOW_MS, &datagram[..datagram.len() - 1], Err(Refusal::BadTag));
    for (now_ms, expected) in [
        (NOW_MS + MAX_CLOCK_SKEW_MS, Ok(&b"hello"[..])),
        (NOW_MS - MAX_CLOCK_SKEW_MS, Ok(&b"hello"[..])),
        (NOW_MS + MAX_CLOCK_SKEW_MS + 1, Err(Refusal::Stale)),
        (NOW_MS - MAX_CLOCK_SKEW_MS - 1, Err(Refusal::Stale)),
    ] {
        check(&ring(1), now_ms, &datagram, expected);
    }
}

#[test]
fn fleet_id_separates_fleets_with_equal_keys() {
    let mut datagram = sealer(FleetName::new("beta").unwrap()).seal(&ring(1), NOW_MS, b"hello").remove(0);
    check(&ring(1), NOW_MS, &datagram, Err(Refusal::WrongFleet));
    datagram[4..8].copy_from_slice(&FleetBinding::new(fleet()).tag);
    check(&ring(1), NOW_MS, &datagram, Err(Refusal::BadTag));
}

#[test]
fn datagram_opens_once() {
    let (mut sealer, mut opener) = (sealer(fleet()), Opener::new(fleet()));
    let datagrams: Vec<Vec<u8>> =
        (0..100_u8).flat_map(|number| sealer.seal(&ring(1), NOW_MS, &[number])).collect();
    for datagram in datagrams.iter().rev() {
        assert!(opener.open(&ring(1), NOW_MS, datagram).is_ok());
    }
    for datagram in &datagrams {
        assert_eq!(opener.open(&ring(1), NOW_MS, datagram), Err(Refusal::Replay));
    }
}

#[test]
fn datagram_of_the_sender_itself_is_refused() {
    let datagram = seal_one(b"hello");
    let mut opener = Opener::new(fleet());
    opener.remember_own(NOW_MS, &datagram);
    assert_eq!(opener.open(&ring(1), NOW_MS, &datagram), Err(Refusal::Replay));
}

#[test]
fn datagram_that_is_forged_does_not_consume_a_counter() {
    let datagram = seal_one(b"hello");
    let mut forged = datagram.clone();
    *forged.last_mut().unwrap() ^= 1;
    let mut opener = Opener::new(fleet());
    assert_eq!(opener.open(&ring(1), NOW_MS, &forged), Err(Refusal::BadTag));
    assert_eq!(opener.open(&ring(1), NOW_MS, &datagram), Ok(Some(b"hello".to_vec())));
}

#[test]
fn datagrams_carry_the_longest_chitchat_message_in_two_halves() {
    let message: Vec<u8> = (0..MAX_DATAGRAM_BYTES).map(|index| (index % 251) as u8).collect();
    let datagrams = sealer(fleet()).seal(&ring(1), NOW_MS, &message);
    let [first, second] = &datagrams[..] else { panic!("two datagrams") };
    let mut opener = Opener::new(fleet());
    assert_eq!(opener.open(&ring(1), NOW_MS, first), Ok(None));
    assert_eq!(opener.open(&ring(1), NOW_MS, second), Ok(Some(message)));
    assert!(opener.halves.is_empty());
    check(&ring(1), NOW_MS, second, Err(Refusal::LostHalf));
}

#[test]
fn datagram_halves_that_never_complete_take_bounded_memory() {
    let (mut sealer, mut opener) = (sealer(fleet()), Opener::new(fleet()));
    for _ in 0..3 * MAX_HALVES {
        let datagrams = sealer.seal(&ring(1), NOW_MS, &[0; MAX_DATAGRAM_BYTES]);
        assert_eq!(opener.open(&ring(1), NOW_MS, &datagrams[0]), Ok(None));
    }
    assert_eq!(opener.halves.len(), MAX_HALVES);
}

#[test]
fn session_is_renewed_before_its_counter_wraps() {
    let mut sealer = sealer(fleet());
    sealer.counter = u32::MAX - 1;
    let nonce_of = |datagram: &[u8]| datagram[20..32].to_vec();
    let last = sealer.seal(&ring(1), NOW_MS, b"last").remove(0);
    let first = sealer.seal(&ring(1), NOW_MS, b"first").remove(0);
    assert_eq!(nonce_of(&last), [0, 0, 0, 0, 0, 0, 0, 1, 255, 255, 255, 255]);
    assert_eq!(nonce_of(&first), [0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 1]);
    sealer.counter = u32::MAX - 1;
    let halves = sealer.seal(&ring(1), NOW_MS, &[0; MAX_DATAGRAM_BYTES]);
    assert_eq!(nonce_of(&halves[0])[..8], nonce_of(&halves[1])[..8], "both halves in one session");
}

#[test]
fn key_rotation_opens_old_and_new_datagrams() {
    let mut both = ring(1);
    both.install(key(2)).unwrap();
    let old = seal_one(b"old");
    both.use_key(key(2).id()).unwrap();
    let new = sealer(fleet()).seal(&both, NOW_MS, b"new").remove(0);
    check(&both, NOW_MS, &old, Ok(b"old"));
    check(&both, NOW_MS, &new, Ok(b"new"));
    check(&ring(1), NOW_MS, &new, Err(Refusal::UnknownKey));
    both.remove(key(1).id()).unwrap();
    check(&both, NOW_MS, &old, Err(Refusal::UnknownKey));
}

proptest! {
    /// Random bytes never open, also not behind a header that is right in every public field.
    #[test]
    fn datagrams_of_random_bytes_never_open(mut junk in proptest::collection::vec(any::<u8>(), 0..300), dressed: bool) {
        let real = seal_one(b"hello");
        if dressed {
            let length = junk.len().min(20);
            junk[..length].copy_from_slice(&real[..length]);
        }
        prop_assert!(Opener::new(fleet()).open(&ring(1), NOW_MS, &junk).is_err());
    }

    /// A datagram with a changed, missing or additional byte never opens.
    #[test]
    fn datagrams_that_are_damaged_never_open(
        message in proptest::collection::vec(any::<u8>(), 0..200),
        flips in proptest::collection::vec(any::<proptest::sample::Index>(), 1..4),
        cut: proptest::sample::Index,
        extra in 1_u8..20,
    ) {
        let real = seal_one(&message);
        let bits: std::collections::BTreeSet<usize> = flips.iter().map(|i| i.index(real.len() * 8)).collect();
        let mut flipped = real.clone();
        for bit in bits {
            flipped[bit / 8] ^= 1 << (bit % 8);
        }
        let mut longer = real.clone();
        longer.resize(real.len() + usize::from(extra), 0);
        for damaged in [&flipped[..], &real[..cut.index(real.len())], &longer] {
            prop_assert!(Opener::new(fleet()).open(&ring(1), NOW_MS, damaged).is_err());
        }
        prop_assert_eq!(Opener::new(fleet()).open(&ring(1), NOW_MS, &real), Ok(Some(message)));
    }
}
