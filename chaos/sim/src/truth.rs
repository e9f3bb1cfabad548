//! What is really so, whatever nodes believe: which endpoints live, whose blocks are whose, and what was removed by
//! name and when. The simulation learns it from calls and their answers, and from the store while that is whole.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use datapath_plan::{NodeIndex, TableKey, Tables};
use identity::{EndpointName, Identity, LabelDigest, NodeName};
use ipnetwork::IpNetwork;
use kvstore_claims::FleetView;
use kvstore_schema::record::ClaimState;

/// An endpoint that was added and that nobody has asked to delete.
#[derive(Debug, Clone)]
pub(crate) struct Living {
    pub address: IpAddr,
    pub identity: Identity,
}

/// Who an address, block or node index is, to the point that a kernel can be wrong about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Subject {
    Address(IpAddr),
    Block(IpNetwork),
    Underlay(IpAddr),
    /// Endpoints that bear it get another when the store has another for their labels.
    Number(Identity),
}

/// The agent whose kernel changes.
pub(crate) struct Me<'a> {
    /// From 0.
    pub index: usize,
    /// It runs for long enough to have heard everybody.
    pub settled: bool,
    /// Its incarnation.
    pub life: u64,
    /// Whether the store has no record of an address.
    pub unrecorded: &'a dyn Fn(IpAddr) -> bool,
}

/// All of it.
#[derive(Clone, Default)]
pub(crate) struct Truth {
    /// By node (from 0) and name.
    pub endpoints: BTreeMap<(usize, EndpointName), Living>,
    /// Blocks with a live claim, by the last believable store.
    pub blocks: BTreeMap<IpNetwork, NodeName>,
    /// Underlay addresses of registered nodes.
    pub underlays: BTreeSet<IpAddr>,
    /// Nodes that an operator has removed: what they believe is out of date, and so may their kernels be.
    pub gone: BTreeSet<usize>,
    /// Which life of an agent put an address into its kernel.
    puts: BTreeMap<(usize, IpAddr), u64>,
    /// When something was last removed or changed by name.
    touched: BTreeMap<Subject, Duration>,
    /// When a number or block was last seen live.
    numbers: BTreeMap<Identity, Duration>,
    claims: BTreeMap<IpNetwork, Duration>,
    /// The labels of every number that there ever was.
    meanings: BTreeMap<Identity, LabelDigest>,
    /// When an address was last released.
    released: BTreeMap<IpAddr, Duration>,
}

impl Truth {
    /// Something is removed or changed by name: who hears of it late may act on it late.
    pub fn touch(&mut self, subject: Subject, now: Duration) {
        self.touched.insert(subject, now);
    }

    /// Whether the store has had another number for the labels of this one lately.
    pub fn is_given_up(&self, number: Identity, now: Duration, lag: Duration) -> bool {
        !self.quiet(Subject::Number(number), now, lag)
    }

    /// Whether nothing was done to it by name for so long that everybody must have heard.
    fn quiet(&self, subject: Subject, now: Duration, lag: Duration) -> bool {
        self.touched.get(&subject).is_none_or(|at| *at + lag < now)
    }

    /// An endpoint was added: the answer, or a checker, says so.
    pub fn added(&mut self, node: usize, name: EndpointName, address: IpAddr, identity: Identity) {
        let living = Living { address, identity };
        self.endpoints.entry((node, name)).or_insert(living);
    }

    /// An endpoint is to go, or has gone with its machine.
    pub fn removed(&mut self, node: usize, name: &EndpointName, now: Duration) {
        if let Some(living) = self.endpoints.remove(&(node, name.clone())) {
            self.touch(Subject::Address(living.address), now);
        }
    }

    /// A machine lost its kernel.
    pub fn lost(&mut self, node: usize, now: Duration) {
        let names: Vec<_> = self.endpoints.keys().filter(|(of, _)| *of == node).cloned().collect();
        for (_, name) in names {
            self.removed(node, &name, now);
        }
    }

