//! The steps of a plan, and what came of them.

use std::{net::IpAddr, sync::Arc};

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::{
    BackendId, BackendValue, Base, EndpointId, EndpointValue, Frontend, FrontendValue, Generation,
    IpcacheValue, NodeIndex, NodeValue, RouteValue, ServiceId, ServiceValue,
};

/// One step. Each is idempotent: done twice it changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    /// Makes the base devices, writes the configuration, attaches the programs; adopts what is there.
    PutBase(Base),
    /// Writes a node (and its inverse; the inverse of its former address goes).
    PutNode(NodeIndex, NodeValue),
    /// Clears a node and its inverse.
    DeleteNode(NodeIndex),
    /// Writes an ipcache entry.
    PutIpcache(IpNetwork, IpcacheValue),
    /// Deletes an ipcache entry.
    DeleteIpcache(IpNetwork),
    /// Makes or changes a route.
    PutRoute(IpNetwork, RouteValue),
    /// Deletes a route of ours.
    DeleteRoute(IpNetwork),
    /// Makes an endpoint's devices, writes its map entries, attaches its programs.
    PutEndpoint(EndpointId, EndpointValue),
    /// Deletes an endpoint's device (and with it everything inside) and map entries.
    DeleteEndpoint(EndpointId),
    /// Writes a backend.
    PutBackend(BackendId, BackendValue),
    /// Deletes a backend.
    DeleteBackend(BackendId),
    /// Makes a service port's table of slots beside the one that is in use, and then its entry: flows see one
    /// table or the other. A member whose backend is not there is left out, and the step fails.
    PutService(ServiceId, ServiceValue),
    /// Deletes a service port and its table.
    DeleteService(ServiceId),
    /// Writes where a frontend leads.
    PutFrontend(Frontend, FrontendValue),
    /// Deletes a frontend.
    DeleteFrontend(Frontend),
    /// Raises epochs, so that the flows concerned are decided again.
    BumpEpochs(EpochScope),
}

/// Which flows are to be decided again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum EpochScope {
    /// Those of these addresses (and of whoever shares their shards).
    Addresses(Vec<IpAddr>),
    /// All.
    All,
}

/// Steps in order, leaving nothing to choose.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// What is true of the kernel when all steps have succeeded.
    pub generation: Generation,
    /// The steps. Whoever made the plan keeps them until they have been carried out by somebody else: a large fleet's
    /// are 100,000, so they are shared.
    pub ops: Arc<[Op]>,
}

/// Why a step failed, as far as it matters for what is done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OpErrorKind {
    /// The network namespace or interface of an endpoint is not there.
    NamespaceGone,
    /// A table is full.
    Capacity,
    /// Something else has the name or address that we need.
    Conflict,
    /// May pass by itself: tried again with the next audit.
    Transient,
}

/// Why a step failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{text}")]
pub struct OpError {
    /// What kind.
    pub kind: OpErrorKind,
    /// The whole chain of causes, and what to do.
    pub text: String,
}

/// A step that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpFailure {
    /// The step.
    pub op: Op,
    /// Why.
    pub error: OpError,
}

/// What came of a plan. A step that fails does not stop the ones after it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanOutcome {
    /// The plan's.
    pub generation: Generation,
    /// The steps that failed; all others succeeded.
    pub failures: Vec<OpFailure>,
}
