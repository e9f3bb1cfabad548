//! Which services select which identities, and which addresses have an identity: each selector is matched against each
//! identity once, not against each endpoint.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use identity::{Identity, Labels, Operator, Selector, ServiceName};
use serde::{Deserialize, Serialize};

/// Endpoints of the fleet with one identity, and the services that select them.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Group {
    labels: Labels,
    addresses: BTreeSet<Ipv4Addr>,
    services: BTreeSet<ServiceName>,
}

/// A label. Most selectors require one, by which they and the identities that they may select find one another.
type Label = (String, String);

/// The index. One per node.
///
/// Invariant: a group's `services` are those of `selectors` that match its labels; there is a group for exactly the
/// identities that some address has.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Index {
    identities: BTreeMap<Ipv4Addr, Identity>,
    groups: BTreeMap<Identity, Group>,
    groups_by_label: BTreeMap<Label, BTreeSet<Identity>>,
    selectors: BTreeMap<ServiceName, Selector>,
    by_label: BTreeMap<Label, BTreeSet<ServiceName>>,
    /// Services that require no particular label: matched against every identity.
    without_label: BTreeSet<ServiceName>,
}

impl Index {
    /// Whether some address has an identity.
    pub(super) fn knows(&self, identity: Identity) -> bool {
        self.groups.contains_key(&identity)
    }

    /// An address has this identity from now on, or none. Returns the services that have lost the address, and those that
    /// have won it. `labels`: of the identity, asked for only if it is new here.
    pub(super) fn follow(
        &mut self,
        address: Ipv4Addr,
        identity: Option<Identity>,
        labels: impl FnOnce() -> Labels,
    ) -> (BTreeSet<ServiceName>, BTreeSet<ServiceName>) {
        let before = self.identities.get(&address).copied();
        if before == identity {
            return Default::default();
        }
        let lost = before.map(|before| self.leave(address, before)).unwrap_or_default();
        let won = identity.map(|identity| self.join(address, identity, labels)).unwrap_or_default();
        (&lost - &won, &won - &lost)
    }

    /// The addresses of an identity, if it is known with other labels.
    pub(super) fn addresses_under_other_labels(&self, identity: Identity, labels: &Labels) -> Vec<IpAddr> {
        let group = self.groups.get(&identity).filter(|group| group.labels != *labels);
        group.into_iter().flat_map(|group| &group.addresses).map(|address| (*address).into()).collect()
    }

    /// The services that select some address of a range.
    pub(super) fn selecting_between(&self, first: Ipv4Addr, last: Ipv4Addr) -> BTreeSet<ServiceName> {
        let identities: BTreeSet<Identity> =
            self.identities.range(first..=last).map(|(_, identity)| *identity).collect();
        let groups = identities.iter().filter_map(|identity| self.groups.get(identity));
        groups.flat_map(|group| group.services.iter().cloned()).collect()
    }

    fn leave(&mut self, address: Ipv4Addr, identity: Identity) -> BTreeSet<ServiceName> {
        self.identities.remove(&address);
        let Some(group) = self.groups.get_mut(&identity) else { return BTreeSet::new() };
        group.addresses.remove(&address);
        if !group.addresses.is_empty() {
            return group.services.clone();
        }
        let group = self.groups.remove(&identity).expect("the group was just found");
        for label in labels_of(&group.labels) {
            remove_nested(&mut self.groups_by_label, &label, &identity);
        }
        group.services
    }

    fn join(
        &mut self,
        address: Ipv4Addr,
        identity: Identity,
        labels: impl FnOnce() -> Labels,
    ) -> BTreeSet<ServiceName> {
        self.identities.insert(address, identity);
        if !self.groups.contains_key(&identity) {
            let labels = labels();
            let services = self.selecting(&labels);
            for label in labels_of(&labels) {
                self.groups_by_label.entry(label).or_default().insert(identity);
            }
            self.groups.insert(identity, Group { labels, addresses: BTreeSet::new(), services });
        }
        let group = self.groups.get_mut(&identity).expect("the group was just made");
        group.addresses.insert(address);
        group.services.clone()
    }

    /// The services that select a label set.
    fn selecting(&self, labels: &Labels) -> BTreeSet<ServiceName> {
        let all: Vec<Label> = labels_of(labels).collect();
        let candidates = all.iter().filter_map(|label| self.by_label.get(label)).flatten();
        let candidates = candidates.chain(&self.without_label);
        candidates.filter(|name| self.selectors[*name].matches(labels)).cloned().collect()
    }

    /// A service has this selector from now on, or none.
    pub(super) fn select(&mut self, name: &ServiceName, selector: Option<Selector>) {
        if self.selectors.get(name) == selector.as_ref() {
            return;
        }
        if let Some(before) = self.selectors.remove(name) {
            for identity in self.candidates(&before) {
                if let Some(group) = self.groups.get_mut(&identity) {
                    group.services.remove(name);
                }
            }
            match required(&before) {
                Some(labels) => {
                    labels.iter().for_each(|label| remove_nested(&mut self.by_label, label, name))
                }
                None => drop(self.without_label.remove(name)),
            }
        }
        let Some(selector) = selector else { return };
        for identity in self.candidates(&selector) {
            if let Some(group) =
                self.groups.get_mut(&identity).filter(|group| selector.matches(&group.labels))
            {
                group.services.insert(name.clone());
            }
        }
        match required(&selector) {
            Some(labels) => {
                for label in labels {
                    self.by_label.entry(label).or_default().insert(name.clone());
                }
            }
            None => drop(self.without_label.insert(name.clone())),
        }
        self.selectors.insert(name.clone(), selector);
    }

