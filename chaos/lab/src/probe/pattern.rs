//! The bytes of a stream: each stream and direction has its own, and any part can be generated or checked alone.

/// The endless bytes of one direction of one stream.
#[derive(Debug, Clone)]
pub(super) struct Pattern {
    key: u64,
    offset: u64,
}

impl Pattern {
    pub(super) fn new(seed: u64, stream: u64, direction: u64) -> Self {
        Self { key: mix(mix(mix(seed) ^ stream) ^ direction), offset: 0 }
    }

    /// Number of bytes generated or checked so far.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// Generates the next bytes.
    pub(super) fn fill(&mut self, buffer: &mut [u8]) {
        self.each(buffer.len(), |index, byte| buffer[index] = byte);
    }

    /// Checks that these are the next bytes; otherwise returns the offset of the first difference.
    pub(super) fn check(&mut self, bytes: &[u8]) -> Result<(), u64> {
        let (start, mut wrong) = (self.offset, None);
        self.each(bytes.len(), |index, byte| {
            if bytes[index] != byte && wrong.is_none() {
                wrong = Some(start + index as u64);
            }
        });
        wrong.map_or(Ok(()), Err)
    }

    fn each(&mut self, count: usize, mut visit: impl FnMut(usize, u8)) {
        let mut index = 0;
        while index < count {
            let word = mix(self.key ^ (self.offset / 8)).to_le_bytes();
            for &byte in &word[(self.offset % 8) as usize..] {
                if index == count {
                    break;
                }
                visit(index, byte);
                index += 1;
                self.offset += 1;
            }
        }
    }
}

/// SplitMix64's output function: neighbouring numbers give unrelated words.
fn mix(number: u64) -> u64 {
    let mut word = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pattern_is_independent_of_chunks_and_detects_every_change() {
        let mut whole = vec![0; 1_000];
        Pattern::new(1, 2, 0).fill(&mut whole);
        let mut checker = Pattern::new(1, 2, 0);
        for part in [&whole[..3], &whole[3..17], &whole[17..]] {
            assert_eq!(checker.check(part), Ok(()));
        }
        assert_eq!(checker.offset(), 1_000);
        whole[513] ^= 1;
        assert_eq!(Pattern::new(1, 2, 0).check(&whole), Err(513));
        // One byte is missing, or belongs to another stream or direction.
        assert!(Pattern::new(1, 2, 0).check(&whole[1..]).is_err());
        assert!(Pattern::new(1, 2, 1).check(&whole).is_err());
        assert!(Pattern::new(1, 3, 0).check(&whole).is_err());
    }
}
