//! Tables of shares: each member has as many adjacent slots as its weight says. Small and quick to compute; one member more
//! or less moves most slots.

use super::Member;
use crate::BackendId;

/// Weights are scaled down so that a table has no more slots than this: each member's share is right to 1/4,096 of all
/// flows.
pub(super) const LARGEST: usize = 4_096;

/// `members` have weights above 0.
pub(super) fn slots(members: &[Member]) -> Vec<BackendId> {
    let divisor = members.iter().fold(0, |divisor, member| gcd(divisor, u64::from(member.weight)));
    let reduced = |member: &Member| u64::from(member.weight) / divisor;
    let total: u64 = members.iter().map(reduced).sum();
    let mut slots = Vec::new();
    let mut before = 0;
    for member in members {
        let after = before + reduced(member);
        // Begin and end of the member's part, rounded so that the parts add up to the whole.
        let scaled = |sum: u64| if total as usize > LARGEST { sum * LARGEST as u64 / total } else { sum };
        slots.extend(std::iter::repeat_n(member.id, (scaled(after) - scaled(before)) as usize));
        before = after;
    }
    slots
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}
