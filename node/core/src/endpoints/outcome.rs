//! What becomes of endpoints: attached, failed, given up, deleted.

use datapath_plan::{EndpointId, EndpointValue, Generation, OpError, OpErrorKind, TableKey};
use identity::EndpointName;

use super::LocalEndpoint;
use crate::{CallErrorKind, CallId, EndpointState, Reply, limits::ENDPOINT_WAIT, node::Node};

impl Node {
    /// Ends the waiting of those who have waited too long.
    pub(crate) fn expire_endpoints(&mut self) {
        let now = self.now.monotonic;
        while let Some((_, name)) = self.endpoints.deadlines.first().filter(|(at, _)| *at <= now).cloned() {
            self.endpoints.deadlines.pop_first();
            let waits_for = match self.endpoints.by_name.get(&name).map(|endpoint| endpoint.state) {
                Some(EndpointState::WaitingForIdentity) => {
                    "the store has not given a number for its labels; label sets that the fleet knows still work"
                }
                Some(EndpointState::WaitingForAddress) => {
                    "the store has not given this node a pod CIDR with a free address"
                }
                _ => continue,
            };
            let cause = self.store.suspect.as_ref().or(self.store.lost.as_ref());
            let cause = cause.map(|cause| format!(" (store: {cause})")).unwrap_or_default();
            let text = format!(
                "endpoint {name} not added in {} s: {waits_for}{cause}; try again",
                ENDPOINT_WAIT.as_secs()
            );
            self.give_up(&name, CallErrorKind::Unavailable, &text);
        }
    }

    /// Ends an endpoint that is not in the kernel: everything it had is given back.
    pub(super) fn give_up(&mut self, name: &EndpointName, kind: CallErrorKind, text: &str) {
        let Some(endpoint) = self.endpoints.by_name.remove(name) else { return };
        self.endpoints.deadlines.remove(&(endpoint.deadline, name.clone()));
        self.endpoints.waiting_for_address.remove(name);
        if let Some(digest) = &endpoint.digest
            && let Some(waiting) = self.endpoints.waiting_for_identity.get_mut(digest)
        {
            waiting.remove(name);
            if waiting.is_empty() {
                self.endpoints.waiting_for_identity.remove(digest);
            }
        }
        self.give_back(&endpoint);
        for (call, _) in endpoint.callers {
            self.refuse(call, kind, text.to_owned());
        }
    }

    fn give_back(&mut self, endpoint: &LocalEndpoint) {
        if let Some(address) = endpoint.address {
            self.ipam.pool.release(address, self.now.monotonic);
        }
        if let Some(digest) = &endpoint.digest {
            self.drop_identity(digest);
        }
    }

    pub(crate) fn delete_endpoint(&mut self, call: CallId, name: &EndpointName) {
        self.endpoints.missing.remove(name);
        match self.endpoints.by_name.get(name).map(|endpoint| endpoint.id) {
            None => match self.endpoints.detaching.values_mut().find(|endpoint| endpoint.name == *name) {
                Some(detaching) => detaching.callers.push((call, true)),
                None => self.reply(call, Ok(Reply::EndpointDeleted { existed: false })),
            },
            Some(None) => {
                let text = format!("endpoint {name} was deleted before it was attached");
                self.give_up(name, CallErrorKind::Conflict, &text);
                self.reply(call, Ok(Reply::EndpointDeleted { existed: true }));
            }
            Some(Some(id)) => {
                let text = format!("endpoint {name} was deleted while it was attached");
                self.detach(name, CallErrorKind::Conflict, &text);
                // By its number: a former endpoint of this name may be on its way out too.
                let detaching = self.endpoints.detaching.get_mut(&id);
                detaching.into_iter().for_each(|endpoint| endpoint.callers.push((call, true)));
            }
        }
    }

    /// Takes an endpoint out of the choice for new flows; those that run go on.
    pub(crate) fn drain_endpoint(&mut self, call: CallId, name: &EndpointName) {
        match self.endpoints.by_name.get(name) {
            Some(endpoint) if endpoint.terminating => {
                self.reply(call, Ok(Reply::EndpointDrained { already: true }));
            }
            Some(LocalEndpoint { state: EndpointState::Ready, id: Some(id), address: Some(ip), .. }) => {
                let (id, ip) = (*id, *ip);
                self.endpoints.unsaved.insert(id);
                self.snapshots.own_changed = true;
                self.set_terminating(ip);
                self.endpoint_changed(ip);
                self.reply(call, Ok(Reply::EndpointDrained { already: false }));
            }
            Some(_) => {
                let text = format!("endpoint {name} is not attached yet: drain it then, or delete it");
                self.refuse(call, CallErrorKind::Conflict, text);
            }
            None => {
                let text = format!("there is no endpoint {name} on this node, or it is being deleted");
                self.refuse(call, CallErrorKind::NotFound, text);
            }
        }
    }