    /// An operator says that a node will not come back.
    pub fn left(&mut self, node: usize, name: &NodeName, underlay: IpAddr, now: Duration) {
        self.lost(node, now);
        self.gone.insert(node);
        self.touch(Subject::Underlay(underlay), now);
        for (cidr, _) in self.blocks.iter().filter(|(_, owner)| *owner == name) {
            self.touched.insert(Subject::Block(*cidr), now);
        }
    }

    /// What the store says of blocks and nodes, while it is one whole story.
    pub fn learn(&mut self, view: &FleetView, now: Duration) {
        let live: BTreeMap<IpNetwork, NodeName> = (view.cidrs().iter())
            .filter(|(_, claim)| claim.record.state == ClaimState::Live)
            .map(|(cidr, claim)| (*cidr, claim.record.node.clone()))
            .collect();
        if live != self.blocks {
            for cidr in self.blocks.keys() {
                if self.blocks.get(cidr) != live.get(cidr) {
                    self.touched.insert(Subject::Block(*cidr), now);
                }
            }
            self.blocks = live;
        }
        let underlays: BTreeSet<IpAddr> =
            view.nodes().values().flat_map(|entry| entry.record.underlay.iter().copied()).collect();
        for changed in self.underlays.difference(&underlays) {
            self.touched.insert(Subject::Underlay(*changed), now);
        }
        self.underlays = underlays;
    }

    /// What the store says of numbers, whole or not.
    pub fn learn_numbers(&mut self, view: &FleetView, now: Duration) {
        for (number, entry) in view.identities() {
            self.meanings.insert(*number, entry.record.labels.digest());
        }
        for (number, digest) in &self.meanings {
            if view.identity_labels().get(digest).is_some_and(|entry| entry.record.id != *number) {
                self.touched.insert(Subject::Number(*number), now);
            }
        }
    }

    /// Numbers and blocks go by way of their quarantine.
    pub fn quarantine(
        &mut self,
        view: &FleetView,
        now: Duration,
        quarantine: Duration,
    ) -> Result<(), String> {
        let early = |at: Duration| at + quarantine > now;
        for (number, entry) in view.identities() {
            if entry.record.state == ClaimState::Live {
                self.numbers.insert(*number, now);
            }
        }
        for (cidr, entry) in view.cidrs() {
            if entry.record.state == ClaimState::Live {
                self.claims.insert(*cidr, now);
            }
        }
        let gone = |number: &Identity| !view.identities().contains_key(number);
        if let Some((number, at)) = self.numbers.iter().find(|(number, at)| gone(number) && early(**at)) {
            return Err(format!("identity {number} is free for others {:?} after its last use", now - *at));
        }
        let gone = |cidr: &IpNetwork| !view.cidrs().contains_key(cidr);
        if let Some((cidr, at)) = self.claims.iter().find(|(cidr, at)| gone(cidr) && early(**at)) {
            return Err(format!("block {cidr} is free for others {:?} after its last use", now - *at));
        }
        self.numbers.retain(|number, _| view.identities().contains_key(number));
        self.claims.retain(|cidr, _| view.cidrs().contains_key(cidr));
        Ok(())
    }

    /// The store was replaced or went back: what it does not tell is no news.
    pub fn forget_numbers(&mut self) {
        self.numbers.clear();
        self.claims.clear();
    }

    /// An agent has started: how long its addresses have rested it does not know.
    pub fn restarted(&mut self, blocks: impl Fn(IpAddr) -> bool) {
        self.released.retain(|ip, _| !blocks(*ip));
    }

