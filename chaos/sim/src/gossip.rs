//! Gossip as `node-gossip` does it: every node keeps the newest that it has heard of each other one, and two that
//! reach one another exchange what is news to either. The agent hears changes only, per node in their order; from
//! node to node they may come in any.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use identity::NodeName;
use node_core::GossipUpdate;
use node_facts::{Liveness, NodeFacts};

use crate::bug::Bug;

/// Peers that a node exchanges with in a round.
const FANOUT: usize = 3;
/// The time between two rounds.
pub(crate) const INTERVAL: Duration = Duration::from_secs(1);
/// Without a heartbeat for so long, a node is silent, and later seems dead.
const SILENCE: Duration = Duration::from_millis(2_500);
const DEATH: Duration = Duration::from_secs(6);

/// The way from one node to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// Whether anything passes.
    pub up: bool,
    /// Datagrams that get lost, of a hundred.
    pub loss_percent: u8,
    /// How long a datagram takes.
    pub delay: Duration,
}

impl Default for Link {
    fn default() -> Self {
        Self { up: true, loss_percent: 0, delay: Duration::ZERO }
    }
}

/// What a node last said, as somebody has heard it.
#[derive(Clone)]
struct Heard {
    incarnation: u64,
    /// Rises with each change.
    version: u64,
    /// Rises with each round.
    heartbeat: u64,
    facts: Option<Arc<NodeFacts>>,
    /// When it was news last.
    at: Duration,
    told: Option<Liveness>,
}

impl Heard {
    fn newer_than(&self, other: Option<&Self>) -> bool {
        other.is_none_or(|other| {
            (self.incarnation, self.version, self.heartbeat)
                > (other.incarnation, other.version, other.heartbeat)
        })
    }
}

/// What one node has heard, itself included. Dies with its agent.
type Table = BTreeMap<usize, Heard>;

/// Gossip of the whole fleet. Nodes are numbered from 0.
#[derive(Clone, Default)]
pub struct Gossip {
    links: BTreeMap<(usize, usize), Link>,
    tables: BTreeMap<usize, Table>,
    /// Exchanges that are due at once, since one of the two has news.
    due: BTreeSet<(usize, usize)>,
    /// What is under way to a node, by its arrival.
    under_way: BTreeMap<(Duration, u64), (usize, Table)>,
    sent: u64,
    last_round: Duration,
    /// What was told before the last, for a bug to tell again.
    former: BTreeMap<usize, Arc<NodeFacts>>,
}

/// News for one node.
pub(crate) struct News {
    pub to: usize,
    pub update: GossipUpdate,
}

impl Gossip {
    /// The way from one node to another (from 0).
    pub fn link(&mut self, from: usize, to: usize) -> &mut Link {
        self.links.entry((from, to)).or_default()
    }

    /// All ways are as good as new.
    pub fn heal(&mut self) {
        self.links.clear();
    }

    /// Whether packets pass between two nodes, both ways.
    pub(crate) fn passes(&self, one: usize, other: usize) -> bool {
        self.way(one, other).up && self.way(other, one).up
    }

    fn way(&self, from: usize, to: usize) -> Link {
        self.links.get(&(from, to)).copied().unwrap_or_default()
    }

    /// A node says this from now on.
    pub(crate) fn publish(&mut self, node: usize, incarnation: u64, facts: NodeFacts, now: Duration) {
        let table = self.tables.entry(node).or_default();
        let before = table.remove(&node);
        let (version, heartbeat) = before.as_ref().map_or((0, 0), |own| (own.version, own.heartbeat));
        if let Some(facts) = before.and_then(|own| own.facts) {
            self.former.insert(node, facts);
        }
        let own = Heard {
            incarnation,
            version: version + 1,
            heartbeat,
            facts: Some(Arc::new(facts)),
            at: now,
            told: None,
        };
        table.insert(node, own);
        self.has_news(node);
    }

    /// An agent has started: it knows nothing, and is heard of with its first word.
    pub(crate) fn forget(&mut self, node: usize) {
        self.tables.insert(node, Table::new());
        self.under_way.retain(|_, (to, _)| *to != node);
        let others: Vec<usize> = self.tables.keys().copied().filter(|other| *other != node).collect();
        self.due.extend(others.into_iter().map(|other| (other, node)));
    }

    fn has_news(&mut self, node: usize) {
        self.due.extend(self.tables.keys().filter(|to| **to != node).map(|to| (node, *to)));
    }

    /// An exchange between two running nodes that is due and possible: gossip without rounds.
    pub(crate) fn next_due(&mut self, runs: impl Fn(usize) -> bool) -> Option<(usize, usize)> {
        let possible = |(from, to): &&(usize, usize)| {
            runs(*from) && runs(*to) && self.way(*from, *to).up && self.way(*to, *from).up
        };
        let pair = *self.due.iter().find(possible)?;
        self.due.remove(&pair);
        Some(pair)
    }

