//! The Internet checksum, computed and updated (RFC 1071, RFC 1624).

/// The checksum after words that it covers have changed from `old` to `new` (RFC 1624, equation 3).
#[inline(always)]
pub fn updated<const N: usize>(checksum_be: [u8; 2], old: [[u8; 2]; N], new: [[u8; 2]; N]) -> [u8; 2] {
    let mut sum = u32::from(!u16::from_be_bytes(checksum_be));
    for word in old {
        sum += u32::from(!u16::from_be_bytes(word));
    }
    for word in new {
        sum += u32::from(u16::from_be_bytes(word));
    }
    (!folded(sum)).to_be_bytes()
}

/// The sum of words, to be completed by [`of`].
#[inline(always)]
pub fn sum<const N: usize>(words: [[u8; 2]; N]) -> u32 {
    let mut sum = 0;
    for word in words {
        sum += u32::from(u16::from_be_bytes(word));
    }
    sum
}

/// The checksum of words with this sum.
#[inline(always)]
pub fn of(sum: u32) -> [u8; 2] {
    (!folded(sum)).to_be_bytes()
}

/// The checksum of words with this sum, which the kernel computed in the machine's byte order.
#[inline(always)]
pub fn of_native(sum: u32) -> [u8; 2] {
    (!folded(sum)).to_ne_bytes()
}

/// Four bytes as two words.
#[inline(always)]
pub const fn words([a, b, c, d]: [u8; 4]) -> [[u8; 2]; 2] {
    [[a, b], [c, d]]
}

/// Ones' complement sum in 16 bits. `sum` has at most 32,768 words in it.
#[inline(always)]
const fn folded(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}
