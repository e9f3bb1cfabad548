//! Times and sizes that are the same on every node; what an operator may choose is in `NodeConfig`.

use std::time::Duration;

/// How long an endpoint may wait for its identity or address before its caller is told to try again: above the failover
/// of the store's client (a few seconds), below what a container runtime waits for a network.
pub(crate) const ENDPOINT_WAIT: Duration = Duration::from_secs(10);

/// How long an identity is kept after the last endpoint that used it: a workload that restarts, or is replaced by the next
/// of its kind, does not cause a release and a new allocation in the store.
pub(crate) const IDENTITY_GRACE: Duration = Duration::from_secs(60);

/// How long `alive/<node>` outlives its agent: above an agent's restart and a short partition.
pub(crate) const ALIVE_TTL: Duration = Duration::from_secs(30);

/// Until joining is tried again after the fleet refused this node: an operator has to act first.
pub(crate) const JOIN_RETRY: Duration = Duration::from_secs(30);

/// Until a block is claimed again after the pools were found exhausted, or a record stood in the way.
pub(crate) const CLAIM_RETRY: Duration = Duration::from_secs(30);

/// Until records are written again after the store refused them for good.
pub(crate) const REFUSED_RETRY: Duration = Duration::from_secs(30);

/// Between two snapshots while endpoints of this node or services change, for each endpoint and service of the fleet: the
/// snapshot of a small fleet is saved at once, one of 100,000 endpoints every 200 ms (making it takes 6 ms: `cargo bench
/// -p node-core`). If the agent is killed meanwhile and the store is away, the next agent knows the endpoints, but perhaps
/// not a block or an identity that they were the first to use, or a service.
pub(crate) const PERSIST_OWN_PAUSE_EACH: Duration = Duration::from_micros(2);

/// Between two snapshots while the fleet changes: the store or gossip repeats what a snapshot lacks.
pub(crate) const PERSIST_FLEET_PAUSE: Duration = Duration::from_secs(5);

/// Until what gossip has not reported counts as absent: after a start it takes a few rounds (of 1 s) to hear all nodes, and
/// a peer that is cut off from the store reports its newest endpoints by gossip only.
pub(crate) const GOSSIP_SETTLED: Duration = Duration::from_secs(10);

/// How long a new member on another node is held back until its node reports on its health: two rounds of gossip, which
/// mostly needs some ms.
pub(crate) const MEMBER_HELD: Duration = Duration::from_secs(2);

/// After the store was founded anew: how long only owners write. Above the time in which the watches of all members find
/// a store that was replaced (some 10 s).
pub(crate) const RESTORE_GRACE: Duration = Duration::from_secs(30);

/// After the store was founded anew: until the fleet may claim again what is free, if nothing is left to be written.
pub(crate) const SETTLE_AFTER: Duration = Duration::from_secs(60);

/// From a change of a record to the store's next mark, plus up to the same again as jitter: an older copy from within that
/// time may not be recognised. One write for the whole fleet, however much changes.
pub(crate) const MARK_AFTER: Duration = Duration::from_secs(10);

/// Until a listing that was requested and failed is requested again.
pub(crate) const RELIST_RETRY: Duration = Duration::from_secs(1);

/// Until restoring a record is tried again after it failed.
pub(crate) const RESTORE_RETRY: Duration = Duration::from_secs(1);

/// Until the kernel is read again after it could not be read.
pub(crate) const OBSERVE_RETRY: Duration = Duration::from_secs(5);

/// Between two readings of the kernel because of external modifications: a reading takes some 50 ms on a full node.
pub(crate) const EXTERNALLY_MODIFIED_PAUSE: Duration = Duration::from_secs(1);

/// Endpoint records written in one round; further ones wait for the next round.
pub(crate) const WRITES_PER_ROUND: usize = 1_024;

/// Unconfirmed endpoint changes gossiped at once: with those below, fewer than `node-facts` can carry (about 1,700).
pub(crate) const MAX_PENDING: usize = 1_000;

/// Confirmed endpoint changes gossiped again while a peer is cut off from the store: some 20 kB of each node that has so
/// many. Older ones were gossiped while they were new.
pub(crate) const MAX_REPEATED: usize = 64;

/// Transactions in flight that write services: with fewer the store would wait for this node, with more each would hold
/// fewer services.
pub(crate) const SERVICE_BATCHES: usize = 4;
