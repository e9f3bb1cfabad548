//! The short engine: blind mutations of known inputs, the same for the same seed.

use fastrand::Rng;

/// Inputs never grow beyond this: long ones find nothing that short ones do not, and take much longer.
const MAX_BYTES: usize = 4_096;
/// Maximum number of changes to one input.
const MAX_CHANGES: usize = 6;
/// Bytes with a meaning for some decoder: ends of ranges, JSON, lengths of bincode.
const TELLING: [u8; 12] = [0, 1, 0x7f, 0x80, 0xff, b'"', b'{', b'}', b'/', b'-', 251, 253];

/// Changes one of the inputs in a few places. `words` are tokens of the target's language.
pub fn mutate(rng: &mut Rng, inputs: &[Vec<u8>], words: &[&str]) -> Vec<u8> {
    let mut bytes = rng.choice(inputs).cloned().unwrap_or_default();
    for _ in 0..rng.usize(1..=MAX_CHANGES) {
        change(rng, &mut bytes, inputs, words);
    }
    bytes.truncate(MAX_BYTES);
    bytes
}

fn change(rng: &mut Rng, bytes: &mut Vec<u8>, inputs: &[Vec<u8>], words: &[&str]) {
    let at = rng.usize(0..=bytes.len());
    let end = (at + rng.usize(0..=16)).min(bytes.len());
    match rng.u8(0..8) {
        0 if at < bytes.len() => bytes[at] ^= 1 << rng.u8(0..8),
        1 if at < bytes.len() => bytes[at] = rng.u8(..),
        2 if at < bytes.len() => bytes[at] = TELLING[rng.usize(0..TELLING.len())],
        3 => drop(bytes.drain(at..end)),
        4 => {
            let piece = bytes[at..end].to_vec();
            bytes.splice(at..at, piece);
        }
        5 => {
            if let Some(word) = rng.choice(words) {
                bytes.splice(at..end, word.bytes());
            }
        }
        6 => {
            // The beginning of one and the end of another.
            if let Some(other) = rng.choice(inputs) {
                bytes.truncate(at);
                bytes.extend(&other[rng.usize(0..=other.len())..]);
            }
        }
        _ => bytes.insert(at, rng.u8(..)),
    }
}
