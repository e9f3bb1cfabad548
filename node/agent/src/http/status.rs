//! The status of node, store, gossip and kernel.

use axum::{Json, extract::State};
use node_api::{
    ApplyStatus, AuditStatus, CidrStatus, GossipStatus, Halted, LastError, MapFill, PassedOver, PeerStatus,
    ProgramStatus, Status, StoreStatus, UnderlayStatus, Warning,
};
use node_core::{RejectedView, StatusView};

use super::{
    App,
    convert::{self, ms},
    error::Failure,
};
use crate::shell::UnderlayState;

/// How the node is, at a glance.
#[utoipa::path(get, path = "/v1/status", responses((status = 200, body = Status)))]
pub async fn status(State(app): State<App>) -> Result<Json<Status>, Failure> {
    let maps = app.kernel_read(|datapath| datapath.map_list());
    let node = app.core.read(|node| (node.status(), node.rejected()));
    // Concurrently, so that a silent member of etcd costs its own deadline only.
    let (members, maps, programs, node) =
        tokio::join!(app.store.members(), maps, app.kernel.programs(), node);
    let (view, rejected) = node?;
    let (maps, programs) = (maps?, programs?);
    let fill = |map: datapath_linux::MapInfo| {
        Some(MapFill { name: map.name, entries: map.entries?, max_entries: map.max_entries })
    };
    let attached = |program: datapath_linux::ProgramInfo| ProgramStatus {
        name: program.name,
        devices: program.devices,
        hook: program.hook.to_owned(),
    };
    Ok(Json(Status {
        uptime_ms: ms(app.clock.now().monotonic),
        ready: is_ready(&view),
        store: store(&app, &view, members.into_iter().map(convert::member).collect(), &rejected),
        gossip: gossip(&app),
        maps: maps.into_iter().filter_map(fill).collect(),
        programs: programs.into_iter().map(attached).collect(),
        underlay: underlay(&app, &view),
        apply: ApplyStatus {
            wanted_generation: view.plan.planned.0,
            applied_generation: view.plan.applied.0,
            pending: view.plan.dirty,
            failing: view.plan.failing.iter().map(|(key, reason)| format!("{key}: {reason}")).collect(),
            full: view.plan.full.clone(),
        },
        audit: AuditStatus {
            unix_ms: view.audit.as_ref().map(|audit| ms(audit.at)),
            differences: view.audit.as_ref().map(|audit| audit.differences.clone()).unwrap_or_default(),
            repaired_total: view.counters.audit_repaired.values().sum(),
        },
        cidrs: (view.cidrs.iter())
            .map(|cidr| CidrStatus {
                cidr: cidr.cidr,
                epoch: cidr.epoch,
                used: cidr.used,
                cooling: cidr.cooling,
                free: cidr.free,
            })
            .collect(),
        node: view.node,
        fleet: view.fleet,
        fleet_id: view.fleet_id,
        agent_version: view.agent_version,
        incarnation: view.incarnation,
        halted: view.halted.map(|reason| Halted { reason }),
        warnings: view.warnings.into_iter().map(|text| Warning { text }).collect(),
        endpoints: view.counts.endpoints,
        nodes: view.counts.nodes,
        identities: view.counts.identities,
        last_error: view.last_error.map(|error| LastError { unix_ms: ms(error.at), text: error.text }),
    }))
}

/// Whether the node serves endpoints: it has a CIDR, and the kernel has the base for it, from a plan of this agent or from
/// the previous agent.
pub(super) fn is_ready(view: &StatusView) -> bool {
    let in_kernel = view.plan.applied.0 > 0 || (view.plan.observed && view.plan.dirty == 0);
    view.halted.is_none() && view.gateway.is_some() && in_kernel
}

fn store(
    app: &App,
    view: &StatusView,
    members: Vec<node_api::EtcdMember>,
    rejected: &[RejectedView],
) -> StoreStatus {
    let lease = app.lease.state();
    let heard = view.store.heard_at.map(|at| app.clock.now().wall.saturating_sub(at));
    StoreStatus {
        kind: app.store_kind.word().to_owned(),
        connected: view.store.connected,
        error: view.store.lost.clone(),
        revision: (view.store.revision > 0).then_some(view.store.revision),
        silent_ms: heard.map(ms),
        lease_held: lease.held,
        lease_error: lease.error,
        requests_in_flight: view.store.requests_in_flight,
        members,
        rejected: rejected.iter().map(|record| format!("{}: {}", record.key, record.reason)).collect(),
    }
}

fn underlay(app: &App, view: &StatusView) -> UnderlayStatus {
    let UnderlayState { underlay, problem } = app.underlay.borrow().clone();
    let passed_over =
        |other: datapath_linux::PassedOver| PassedOver { interface: other.interface, reason: other.reason };
    UnderlayStatus {
        interface: underlay.interface,
        address: underlay.address,
        mtu_bytes: underlay.mtu_bytes,
        pod_mtu_bytes: view.pod_mtu_bytes,
        reason: underlay.reason,
        problem,
        passed_over: underlay.passed_over.into_iter().map(passed_over).collect(),
    }
}

fn gossip(app: &App) -> GossipStatus {
    let Some(gossip) = &app.gossip else {
        return GossipStatus { enabled: false, peers: Vec::new(), refused_datagrams: 0 };
    };
    let peer = |peer: node_gossip::PeerStatus| PeerStatus {
        node: peer.node,
        address: peer.address.to_string(),
        alive: peer.alive,
    };
    GossipStatus {
        enabled: true,
        peers: gossip.peers().into_iter().map(peer).collect(),
        refused_datagrams: gossip.stats().refused.iter().map(|(_, count)| count).sum(),
    }
}
