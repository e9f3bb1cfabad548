//! Times and sizes that are the same on every node; what an operator may choose is in `NodeConfig`.

use std::time::Duration;

/// How long an endpoint may wait for its identity or address before its caller is told to try again: above
/// the failover of the store's client (a few seconds), below what a container runtime waits for a network.
pub(crate) const ENDPOINT_WAIT: Duration = Duration::from_secs(10);

/// How long a number is kept after the last endpoint that used it: a workload that restarts, or is replaced
/// by the next of its kind, does not send its identity round through the store.
pub(crate) const IDENTITY_GRACE: Duration = Duration::from_secs(60);

/// How long `alive/<node>` outlives its agent: above an agent's restart and a short partition.
pub(crate) const ALIVE_TTL: Duration = Duration::from_secs(30);

/// Until joining is tried again after the fleet refused this node: an operator has to act first.
pub(crate) const JOIN_RETRY: Duration = Duration::from_secs(30);

/// Until a block is asked for again after the pools were found empty, or a record stood in the way.
pub(crate) const CLAIM_RETRY: Duration = Duration::from_secs(30);

/// Until records are written again after the store refused them for good.
pub(crate) const REFUSED_RETRY: Duration = Duration::from_secs(30);

/// Between two snapshots while endpoints of this node or services change, for each endpoint and service of the fleet: a
/// small fleet's are saved at once, one of 100,000 every 200 ms (making that one takes 6 ms: `cargo bench -p node-core`).
/// If the agent is killed meanwhile and the store is away, the next one knows the endpoints, but perhaps not a block or a
/// number that they were the first to use, or a service.
pub(crate) const PERSIST_OWN_PAUSE_EACH: Duration = Duration::from_micros(2);

/// Between two snapshots while the fleet changes: what is missing in it the store or gossip tells again.
pub(crate) const PERSIST_FLEET_PAUSE: Duration = Duration::from_secs(5);

/// Until what gossip has not told counts as not there: after a start it takes a few rounds (of 1 s) to hear everybody, and
/// a peer that is cut off from the store tells of its newest endpoints by gossip alone.
pub(crate) const GOSSIP_SETTLED: Duration = Duration::from_secs(10);

/// How long a new member on another node is held back for want of word whether it is well: two rounds of gossip, which mostly
/// needs some ms.
pub(crate) const MEMBER_HELD: Duration = Duration::from_secs(2);

/// After the store was founded anew: how long what others own is left to them. Above a watch's way back to a store that
/// was replaced, whose clients find it within some 10 s.
pub(crate) const RESTORE_GRACE: Duration = Duration::from_secs(30);

/// After the store was founded anew: until the fleet may claim again what is free, if nothing is left to be written.
pub(crate) const SETTLE_AFTER: Duration = Duration::from_secs(60);

/// From a change of a record to the store's next mark, and half as long again as a rule: an older copy from within that time may not be
/// known for one. One write for the whole fleet, however much changes.
pub(crate) const MARK_AFTER: Duration = Duration::from_secs(10);

/// Until a list that was asked for and did not come is asked for again.
pub(crate) const RELIST_RETRY: Duration = Duration::from_secs(1);

/// Until what could not be written again is tried once more.
pub(crate) const RESTORE_RETRY: Duration = Duration::from_secs(1);

/// Until the kernel is read again after it could not be read.
pub(crate) const OBSERVE_RETRY: Duration = Duration::from_secs(5);

/// Between two readings of the kernel because somebody changed it: a reading takes some 50 ms on a full node.
pub(crate) const DISTURBED_PAUSE: Duration = Duration::from_secs(1);

/// Endpoint records written in one round; what comes later waits for the next.
pub(crate) const WRITES_PER_ROUND: usize = 1_024;

/// Unconfirmed endpoint changes gossiped at once: below what `node-facts` can carry (about 1,700), with those below.
pub(crate) const MAX_PENDING: usize = 1_000;

/// Confirmed endpoint changes gossiped at once while a peer is cut off from the store: some 20 kB of each node that has
/// so many, and what comes off the end has been told.
pub(crate) const MAX_TOLD_AGAIN: usize = 64;

/// Transactions that write services, at once: with fewer the store waits for this node, with more they hold fewer services
/// each.
pub(crate) const SERVICE_BATCHES: usize = 4;
