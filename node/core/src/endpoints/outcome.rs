//! How endpoints end up: attached, failed, given up, deleted.

use datapath_plan::{EndpointId, EndpointValue, Generation, OpError, OpErrorKind, TableKey};
use identity::EndpointName;

use super::{Allocators, Endpoints, LocalEndpoint};
use crate::{CallErrorKind, CallId, EndpointState, Reply, context::Context, limits::ENDPOINT_WAIT};

impl Endpoints {
    /// Gives up endpoints that have waited too long.
    pub(crate) fn expire(&mut self, cx: &mut Context, allocators: &mut Allocators<'_>) {
        let now = cx.now.monotonic;
        while let Some((_, name)) = self.deadlines.first().filter(|(at, _)| *at <= now).cloned() {
            self.deadlines.pop_first();
            let waits_for = match self.by_name.get(&name).map(|endpoint| endpoint.state) {
                Some(EndpointState::WaitingForIdentity) => {
                    "the store has not given a number for its labels; label sets that the fleet knows still work"
                }
                Some(EndpointState::WaitingForAddress) => {
                    "the store has not given this node a pod CIDR with a free address"
                }
                _ => continue,
            };
            let cause = allocators.fleet.suspect().or(allocators.fleet.lost());
            let cause = cause.map(|cause| format!(" (store: {cause})")).unwrap_or_default();
            let text = format!(
                "endpoint {name} not added in {} s: {waits_for}{cause}; try again",
                ENDPOINT_WAIT.as_secs()
            );
            self.give_up(cx, allocators, &name, CallErrorKind::Unavailable, &text);
        }
    }

    /// Ends an endpoint that is not in the kernel, and returns everything that it had.
    pub(super) fn give_up(
        &mut self,
        cx: &mut Context,
        allocators: &mut Allocators<'_>,
        name: &EndpointName,
        kind: CallErrorKind,
        text: &str,
    ) {
        let Some(endpoint) = self.by_name.remove(name) else { return };
        self.deadlines.remove(&(endpoint.deadline, name.clone()));
        self.waiting_for_address.remove(name);
        if let Some(digest) = &endpoint.digest
            && let Some(waiting) = self.waiting_for_identity.get_mut(digest)
        {
            waiting.remove(name);
            if waiting.is_empty() {
                self.waiting_for_identity.remove(digest);
            }
        }
        allocators.release(cx.now.monotonic, &endpoint);
        for (call, _) in endpoint.callers {
            cx.refuse(call, kind, text.to_owned());
        }
    }

    pub(crate) fn delete(
        &mut self,
        cx: &mut Context,
        allocators: &mut Allocators<'_>,
        call: CallId,
        name: &EndpointName,
    ) {
        self.missing.remove(name);
        match self.by_name.get(name).map(|endpoint| endpoint.id) {
            None => match self.detaching.values_mut().find(|endpoint| endpoint.name == *name) {
                Some(detaching) => detaching.callers.push((call, true)),
                None => cx.reply(call, Ok(Reply::EndpointDeleted { existed: false })),
            },
            Some(None) => {
                let text = format!("endpoint {name} was deleted before it was attached");
                self.give_up(cx, allocators, name, CallErrorKind::Conflict, &text);
                cx.reply(call, Ok(Reply::EndpointDeleted { existed: true }));
            }
            Some(Some(id)) => {
                let text = format!("endpoint {name} was deleted while it was attached");
                self.detach(cx, name, CallErrorKind::Conflict, &text);
                // Found by its id: a former endpoint of this name may be detaching too.
                let detaching = self.detaching.get_mut(&id);
                detaching.into_iter().for_each(|endpoint| endpoint.callers.push((call, true)));
            }
        }
    }

    /// Excludes an endpoint from the choice for new flows; existing flows go on.
    pub(crate) fn drain(&mut self, cx: &mut Context, call: CallId, name: &EndpointName) {
        match self.by_name.get(name) {
            Some(endpoint) if endpoint.terminating => {
                cx.reply(call, Ok(Reply::EndpointDrained { already: true }));
            }
            Some(LocalEndpoint { state: EndpointState::Ready, id: Some(id), address: Some(ip), .. }) => {
                let (id, ip) = (*id, *ip);
                cx.changes.endpoint_files.insert(id);
                cx.changes.own_state = true;
                cx.changes.own_endpoints.insert(ip);
                self.set_terminating(cx, ip);
                cx.reply(call, Ok(Reply::EndpointDrained { already: false }));
            }
            Some(_) => {
                let text = format!("endpoint {name} is not attached yet: drain it then, or delete it");
                cx.refuse(call, CallErrorKind::Conflict, text);
            }
            None => {
                let text = format!("there is no endpoint {name} on this node, or it is being deleted");
                cx.refuse(call, CallErrorKind::NotFound, text);
            }
        }
    }

