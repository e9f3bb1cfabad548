//! Maglev tables (Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016, 3.4).
//!
//! Each member has a permutation of all slots that follows from its address and port. In turn, each member takes the first
//! free slot of its permutation. One member more or less therefore changes few slots of the others.

use std::net::IpAddr;

use super::Member;
use crate::BackendId;

/// Sizes of tables. Prime, so that any step walks through all slots.
const SIZES: [usize; 5] = [251, 1_021, 4_093, 16_381, LARGEST];
/// The largest table.
pub(super) const LARGEST: usize = 65_521;
/// Slots for each member at the least. The paper's 100 give shares that differ by 1 % at the most; with 200, of the
/// others' slots some 1.2 % move when one member goes, where 100 make it 2 %.
const SLOTS_PER_MEMBER: usize = 200;

/// The number of slots of a table with this number of members.
pub(super) const fn size(members: usize) -> usize {
    let mut index = 0;
    while index < SIZES.len() - 1 && SIZES[index] < members * SLOTS_PER_MEMBER {
        index += 1;
    }
    SIZES[index]
}

/// A member's position in its permutation of the slots.
struct Walk {
    next: usize,
    step: usize,
    /// The slots that the member may take, in parts of the greatest weight.
    credit: u32,
}

/// `members` have weights above 0, and are in an order that is the same on all nodes.
pub(super) fn slots(members: &[Member]) -> Vec<BackendId> {
    let Some(greatest) = members.iter().map(|member| u32::from(member.weight)).max() else {
        return Vec::new();
    };
    let size = size(members.len());
    let mut walks: Vec<Walk> = members.iter().map(|member| walk(member, size, greatest)).collect();
    let mut slots: Vec<Option<BackendId>> = vec![None; size];
    let mut free = size;
    loop {
        for (member, walk) in members.iter().zip(&mut walks) {
            // Each member has a first turn, so that none is without slots; further turns follow its weight.
            if walk.credit >= greatest {
                walk.credit -= greatest;
                while slots[walk.next].is_some() {
                    walk.advance(size);
                }
                slots[walk.next] = Some(member.id);
                free -= 1;
            }
            if free == 0 {
                return slots.into_iter().flatten().collect();
            }
            walk.credit += u32::from(member.weight);
        }
    }
}

impl Walk {
    fn advance(&mut self, size: usize) {
        self.next += self.step;
        if self.next >= size {
            self.next -= size;
        }
    }
}

fn walk(member: &Member, size: usize, greatest: u32) -> Walk {
    let hash = hash(member.address, member.port);
    // Two 32-bit numbers from one hash.
    let (offset, step) = (hash >> 32, hash & 0xffff_ffff);
    Walk {
        next: (offset % size as u64) as usize,
        step: (step % (size as u64 - 1)) as usize + 1,
        credit: greatest,
    }
}

/// The hash of address and port. It must never change: nodes with different builds would choose differently.
fn hash(address: IpAddr, port: u16) -> u64 {
    let bits = match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
        IpAddr::V6(address) => address.to_bits(),
    };
    let mut hash = mix(u64::from(port));
    hash = mix(hash ^ (bits >> 64) as u64);
    mix(hash ^ bits as u64)
}

/// The step of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014): every bit of the input changes half of the output's.
const fn mix(value: u64) -> u64 {
    let mut value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}