    /// Tells one node what another knows.
    pub(crate) fn exchange(&mut self, from: usize, to: usize, now: Duration) -> Vec<News> {
        let table = self.tables.get(&from).cloned().unwrap_or_default();
        let news = self.merge(to, table, now);
        if !news.is_empty() {
            self.has_news(to);
        }
        news
    }

    /// Rounds that are due, and what has arrived. `draw` gives random numbers.
    pub(crate) fn rounds(
        &mut self,
        now: Duration,
        runs: impl Fn(usize) -> bool,
        rng: &mut fastrand::Rng,
    ) -> Vec<News> {
        if now < self.last_round + INTERVAL {
            return Vec::new();
        }
        self.last_round = now;
        self.due.clear();
        let nodes: Vec<usize> = self.tables.keys().copied().filter(|node| runs(*node)).collect();
        for node in &nodes {
            if let Some(own) = self.tables.get_mut(node).and_then(|table| table.get_mut(node)) {
                own.heartbeat += 1;
                own.at = now;
            }
        }
        for node in &nodes {
            for peer in rng.choose_multiple(nodes.iter().copied().filter(|peer| peer != node), FANOUT) {
                self.handshake(*node, peer, now, rng);
            }
        }
        let mut news = Vec::new();
        while let Some(entry) = self.under_way.first_entry().filter(|entry| entry.key().0 <= now) {
            let (to, table) = entry.remove();
            if runs(to) {
                news.extend(self.merge(to, table, now));
            }
        }
        for node in nodes {
            news.extend(self.liveness(node, now));
        }
        news
    }

    /// A digest there, digest and news back, news there: whatever is lost on one way, nothing comes back on the other.
    fn handshake(&mut self, node: usize, peer: usize, now: Duration, rng: &mut fastrand::Rng) {
        let (there, back) = (self.way(node, peer), self.way(peer, node));
        let mut passes = |link: Link| link.up && rng.u8(0..100) >= link.loss_percent;
        if !passes(there) || !passes(back) {
            return;
        }
        self.send(peer, node, now + there.delay + back.delay);
        if passes(there) {
            self.send(node, peer, now + there.delay * 2 + back.delay);
        }
    }

    fn send(&mut self, from: usize, to: usize, arrives: Duration) {
        self.sent += 1;
        let table = self.tables.get(&from).cloned().unwrap_or_default();
        self.under_way.insert((arrives, self.sent), (to, table));
    }

    fn merge(&mut self, to: usize, table: Table, now: Duration) -> Vec<News> {
        let mut news = Vec::new();
        let own = self.tables.entry(to).or_default();
        for (node, heard) in table.into_iter().filter(|(node, _)| *node != to) {
            let before = own.get(&node);
            if !heard.newer_than(before) {
                continue;
            }
            let facts = heard.facts.clone();
            if facts != before.and_then(|before| before.facts.clone())
                && let Some(facts) = facts
            {
                news.push(News { to, update: GossipUpdate::Facts(Box::new(facts.as_ref().clone())) });
            }
            let told = before.and_then(|before| before.told);
            own.insert(node, Heard { at: now, told, ..heard });
        }
        news
    }

    fn liveness(&mut self, node: usize, now: Duration) -> Vec<News> {
        let mut news = Vec::new();
        for (other, heard) in self.tables.get_mut(&node).into_iter().flatten() {
            let liveness = match now - heard.at {
                quiet if quiet < SILENCE => Liveness::Alive,
                quiet if quiet < DEATH => Liveness::Silent,
                _ => Liveness::Dead,
            };
            let Some(facts) = heard.facts.as_ref().filter(|_| *other != node) else { continue };
            if heard.told.replace(liveness) != Some(liveness) {
                let update = GossipUpdate::Live { node: facts.node.clone(), liveness };
                news.push(News { to: node, update });
            }
        }
        news
    }

    /// With [`Bug::LateGossip`]: what a node said before it said what counts.
    pub(crate) fn late(&self, bug: Option<Bug>) -> Option<NodeFacts> {
        let former = self.former.values().next_back().filter(|_| bug == Some(Bug::LateGossip))?;
        Some(former.as_ref().clone())
    }

    /// Whether somebody still gossips a change that the store has not confirmed.
    pub(crate) fn pending(&self) -> Option<(NodeName, usize)> {
        let own = self.tables.iter().filter_map(|(node, table)| table.get(node)?.facts.clone());
        own.filter(|facts| !facts.pending.is_empty())
            .map(|facts| (facts.node.clone(), facts.pending.len()))
            .next()
    }
}