    /// The identities that a selector may select.
    fn candidates(&self, selector: &Selector) -> BTreeSet<Identity> {
        match required(selector) {
            Some(labels) => {
                labels.iter().filter_map(|label| self.groups_by_label.get(label)).flatten().copied().collect()
            }
            None => self.groups.keys().copied().collect(),
        }
    }

    /// The addresses that a service selects.
    pub(super) fn selected<'a>(&'a self, name: &'a ServiceName) -> impl Iterator<Item = Ipv4Addr> + 'a {
        let candidates =
            self.selectors.get(name).map(|selector| self.candidates(selector)).unwrap_or_default();
        let groups = candidates.into_iter().filter_map(|identity| self.groups.get(&identity));
        groups.filter(|group| group.services.contains(name)).flat_map(|group| group.addresses.iter().copied())
    }
}

fn labels_of(labels: &Labels) -> impl Iterator<Item = Label> + '_ {
    labels.iter().map(|(key, value)| (key.to_owned(), value.to_owned()))
}

/// Labels of which a matching set has at least one; `None` if the selector requires no particular label.
fn required(selector: &Selector) -> Option<Vec<Label>> {
    if let Some(label) = labels_of(&selector.match_labels).next() {
        return Some(vec![label]);
    }
    let values =
        selector.match_expressions.iter().find(|requirement| requirement.operator == Operator::In)?;
    Some(values.values.iter().map(|value| (values.key.clone(), value.clone())).collect())
}

fn remove_nested<K: Ord, V: Ord>(outer: &mut BTreeMap<K, BTreeSet<V>>, key: &K, value: &V) {
    if let Some(inner) = outer.get_mut(key) {
        inner.remove(value);
        if inner.is_empty() {
            outer.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use identity::Requirement;

    use super::*;

    fn name(text: &str) -> ServiceName {
        text.parse().unwrap()
    }

    fn labels(text: &str) -> Selector {
        Selector { match_labels: text.parse().unwrap(), ..Selector::default() }
    }

    fn expression(key: &str, operator: Operator, values: &[&str]) -> Selector {
        let values = values.iter().map(|value| (*value).to_owned()).collect();
        let match_expressions = vec![Requirement { key: key.to_owned(), operator, values }];
        Selector { match_expressions, ..Selector::default() }
    }

    /// Whatever comes and goes in whatever order: a service selects what its selector matches.
    #[test]
    fn index_incremental_equals_full() {
        let seed = 7;
        println!("seed {seed}");
        let mut rng = fastrand::Rng::with_seed(seed);
        let sets = ["", "app=web", "app=web,tier=1", "app=db", "tier=1", "tier=2"];
        let selectors = [
            labels(""),
            labels("app=web"),
            labels("app=web,tier=1"),
            expression("tier", Operator::In, &["1", "2"]),
            expression("tier", Operator::Exists, &[]),
            expression("app", Operator::NotIn, &["web"]),
        ];
        let mut index = Index::default();
        let mut services: BTreeMap<ServiceName, Selector> = BTreeMap::new();
        let mut endpoints: BTreeMap<Ipv4Addr, usize> = BTreeMap::new();
        let mut members: BTreeMap<ServiceName, BTreeSet<Ipv4Addr>> = BTreeMap::new();
        for step in 0..5_000 {
            if rng.u8(..) < 40 {
                let service = name(["a", "b", "c", "d"][rng.usize(..4)]);
                let selector = rng.bool().then(|| selectors[rng.usize(..selectors.len())].clone());
                index.select(&service, selector.clone());
                match selector {
                    Some(selector) => {
                        members.insert(service.clone(), index.selected(&service).collect());
                        services.insert(service, selector);
                    }
                    None => {
                        members.remove(&service);
                        services.remove(&service);
                    }
                }
            } else {
                let address = Ipv4Addr::new(10, 0, 0, rng.u8(..24));
                let set = rng.bool().then(|| rng.usize(..sets.len()));
                let identity = set.map(|set| Identity::new(256 + set as u32).unwrap());
                let (lost, won) = index.follow(address, identity, || sets[set.unwrap()].parse().unwrap());
                for service in lost {
                    assert!(members.get_mut(&service).unwrap().remove(&address), "step {step}");
                }
                for service in won {
                    assert!(members.get_mut(&service).unwrap().insert(address), "step {step}");
                }
                match set {
                    Some(set) => drop(endpoints.insert(address, set)),
                    None => drop(endpoints.remove(&address)),
                }
            }
            for (service, selector) in &services {
                let expected: BTreeSet<Ipv4Addr> = endpoints
                    .iter()
                    .filter(|(_, set)| selector.matches(&sets[**set].parse().unwrap()))
                    .map(|(address, _)| *address)
                    .collect();
                assert_eq!(members[service], expected, "step {step}, {service}");
                assert_eq!(index.selected(service).collect::<BTreeSet<_>>(), expected, "step {step}");
            }
        }
    }
}