    /// P6: of what a kernel had before and has no longer right, the first that nobody removed by name.
    ///
    /// `owners`: underlay address of each node, by number from 0.
    pub fn cut(
        &self,
        me: &Me,
        before: &Tables,
        after: &Tables,
        owners: &[IpAddr],
        (now, lag): (Duration, Duration),
    ) -> Option<String> {
        if self.gone.contains(&me.index) {
            return None;
        }
        let Me { index: me, settled, unrecorded, life } = me;
        let me = *me;
        // What an earlier life put there, and neither store nor gossip have told this one, may go after a while.
        let forgotten = |ip: IpAddr| *settled && unrecorded(ip) && self.puts.get(&(me, ip)) != Some(life);
        for (id, endpoint) in &before.endpoints {
            let living = self.endpoints.iter().find(|((node, _), living)| {
                *node == me && living.address == endpoint.address && living.identity == endpoint.identity
            });
            if let Some(((_, name), _)) = living
                && !after.endpoints.contains_key(id)
            {
                return Some(format!("endpoint {id} ({name}) left its kernel, and nobody deleted it"));
            }
        }
        for (prefix, value) in &before.ipcache {
            if after.ipcache.get(prefix) == Some(value) && self.same_way(before, after, value.node) {
                continue;
            }
            let what = if value.identity.is_fleet() {
                let right = |((node, _), living): (&(usize, _), &Living)| {
                    living.address == prefix.ip()
                        && living.identity == value.identity
                        && self.quiet(Subject::Address(prefix.ip()), now, lag)
                        && self.quiet(Subject::Number(value.identity), now, lag)
                        && self.quiet(Subject::Underlay(owners[*node]), now, lag)
                        && !forgotten(prefix.ip())
                        && leads_to(before, value.node, *node == me, owners[*node])
                };
                let kept = after.ipcache.get(prefix).is_some_and(|new| {
                    self.endpoints.iter().any(|((node, _), living)| {
                        living.address == prefix.ip()
                            && living.identity == new.identity
                            && leads_to(after, new.node, *node == me, owners[*node])
                    })
                });
                self.endpoints.iter().any(right) && !kept
            } else {
                let block = Subject::Block(*prefix);
                self.blocks.contains_key(prefix)
                    && self.quiet(block, now, lag)
                    && !after.ipcache.contains_key(prefix)
            };
            if what {
                let now = after.ipcache.get(prefix);
                return Some(format!(
                    "ipcache {prefix} was {value:?} and is {now:?}, and what is there lives"
                ));
            }
        }
        let gone = |prefix: &&IpNetwork| {
            self.blocks.contains_key(prefix)
                && self.quiet(Subject::Block(**prefix), now, lag)
                && !after.routes.contains_key(prefix)
        };
        if let Some(prefix) = before.routes.keys().find(gone) {
            return Some(format!("{} left the kernel, and the block has an owner", TableKey::Route(*prefix)));
        }
        let known =
            |tables: &Tables, underlay: IpAddr| tables.nodes.values().any(|node| node.underlay == underlay);
        let gone = |underlay: &&IpAddr| {
            known(before, **underlay)
                && !known(after, **underlay)
                && self.quiet(Subject::Underlay(**underlay), now, lag)
        };
        let underlay = self.underlays.iter().find(gone)?;
        Some(format!("the node at {underlay} left the kernel, and nobody removed it"))
    }

    /// An agent's plan put addresses into its kernel.
    pub fn put(&mut self, me: &Me, before: &Tables, after: &Tables) {
        for (prefix, value) in &after.ipcache {
            if before.ipcache.get(prefix) != Some(value) {
                self.puts.insert((me.index, prefix.ip()), me.life);
            }
        }
    }

    fn same_way(&self, before: &Tables, after: &Tables, index: NodeIndex) -> bool {
        before.nodes.get(&index) == after.nodes.get(&index)
    }

    /// An address is not an endpoint's any more, or has become one's: whether it has rested between.
    pub fn rest(
        &mut self,
        before: &BTreeSet<IpAddr>,
        after: &BTreeSet<IpAddr>,
        now: Duration,
        cooldown: Duration,
    ) -> Result<(), String> {
        for released in before.difference(after) {
            self.released.insert(*released, now);
        }
        for used in after.difference(before) {
            if let Some(at) = self.released.get(used).filter(|at| **at + cooldown > now) {
                return Err(format!("{used} is used again {:?} after its release", now - *at));
            }
        }
        Ok(())
    }
}

/// Whether an index leads to a node: this one itself, or the one at an underlay address.
fn leads_to(tables: &Tables, index: NodeIndex, own: bool, underlay: IpAddr) -> bool {
    if own {
        index == NodeIndex::SELF
    } else {
        tables.nodes.get(&index).is_some_and(|node| node.underlay == underlay)
    }
}
