//! Bugs planted into the requests on their way to the store: the checker has to find each of them.

use kvstore_schema::{Condition, KvOp, Schema, Txn};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// Collecting an identity without "no key under `refs/<id>/`".
    CollectWithoutRangeCompare,
    /// Deleting whatever reference is there.
    ReleaseWithoutRevision,
    /// Collecting at once.
    NoQuarantine,
    /// A label set may get a second number.
    CreateOverLabels,
    /// A number may get a second label set.
    CreateOverNumber,
    /// A reference to a number in whatever state.
    JoinWithoutRevision,
    /// A block may get a second owner.
    ClaimOverClaim,
    /// A release that the former agent sent ends the new one's claim.
    ReleaseCidrByEpochAlone,
    /// A free block is claimed while members restore.
    BlockWhileRestoring,
    /// A label set gets a number that nobody had while members restore.
    NumberWhileRestoring,
    /// A service gets a free address while members restore.
    ServiceWhileRestoring,
}

pub const ALL: [Bug; 11] = [
    Bug::CollectWithoutRangeCompare,
    Bug::ReleaseWithoutRevision,
    Bug::NoQuarantine,
    Bug::CreateOverLabels,
    Bug::CreateOverNumber,
    Bug::JoinWithoutRevision,
    Bug::ClaimOverClaim,
    Bug::ReleaseCidrByEpochAlone,
    Bug::BlockWhileRestoring,
    Bug::NumberWhileRestoring,
    Bug::ServiceWhileRestoring,
];

impl Bug {
    /// Takes conditions away from what an agent asks.
    pub fn plant(self, schema: &Schema, txn: &mut Txn) {
        let root = schema.root().as_str().to_owned();
        let under =
            |key: &kvstore_schema::Key, part: &str| key.as_str().starts_with(&format!("{root}{part}"));
        let deletes_ref = matches!(&txn.then[..], [KvOp::Delete(key)] if under(key, "identities/refs/"));
        let creates = txn
            .conditions
            .iter()
            .any(|condition| matches!(condition, Condition::Absent(key) if under(key, "identities/labels/")));
        let puts =
            |part: &str| txn.then.iter().any(|op| matches!(op, KvOp::Put { key, .. } if under(key, part)));
        let unguarded = match self {
            Self::BlockWhileRestoring => puts("cidrs/"),
            Self::NumberWhileRestoring => puts("identities/labels/"),
            Self::ServiceWhileRestoring => puts("services/"),
            _ => false,
        };
        let by_epoch =
            txn.conditions.iter().any(|condition| matches!(condition, Condition::CreateRevision(..)));
        txn.conditions.retain(|condition| match (self, condition) {
            (Self::ReleaseWithoutRevision, Condition::ModRevision(..)) => !deletes_ref,
            (Self::CreateOverLabels, Condition::Absent(key)) => !under(key, "identities/labels/"),
            (Self::CreateOverNumber, Condition::Absent(key)) => !under(key, "identities/id/"),
            (Self::CreateOverNumber, Condition::RangeEmpty(_)) => !creates,
            (Self::JoinWithoutRevision, Condition::ModRevision(key, _)) => !under(key, "identities/"),
            (Self::ClaimOverClaim, Condition::Absent(key)) => !under(key, "cidrs/"),
            (Self::ReleaseCidrByEpochAlone, Condition::ModRevision(..)) => !by_epoch,
            (_, Condition::ValueIs(..)) => !unguarded,
            _ => true,
        });
    }

    /// Takes conditions away from what a collector asks.
    pub fn plant_in_collector(self, txn: &mut Txn) {
        if self == Self::CollectWithoutRangeCompare {
            txn.conditions.retain(|condition| !matches!(condition, Condition::RangeEmpty(_)));
        }
    }
}