    /// Takes an endpoint out of the kernel. Who waits for it to be attached gets the error.
    pub(super) fn detach(&mut self, name: &EndpointName, kind: CallErrorKind, text: &str) {
        self.snapshots.own_changed = true;
        let Some(mut endpoint) = self.endpoints.by_name.remove(name) else { return };
        let (Some(id), Some(address)) = (endpoint.id, endpoint.address) else { return };
        self.endpoints.by_id.remove(&id);
        self.endpoints.by_address.remove(&address);
        self.endpoints.unsaved.insert(id);
        for (call, _) in std::mem::take(&mut endpoint.callers) {
            self.refuse(call, kind, text.to_owned());
        }
        endpoint.state = EndpointState::Detaching;
        endpoint.detached_after = self.reconciler.generations().0;
        self.endpoints.detaching.insert(id, endpoint);
        self.reconciler.set::<EndpointValue>(id, None);
        self.desired.addresses.insert(address);
        self.endpoint_changed(address);
    }

    /// Ends those on their way out for which no step is left, and so no outcome will come: they were deleted before
    /// a plan made them, or an audit found them gone. Not while a plan is in flight, which may have such a step.
    pub(crate) fn finish_detached(&mut self) {
        let waits = |id: &EndpointId| self.reconciler.waits(&TableKey::Endpoint(*id));
        let gone: Vec<EndpointId> =
            self.endpoints.detaching.keys().copied().filter(|id| !waits(id)).collect();
        gone.into_iter().for_each(|id| self.endpoint_done(id));
    }

    /// The kernel has carried out a step on an endpoint.
    pub(crate) fn endpoint_done(&mut self, id: EndpointId) {
        self.snapshots.own_changed = true;
        self.endpoints.unsaved.insert(id);
        let there = self.reconciler.applied().endpoints.contains_key(&id);
        if let Some(name) = self.endpoints.by_id.get(&id).cloned() {
            if there && let Some(endpoint) = self.endpoints.by_name.get_mut(&name) {
                endpoint.error = None;
                if endpoint.state == EndpointState::Attaching {
                    endpoint.state = EndpointState::Ready;
                    self.counters.endpoints_added += 1;
                    if let Some(address) = endpoint.address {
                        self.note_attached(address);
                        self.endpoint_changed(address);
                    }
                }
                self.answer_callers(&name);
            }
        } else if !there {
            self.endpoints.devices.remove(&id);
            if let Some(endpoint) = self.endpoints.detaching.remove(&id) {
                self.give_back(&endpoint);
                self.counters.endpoints_deleted += 1;
                for (call, existed) in endpoint.callers {
                    self.reply(call, Ok(Reply::EndpointDeleted { existed }));
                }
            }
        }
    }

    /// The kernel could not carry out a step on an endpoint.
    pub(crate) fn endpoint_failed(&mut self, id: EndpointId, generation: Generation, error: &OpError) {
        if let Some(name) = self.endpoints.by_id.get(&id).cloned() {
            let attaching =
                self.endpoints.by_name.get(&name).is_some_and(|e| e.state == EndpointState::Attaching);
            if attaching {
                let kind = match error.kind {
                    OpErrorKind::NamespaceGone => CallErrorKind::Invalid,
                    OpErrorKind::Capacity => CallErrorKind::Exhausted,
                    OpErrorKind::Conflict => CallErrorKind::Conflict,
                    OpErrorKind::Transient => CallErrorKind::Unavailable,
                };
                self.detach(&name, kind, &format!("endpoint {name} not attached: {error}"));
            } else if let Some(endpoint) = self.endpoints.by_name.get_mut(&name) {
                // One that had been attached: the reconciler tries again.
                endpoint.error = Some(error.to_string());
            }
        } else if let Some(endpoint) = self.endpoints.detaching.get_mut(&id)
            // The step of an earlier plan was to attach it; that it failed is no failure to delete it.
            && endpoint.detached_after < generation
        {
            endpoint.error = Some(error.to_string());
            let text = format!("endpoint {} not deleted yet: {error}; it is tried again", endpoint.name);
            for (call, _) in std::mem::take(&mut endpoint.callers) {
                self.refuse(call, CallErrorKind::Unavailable, text.clone());
            }
        }
    }

    pub(super) fn answer_callers(&mut self, name: &EndpointName) {
        let Some(endpoint) = self.endpoints.by_name.get_mut(name) else { return };
        let (Some(id), Some(address), Some(identity)) = (endpoint.id, endpoint.address, endpoint.identity)
        else {
            return;
        };
        for (call, existed) in std::mem::take(&mut endpoint.callers) {
            let reply = Reply::EndpointAdded { name: name.clone(), id, address, identity, existed };
            self.reply(call, Ok(reply));
        }
    }
}
