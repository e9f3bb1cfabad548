//! The slot that a flow has in a service's table.

use datapath_abi::BLOCK_SLOTS;

/// The slot of a flow with this hash in a table of so many slots: the block that it is in, and its place there, which is
/// below [`BLOCK_SLOTS`]. Of an empty table the first.
#[inline(always)]
pub fn slot_of(flow_hash: u32, slots: u32) -> (u32, u32) {
    // The high word of the product: below `slots`, without a division.
    let slot = (u64::from(flow_hash).wrapping_mul(u64::from(slots)) >> 32) as u32;
    (slot / BLOCK_SLOTS, slot % BLOCK_SLOTS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slot_of_covers_the_whole_table() {
        for slots in [1, 2, 111, 112, 113, 251, 1_021, 65_521] {
            let step = u32::MAX / (4 * slots);
            let mut next = 0;
            for hash in (0..u32::MAX).step_by(step as usize).chain([u32::MAX]) {
                let (block, place) = slot_of(hash, slots);
                assert!(place < BLOCK_SLOTS);
                let slot = block * BLOCK_SLOTS + place;
                assert!(slot == next || slot + 1 == next, "{slots}: {slot} and not {next}");
                next = slot + 1;
            }
            assert_eq!(next, slots, "all are used");
        }
        assert_eq!(slot_of(u32::MAX, 0), (0, 0));
    }
}
