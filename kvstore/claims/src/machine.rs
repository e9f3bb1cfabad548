//! The frame of all machines: how they ask, wait and end, and how they treat an answer that did not come.

use std::time::Duration;

use kvstore_schema::{
    Key, KeyValue, KvFailure, KvOp, KvOpResult, KvOutcome, KvRequest, KvResponse, Txn, TxnResponse,
};
use serde::{Deserialize, Serialize};

use crate::{ClaimError, FleetView};

/// The pause after the first failure; it doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// The longest pause: above it an operator would take the machine for stuck.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// The pause while members restore: a restoration takes a minute or two.
const RESTORING_PAUSE: Duration = Duration::from_secs(5);
/// Conflicts in a row after which a machine pauses, so that two that contend do not spin.
const CONFLICTS_BEFORE_PAUSE: u32 = 8;

/// What the caller of a machine has to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step<T> {
    /// Carry out the request, then give its outcome to [`Machine::on_outcome`].
    Ask(KvRequest),
    /// Wait about this long, then call [`Machine::resume`].
    Wait {
        /// For `status` and the log.
        reason: WaitReason,
        /// A hint, jittered already. Waiting longer or shorter is safe.
        after: Duration,
    },
    /// The machine has ended: this is what was claimed. It must not be called again.
    Done(T),
    /// The machine has ended: this is why nothing was claimed. It must not be called again.
    Failed(ClaimError),
}

/// Why a machine waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WaitReason {
    /// The store gave no answer, or the outcome is unknown.
    Store(KvFailure),
    /// The transaction met conflicts many times in a row.
    Contention,
    /// Members of the fleet still restore what the store has lost, and nothing free may be claimed before they end.
    Restoring,
}

/// The next step of a [`Protocol`] after an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next<T> {
    /// Ask this.
    Ask(Txn),
    /// Ask the same transaction again after a pause.
    Wait(WaitReason),
    /// The protocol has ended with a result.
    Done(T),
    /// The protocol has ended without a result.
    Failed(ClaimError),
}

/// One ownership protocol. It sees only answers; [`Machine`] deals with those that do not come.
///
/// Invariant: each transaction may be asked again at any time, whatever its first outcome was. Either the second one
/// changes nothing, or its conditions fail and its `otherwise` branch reads what the store has.
pub trait Protocol {
    /// The result of the protocol.
    type Output;

    /// Takes the answer to the pending transaction.
    fn on_answer(&mut self, answer: &TxnResponse, view: &FleetView, draw: u64) -> Next<Self::Output>;
}

/// A running protocol: one for each block, number, record or service that is wanted, owned by its caller and dropped when
/// it has ended. Dropping it earlier is safe: the same protocol or the [`crate::Collector`] finds what it left behind.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Machine<P> {
    protocol: P,
    pending: Txn,
    failures: u32,
    answers: u32,
}

impl<P: Protocol> Machine<P> {
    pub(crate) fn begin(protocol: P, first: Txn) -> (Self, KvRequest) {
        let request = KvRequest::Txn(first.clone());
        (Self { protocol, pending: first, failures: 0, answers: 0 }, request)
    }

    /// Takes the outcome of the pending request. `draw` is any random number, a new one each time.
    pub fn on_outcome(&mut self, outcome: KvOutcome, view: &FleetView, draw: u64) -> Step<P::Output> {
        let answer = match outcome {
            Ok(KvResponse::Txn(answer)) => answer,
            Ok(KvResponse::List(_)) => {
                return Step::Failed(ClaimError::Protocol("a listing, not a transaction".to_owned()));
            }
            Err(KvFailure::Refused(text)) => return Step::Failed(ClaimError::Refused(text)),
            Err(failure) => {
                self.failures += 1;
                return Step::Wait { reason: WaitReason::Store(failure), after: pause(self.failures, draw) };
            }
        };
        self.failures = 0;
        self.answers += 1;
        match self.protocol.on_answer(&answer, view, draw) {
            Next::Ask(txn) => {
                self.pending = txn;
                if self.answers.is_multiple_of(CONFLICTS_BEFORE_PAUSE) {
                    Step::Wait { reason: WaitReason::Contention, after: pause(1, draw) }
                } else {
                    self.resume()
                }
            }
            Next::Wait(reason) => Step::Wait { reason, after: jittered(RESTORING_PAUSE, draw) },
            Next::Done(output) => Step::Done(output),
            Next::Failed(error) => Step::Failed(error),
        }
    }

    /// Asks again: after [`Step::Wait`], or when the caller lost the request.
    pub fn resume(&self) -> Step<P::Output> {
        Step::Ask(KvRequest::Txn(self.pending.clone()))
    }
}

/// Exponential, capped, and jittered.
fn pause(failures: u32, draw: u64) -> Duration {
    jittered(FIRST_PAUSE.saturating_mul(1 << failures.saturating_sub(1).min(10)).min(LONGEST_PAUSE), draw)
}

/// A pause of at least half of `whole` and at most all of it.
fn jittered(whole: Duration, draw: u64) -> Duration {
    let half = whole / 2;
    half + Duration::from_millis(draw % (half.as_millis() as u64 + 1))
}

/// The SplitMix64 hash of `seed`, good enough to spread slots (Steele et al., 2014).
pub(crate) fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The key that the `index`-th operation, a [`KvOp::Get`], has read.
pub(crate) fn got(answer: &TxnResponse, index: usize) -> Result<Option<&KeyValue>, ClaimError> {
    match answer.results.get(index) {
        Some(KvOpResult::Got(found)) => Ok(found.as_ref()),
        other => {
            Err(ClaimError::Protocol(format!("operation {index} answered {other:?}, a read was asked for")))
        }
    }
}

/// Decodes a record that stands in the way.
pub(crate) fn decode<R: kvstore_schema::record::Record>(kv: &KeyValue) -> Result<R, ClaimError> {
    R::decode(&kv.value)
        .map_err(|error| ClaimError::BadRecord { key: kv.key.clone(), reason: error.to_string() })
}

/// Writes a record without a lease.
pub(crate) fn put<R: kvstore_schema::record::Record>(key: Key, record: &R) -> KvOp {
    KvOp::Put { key, value: record.encode(), lease: None }
}

/// Turns the error of a step into the end of the machine, and a restoration into a pause.
pub(crate) fn or_wait<T>(next: Result<Next<T>, ClaimError>) -> Next<T> {
    match next {
        Err(ClaimError::Restoring) => Next::Wait(WaitReason::Restoring),
        next => or_failed(next),
    }
}

/// Turns the error of a step into the end of the machine.
pub(crate) fn or_failed<T>(next: Result<Next<T>, ClaimError>) -> Next<T> {
    next.unwrap_or_else(Next::Failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pause_grows_to_the_cap_and_is_jittered() {
        let check = |failures, draw, expected_ms| {
            assert_eq!(pause(failures, draw), Duration::from_millis(expected_ms), "{failures} {draw}");
        };
        check(1, 0, 100);
        check(1, 100, 200);
        check(2, 0, 200);
        check(30, 0, 5_000);
        check(30, 5_000, 10_000);
        check(u32::MAX, 5_001, 5_000);
    }

    #[test]
    fn mix_is_splitmix64() {
        // The first outputs of the reference implementation for these seeds.
        assert_eq!([0, 1].map(mix), [0xe220_a839_7b1d_cdaf, 0x910a_2dec_8902_5cc1]);
    }
}
