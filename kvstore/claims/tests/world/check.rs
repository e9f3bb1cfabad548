//! P3, checked after every step against the store itself and against what every node believes.

use std::{collections::BTreeMap, time::Duration};

use identity::{Identity, Labels};
use ipnetwork::IpNetwork;
use kvstore_claims::{ChangeKind, FleetView};
use kvstore_schema::{ListPage, Revision, Schema, key::ParsedKey, record::ClaimState, service::ServiceClaim};
use kvstore_store::MemState;

use super::{QUARANTINE, Services, agent::Agent};

/// Follows the store change by change.
pub struct Checker {
    truth: FleetView,
    /// When each identity or block went into quarantine.
    resting: BTreeMap<String, Duration>,
}

/// Whether two views hold the same.
pub fn same(left: &FleetView, right: &FleetView) -> bool {
    left.fleet() == right.fleet()
        && left.nodes() == right.nodes()
        && left.alive() == right.alive()
        && left.cidrs() == right.cidrs()
        && left.identity_labels() == right.identity_labels()
        && left.identities() == right.identities()
        && left.refs_by_node() == right.refs_by_node()
        && left.endpoints() == right.endpoints()
}

impl Checker {
    pub fn new(schema: Schema) -> Self {
        Self { truth: FleetView::new(schema), resting: BTreeMap::new() }
    }

    /// The store was emptied and founded anew: what is free now has not rested, and rests nowhere.
    pub fn founded_anew(&mut self, page: ListPage) {
        self.truth.apply_list(page);
        self.resting.clear();
    }

    /// Whether the members still restore.
    pub fn is_restoring(&self) -> bool {
        self.truth.life().restoring
    }

    pub fn check(
        &mut self,
        store: &MemState,
        now: Duration,
        agents: &[Agent],
        services: &Services,
    ) -> Result<(), String> {
        let from: Revision = self.truth.revision().next();
        for event in store
            .events_since(from)
            .map_err(|error| error.to_string())?
            .chunk_by(|left, right| left.mod_revision() == right.mod_revision())
        {
            for change in self.truth.apply_events(event) {
                self.follow(&change.key, change.kind, now)?;
            }
        }
        self.identities_are_unique()?;
        self.numbers_have_one_meaning(agents)?;
        self.blocks_are_disjoint(agents)?;
        self.services_keep_their_addresses(services)?;
        agents.iter().try_for_each(|agent| {
            agent.failure.clone().map_or(Ok(()), Err)?;
            self.holds_what_it_believes(agent, self.is_restoring())
        })
    }

    /// Whether everything that the nodes use, and every service, is in the store again.
    pub fn is_whole(&self, agents: &[Agent], services: &Services) -> bool {
        agents.iter().all(|agent| self.holds_what_it_believes(agent, false).is_ok())
            && services.keys().all(|name| self.truth.services().contains_key(name))
    }

    /// What nodes use, whether the store knows of it or not.
    fn numbers_have_one_meaning(&self, agents: &[Agent]) -> Result<(), String> {
        let mut by_labels: BTreeMap<&Labels, Identity> = BTreeMap::new();
        let mut by_number: BTreeMap<Identity, &Labels> = BTreeMap::new();
        let used = agents.iter().flat_map(|agent| &agent.identities);
        let stored =
            self.truth.identity_labels().values().map(|entry| (&entry.record.labels, &entry.record.id));
        for (labels, identity) in used.chain(stored) {
            let number = *by_labels.entry(labels).or_insert(*identity);
            let meaning = *by_number.entry(*identity).or_insert(labels);
            if number != *identity || meaning != labels {
                return Err(format!("{labels} has {number} and {identity}, which means {meaning}"));
            }
        }
        Ok(())
    }

    /// A service that was answered has its address, or nobody has it while members restore.
    fn services_keep_their_addresses(&self, services: &Services) -> Result<(), String> {
        let restoring = self.is_restoring();
        for (name, record) in services {
            let claim = ServiceClaim::VirtualIp(record.virtual_ip);
            let owner = self.truth.service_claims().get(&claim).map(|entry| &entry.record.service);
            let there = self.truth.services().get(name).map(|entry| entry.record.virtual_ip);
            let kept = (owner, there) == (Some(name), Some(record.virtual_ip));
            let lost = restoring && (owner, there) == (None, None);
            if !kept && !lost {
                return Err(format!("{name} has {claim}, they said; the store has {owner:?} and {there:?}"));
            }
        }
        Ok(())
    }

