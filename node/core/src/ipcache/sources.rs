//! The sources of the ipcache, in order of precedence, and the one answer that they give.

use std::net::IpAddr;

use datapath_plan::{IpcacheValue, NodeIndex};
use identity::{EndpointName, Identity, Labels};
use ipnetwork::IpNetwork;
use node_facts::PendingOp;

use super::Ipcache;
use crate::{
    EndpointState, IpcacheSource, context::Context, endpoints::Endpoints, fleet::Fleet, ipam::Ipam,
    peers::Peers, routing::Routing,
};

/// The components that know who has an address. Borrowed for one call.
#[derive(Clone, Copy)]
pub(crate) struct Sources<'a> {
    pub fleet: &'a Fleet,
    pub routing: &'a Routing,
    pub ipam: &'a Ipam,
    pub endpoints: &'a Endpoints,
    pub peers: &'a Peers,
}

/// Who has an address or prefix, and by which source.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Answer<'a> {
    pub source: IpcacheSource,
    /// What the kernel is told: identity and node.
    pub value: IpcacheValue,
    /// The endpoint's name; `None` if the address is not an endpoint's.
    pub name: Option<&'a EndpointName>,
    /// The endpoint's labels, as the source tells them.
    labels: Option<&'a Labels>,
    /// Whether the endpoint is drained.
    pub terminating: bool,
}

impl<'a> Answer<'a> {
    /// An answer that is no endpoint.
    fn other(source: IpcacheSource, identity: Identity, node: NodeIndex) -> Self {
        Self { source, value: IpcacheValue { identity, node }, name: None, labels: None, terminating: false }
    }

    /// Whether the address is an endpoint's.
    pub(crate) fn is_endpoint(&self) -> bool {
        self.name.is_some()
    }

    /// The labels that the identity stands for. An identity that is newer than what is known of the store has the labels
    /// of its endpoint.
    pub(crate) fn identity_labels(&self, cx: &Context, fleet: &Fleet) -> Labels {
        let recorded = fleet.labels_of(self.value.identity).cloned();
        let own = || self.labels.map(|labels| cx.identity_labels(labels));
        recorded.or_else(own).unwrap_or_default()
    }
}

/// What one source says of an address.
enum Claim<'a> {
    /// Nothing: the next source is asked.
    Silent,
    /// Nobody may be known by the address now, whatever later sources say.
    Nobody,
    Is(Answer<'a>),
}

impl IpcacheSource {
    /// The sources of exact addresses; the first one that is not silent decides. [`IpcacheSource::Cidr`] comes after all
    /// of them, by longest prefix in the kernel.
    const EXACT: [Self; 5] = [Self::Host, Self::RemoteNode, Self::LocalEndpoint, Self::Gossip, Self::Record];
}

impl Ipcache {
    /// Who has an address: the answer of the first source that is not silent.
    pub(crate) fn resolve<'a>(&self, sources: Sources<'a>, ip: IpAddr) -> Option<Answer<'a>> {
        for source in IpcacheSource::EXACT {
            match self.ask(sources, source, ip) {
                Claim::Silent => {}
                Claim::Nobody => return None,
                Claim::Is(answer) => return Some(answer),
            }
        }
        None
    }

    /// What is known of the addresses of a block that no exact source knows. They are routed to its node all the same.
    /// Who they are is unknown, and unknown never means host.
    pub(crate) fn resolve_block<'a>(&self, sources: Sources<'a>, block: IpNetwork) -> Option<Answer<'a>> {
        let owner = sources.peers.owner(block)?;
        Some(if owner == sources.fleet.node() {
            Answer::other(IpcacheSource::Cidr, Identity::UNMANAGED, NodeIndex::SELF)
        } else {
            Answer::other(IpcacheSource::Cidr, Identity::UNKNOWN, sources.peers.index_of(owner)?)
        })
    }

    fn ask<'a>(&self, sources: Sources<'a>, source: IpcacheSource, ip: IpAddr) -> Claim<'a> {
        let Sources { fleet, routing, ipam, endpoints, peers } = sources;
        let claim = match source {
            IpcacheSource::Host => {
                let own = routing.addresses().contains(&ip) || ipam.gateway() == Some(ip);
                own.then(|| Claim::Is(Answer::other(source, Identity::HOST, NodeIndex::SELF)))
            }
            IpcacheSource::RemoteNode => {
                peers.node_at(ip).map(|index| Claim::Is(Answer::other(source, Identity::REMOTE_NODE, index)))
            }
            IpcacheSource::LocalEndpoint => endpoints.at(ip).map(|endpoint| {
                let attached = matches!(endpoint.state, EndpointState::Attaching | EndpointState::Ready);
                match endpoint.identity.filter(|_| attached) {
                    None => Claim::Nobody,
                    Some(identity) => Claim::Is(Answer {
                        source,
                        value: IpcacheValue { identity, node: NodeIndex::SELF },
                        name: Some(&endpoint.name),
                        labels: Some(&endpoint.labels),
                        terminating: endpoint.terminating,
                    }),
                }
            }),
            IpcacheSource::Gossip => self.ask_gossip(sources, ip),
            IpcacheSource::Record => peers.remote_owner(fleet.node(), ip).and_then(|(owner, node)| {
                let record = &fleet.record(owner, ip)?.record;
                Some(match self.has_identity_of_its_labels(fleet, record) {
                    false => Claim::Nobody,
                    true => Claim::Is(Answer {
                        source,
                        value: IpcacheValue { identity: record.identity, node },
                        name: Some(&record.name),
                        labels: Some(&record.labels),
                        terminating: record.terminating,
                    }),
                })
            }),
            IpcacheSource::Cidr => None,
        };
        claim.unwrap_or(Claim::Silent)
    }

    fn ask_gossip<'a>(&self, Sources { fleet, peers, .. }: Sources<'a>, ip: IpAddr) -> Option<Claim<'a>> {
        let (change, node) = peers.pending_of_owner(fleet.node(), ip)?;
        // An identity that stands for other labels says nothing of who this is.
        let contradicts =
            fleet.labels_of(change.identity).is_some_and(|it| it.digest() != change.labels_digest);
        Some(match change.op {
            PendingOp::Added if !contradicts => Claim::Is(Answer {
                source: IpcacheSource::Gossip,
                value: IpcacheValue { identity: change.identity, node },
                name: Some(&change.name),
                labels: Some(&change.labels),
                terminating: change.terminating,
            }),
            PendingOp::Added | PendingOp::Removed => Claim::Nobody,
        })
    }
}