    /// Takes an endpoint out of the kernel. Callers that wait for it to be attached get the error.
    fn detach(&mut self, cx: &mut Context, name: &EndpointName, kind: CallErrorKind, text: &str) {
        cx.changes.own_state = true;
        let Some(mut endpoint) = self.by_name.remove(name) else { return };
        let (Some(id), Some(address)) = (endpoint.id, endpoint.address) else { return };
        self.by_id.remove(&id);
        self.by_address.remove(&address);
        for (call, _) in std::mem::take(&mut endpoint.callers) {
            cx.refuse(call, kind, text.to_owned());
        }
        endpoint.state = EndpointState::Detaching;
        endpoint.detached_after = cx.kernel.generations().0;
        self.detaching.insert(id, endpoint);
        cx.kernel.set::<EndpointValue>(id, None);
        cx.changes.endpoint_files.insert(id);
        cx.changes.addresses.insert(address);
        cx.changes.own_endpoints.insert(address);
    }

    /// Ends detaching endpoints for which no step is left, and so no outcome will come: they were deleted before a plan
    /// made them, or an audit found them gone. Not to be called while a plan is in flight, which may have such a step.
    pub(crate) fn finish_detached(&mut self, cx: &mut Context, allocators: &mut Allocators<'_>) {
        let waits = |id: &EndpointId| cx.kernel.waits(&TableKey::Endpoint(*id));
        let gone: Vec<EndpointId> = self.detaching.keys().copied().filter(|id| !waits(id)).collect();
        gone.into_iter().for_each(|id| self.on_done(cx, allocators, id));
    }

    /// The kernel has carried out a step on an endpoint.
    pub(crate) fn on_done(&mut self, cx: &mut Context, allocators: &mut Allocators<'_>, id: EndpointId) {
        cx.changes.own_state = true;
        cx.changes.endpoint_files.insert(id);
        let there = cx.kernel.applied().endpoints.contains_key(&id);
        if let Some(name) = self.by_id.get(&id).cloned() {
            if there && let Some(endpoint) = self.by_name.get_mut(&name) {
                endpoint.error = None;
                if endpoint.state == EndpointState::Attaching {
                    endpoint.state = EndpointState::Ready;
                    cx.counters.endpoints_added += 1;
                    cx.changes.own_endpoints.extend(endpoint.address);
                    cx.changes.attached.extend(endpoint.address);
                }
                self.answer_callers(cx, &name);
            }
        } else if !there {
            self.devices.remove(&id);
            if let Some(endpoint) = self.detaching.remove(&id) {
                allocators.release(cx.now.monotonic, &endpoint);
                cx.counters.endpoints_deleted += 1;
                for (call, existed) in endpoint.callers {
                    cx.reply(call, Ok(Reply::EndpointDeleted { existed }));
                }
            }
        }
    }

    /// The kernel could not carry out a step on an endpoint.
    pub(crate) fn on_failed(
        &mut self,
        cx: &mut Context,
        id: EndpointId,
        generation: Generation,
        error: &OpError,
    ) {
        if let Some(name) = self.by_id.get(&id).cloned() {
            let Some(endpoint) = self.by_name.get_mut(&name) else { return };
            if endpoint.state == EndpointState::Attaching {
                let kind = match error.kind {
                    OpErrorKind::NamespaceGone => CallErrorKind::Invalid,
                    OpErrorKind::Capacity => CallErrorKind::Exhausted,
                    OpErrorKind::Conflict => CallErrorKind::Conflict,
                    OpErrorKind::Transient => CallErrorKind::Unavailable,
                };
                self.detach(cx, &name, kind, &format!("endpoint {name} not attached: {error}"));
            } else {
                // It had been attached: the reconciler tries again.
                endpoint.error = Some(error.to_string());
            }
        } else if let Some(endpoint) = self.detaching.get_mut(&id)
            // The step of an earlier plan was to attach it: a failure of that is no failure to delete it.
            && endpoint.detached_after < generation
        {
            endpoint.error = Some(error.to_string());
            let text = format!("endpoint {} not deleted yet: {error}; it is tried again", endpoint.name);
            for (call, _) in std::mem::take(&mut endpoint.callers) {
                cx.refuse(call, CallErrorKind::Unavailable, text.clone());
            }
        }
    }

    pub(super) fn answer_callers(&mut self, cx: &mut Context, name: &EndpointName) {
        let Some(endpoint) = self.by_name.get_mut(name) else { return };
        let (Some(id), Some(address), Some(identity)) = (endpoint.id, endpoint.address, endpoint.identity)
        else {
            return;
        };
        for (call, existed) in std::mem::take(&mut endpoint.callers) {
            let reply = Reply::EndpointAdded { name: name.clone(), id, address, identity, existed };
            cx.reply(call, Ok(reply));
        }
    }
}