    /// Nothing is freed that has not rested.
    fn follow(&mut self, key: &ParsedKey, kind: ChangeKind, now: Duration) -> Result<(), String> {
        let (name, state) = match key {
            ParsedKey::IdentityId(identity) => (
                format!("identity {identity}"),
                self.truth.identities().get(identity).map(|entry| entry.record.state),
            ),
            ParsedKey::Cidr(cidr) => {
                (format!("block {cidr}"), self.truth.cidrs().get(cidr).map(|entry| entry.record.state))
            }
            _ => return Ok(()),
        };
        match (kind, state) {
            (ChangeKind::Rejected, _) => Err(format!("{name} was written unreadable")),
            (_, Some(ClaimState::Live)) => {
                self.resting.remove(&name);
                Ok(())
            }
            (_, Some(ClaimState::Quarantined)) => {
                self.resting.entry(name).or_insert(now);
                Ok(())
            }
            (_, None) => match self.resting.remove(&name) {
                Some(since) if now.saturating_sub(since) >= QUARANTINE => Ok(()),
                since => Err(format!("{name} freed at {now:?}, in quarantine since {since:?}")),
            },
        }
    }

    fn identities_are_unique(&self) -> Result<(), String> {
        let mut numbers: BTreeMap<&Labels, Identity> = BTreeMap::new();
        for (identity, entry) in self.truth.identities() {
            if let Some(other) = numbers.insert(&entry.record.labels, *identity) {
                return Err(format!("labels {} have numbers {other} and {identity}", entry.record.labels));
            }
        }
        for entry in self.truth.identity_labels().values() {
            if numbers.get(&entry.record.labels) != Some(&entry.record.id) {
                return Err(format!(
                    "labels {} point to {}, which is not theirs",
                    entry.record.labels, entry.record.id
                ));
            }
        }
        Ok(())
    }

    fn blocks_are_disjoint(&self, agents: &[Agent]) -> Result<(), String> {
        let overlap =
            |left: &IpNetwork, right: &IpNetwork| left.contains(right.ip()) || right.contains(left.ip());
        let claims: Vec<IpNetwork> = self.truth.cidrs().keys().copied().collect();
        for (index, left) in claims.iter().enumerate() {
            if let Some(right) = claims[index + 1..].iter().find(|right| overlap(left, right)) {
                return Err(format!("claims {left} and {right} overlap"));
            }
        }
        for (index, left) in agents.iter().enumerate() {
            for right in &agents[index + 1..] {
                let both =
                    left.blocks.keys().find(|cidr| right.blocks.keys().any(|other| overlap(cidr, other)));
                if let Some(cidr) = both {
                    return Err(format!("{} and {} both hold {cidr}", left.name, right.name));
                }
            }
        }
        Ok(())
    }

    /// What a node uses, its agent running or not, is live in the store, and its own. `lost`: or absent there.
    fn holds_what_it_believes(&self, agent: &Agent, lost: bool) -> Result<(), String> {
        let name = &agent.name;
        for (labels, identity) in &agent.identities {
            match self.truth.identities().get(identity) {
                None if lost => continue,
                Some(entry) if entry.record.labels == *labels && entry.record.state == ClaimState::Live => {}
                other => return Err(format!("{name} uses {identity} for {labels}; the store has {other:?}")),
            }
            if !lost && !self.truth.refs(*identity).contains_key(name) {
                return Err(format!("{name} uses {identity} for {labels} without a reference"));
            }
        }
        for (cidr, grant) in &agent.blocks {
            match self.truth.cidrs().get(cidr) {
                None if lost => {}
                Some(claim)
                    if claim.record.node == *name
                        && claim.record.state == ClaimState::Live
                        && (lost || claim.created == grant.epoch) => {}
                other => return Err(format!("{name} holds {grant:?}; the store has {other:?}")),
            }
        }
        Ok(())
    }
}
