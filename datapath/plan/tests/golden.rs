//! Plans as text: input -> expected steps.

use std::{net::IpAddr, time::Duration};

use datapath_plan::{
    Attachment, Base, BaseUnderlay, EndpointId, EndpointValue, Entry, FIRST_RETRY, FakeDatapath, HostRouting,
    IpcacheValue, Limits, Mac, Masquerade, Mode, NextHop, NodeIndex, NodeValue, Op, OpError, OpErrorKind,
    OpFailure, PlanError, PlanOutcome, Prune, Reconciler, RouteValue, Single, TableKey,
};
use identity::Identity;
use ipnetwork::IpNetwork;

const T0: Duration = Duration::ZERO;

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn net(text: &str) -> IpNetwork {
    text.parse().expect("a prefix")
}

fn base() -> Base {
    Base {
        gateway: ip("10.0.1.1"),
        tunnel_port: 8472,
        mtu_bytes: 1450,
        mode: Mode::Tunnel,
        host_routing: HostRouting::Bpf,
        underlay: BaseUnderlay { ifindex: 2, address: ip("192.0.2.1"), mtu_bytes: 1500 },
        masquerade: None,
    }
}

fn node(underlay: &str) -> Option<NodeValue> {
    Some(NodeValue { underlay: ip(underlay) })
}

fn cached(identity: u32, node: u32) -> Option<IpcacheValue> {
    Some(IpcacheValue { identity: Identity::new(identity).expect("an identity"), node: NodeIndex(node) })
}

fn route() -> Option<RouteValue> {
    Some(RouteValue { next_hop: None, source: ip("10.0.1.1"), mtu_bytes: 1450 })
}

fn endpoint(address: &str, identity: u32) -> Option<EndpointValue> {
    Some(EndpointValue {
        address: ip(address),
        identity: Identity::new(identity).expect("an identity"),
        mac: Mac([2, 0, 0, 0, 0, 1]),
        host_mac: Mac([2, 0, 0, 0, 0, 2]),
        attachment: Some(Attachment::Netns { path: "/run/netns/a".into(), interface: "eth0".to_owned() }),
    })
}

/// Plans, checks the text, carries it out.
fn check(reconciler: &mut Reconciler, kernel: &mut FakeDatapath, now: Duration, expected: &[&str]) {
    let plan = reconciler.plan(now);
    let steps: Vec<String> = plan.iter().flat_map(|plan| &*plan.ops).map(ToString::to_string).collect();
    assert_eq!(steps, expected);
    if let Some(plan) = plan {
        let outcome = kernel.apply(&plan);
        reconciler.complete(now, &outcome);
    }
}

/// A node with a neighbour and one endpoint, carried out.
fn settled() -> (Reconciler, FakeDatapath) {
    let mut reconciler = Reconciler::default();
    reconciler.set(Single, Some(base()));
    reconciler.set(NodeIndex(2), node("192.0.2.2"));
    reconciler.set(net("10.0.1.2/32"), cached(300, 1));
    reconciler.set(net("10.0.2.0/24"), cached(0, 2));
    reconciler.set(net("10.0.2.0/24"), route());
    reconciler.set(EndpointId(1), endpoint("10.0.1.2", 300));
    let mut kernel = FakeDatapath::new();
    check(
        &mut reconciler,
        &mut kernel,
        T0,
        &[
            "put base: gateway 10.0.1.1 port 8472 mtu 1450 tunnel bpf underlay 192.0.2.1 at 2 mtu 1500",
            "put nodes 2: underlay 192.0.2.2",
            "put ipcache 10.0.1.2/32: identity 300 node 1",
            "put ipcache 10.0.2.0/24: identity 0 node 2",
            "put routes 10.0.2.0/24: source 10.0.1.1 mtu 1450",
            "bump all epochs",
            "put endpoints 1: address 10.0.1.2 identity 300 mac 02:00:00:00:00:01 host mac 02:00:00:00:00:02",
            "bump epochs of 10.0.1.2",
        ],
    );
    check(&mut reconciler, &mut kernel, T0, &[]);
    (reconciler, kernel)
}

#[test]
fn plan_makes_before_what_depends_on_it() {
    settled();
}

#[test]
fn plan_text_shows_all_settings_of_base_and_routes() {
    let (mut reconciler, mut kernel) = settled();
    let exclude = [net("10.0.0.0/16"), net("172.16.0.0/12")].into();
    let masquerade = Some(Masquerade { first_port: 61_000, last_port: 65_535, exclude });
    reconciler.set(
        Single,
        Some(Base { mode: Mode::Native, host_routing: HostRouting::Legacy, masquerade, ..base() }),
    );
    let next_hop = Some(NextHop { address: ip("192.0.2.2"), ifindex: 2 });
    reconciler.set(net("10.0.2.0/24"), route().map(|route| RouteValue { next_hop, ..route }));
    check(
        &mut reconciler,
        &mut kernel,
        T0,
        &[
            "put base: gateway 10.0.1.1 port 8472 mtu 1450 native legacy underlay 192.0.2.1 at 2 mtu 1500 \
             masquerade 61000-65535 not 10.0.0.0/16 not 172.16.0.0/12",
            "put routes 10.0.2.0/24: via 192.0.2.2 at 2 source 10.0.1.1 mtu 1450",
            "bump all epochs",
        ],
    );
}

#[test]
fn epoch_bump_that_failed_is_retried_with_pauses() {
    let (mut reconciler, mut kernel) = settled();
    reconciler.set(net("10.0.2.0/24"), cached(0, 3));
    let error = OpError { kind: OpErrorKind::Transient, text: "no".into() };
    let mut now = T0;
    for pause in [1, 2, 4] {
        let plan = reconciler.plan(now).expect("a plan");
        let op = plan.ops.last().expect("a step").clone();
        assert_eq!(op.to_string(), "bump all epochs");
        let failures = vec![OpFailure { op, error: error.clone() }];
        reconciler.complete(now, &PlanOutcome { generation: plan.generation, failures });
        let due = now + FIRST_RETRY * pause;
        assert_eq!((reconciler.plan(now), reconciler.next_retry()), (None, Some(due)));
        now = due;
    }
    check(&mut reconciler, &mut kernel, now, &["bump all epochs"]);
    assert_eq!(reconciler.next_retry(), None);
    check(&mut reconciler, &mut kernel, now, &[]);
}

#[test]
fn mtu_change_puts_every_endpoint_after_the_base() {
    let (mut reconciler, mut kernel) = settled();
    reconciler.set(Single, Some(Base { mtu_bytes: 1350, ..base() }));
    check(
        &mut reconciler,
        &mut kernel,
        T0,
        &[
            "put base: gateway 10.0.1.1 port 8472 mtu 1350 tunnel bpf underlay 192.0.2.1 at 2 mtu 1500",
            "bump all epochs",
        ],
    );
    let put =
        "put endpoints 1: address 10.0.1.2 identity 300 mac 02:00:00:00:00:01 host mac 02:00:00:00:00:02";
    check(&mut reconciler, &mut kernel, T0, &[put, "bump epochs of 10.0.1.2"]);
    check(&mut reconciler, &mut kernel, T0, &[]);
}

#[test]
fn removals_go_in_reverse_after_the_puts() {
    let (mut reconciler, mut kernel) = settled();
    reconciler.set::<NodeValue>(NodeIndex(2), None);
    reconciler.set::<IpcacheValue>(net("10.0.2.0/24"), None);
    reconciler.set::<RouteValue>(net("10.0.2.0/24"), None);
    reconciler.set::<EndpointValue>(EndpointId(1), None);
    reconciler.set::<IpcacheValue>(net("10.0.1.2/32"), None);
    reconciler.set(NodeIndex(3), node("192.0.2.3"));
    check(
        &mut reconciler,
        &mut kernel,
        T0,
        &[
            "put nodes 3: underlay 192.0.2.3",
            "delete endpoints 1",
            "delete routes 10.0.2.0/24",
            "delete ipcache 10.0.2.0/24",
            "delete ipcache 10.0.1.2/32",
            "delete nodes 2",
            "bump all epochs",
        ],
    );
}

#[test]
fn address_change_is_one_entry_and_its_epoch() {
    let (mut reconciler, mut kernel) = settled();
    reconciler.set(net("10.0.2.7/32"), cached(301, 2));
    check(
        &mut reconciler,
        &mut kernel,
        T0,
        &["put ipcache 10.0.2.7/32: identity 301 node 2", "bump epochs of 10.0.2.7"],
    );
}

#[test]
fn change_taken_back_before_the_plan_is_no_step() {
    let (mut reconciler, mut kernel) = settled();
    reconciler.set(net("10.0.2.7/32"), cached(301, 2));
    reconciler.set::<IpcacheValue>(net("10.0.2.7/32"), None);
    check(&mut reconciler, &mut kernel, T0, &[]);
}

#[test]
fn node_that_takes_over_an_underlay_address_waits_for_its_removal() {
    let (mut reconciler, mut kernel) = settled();
    reconciler.set::<NodeValue>(NodeIndex(2), None);
    reconciler.set(NodeIndex(3), node("192.0.2.2"));
    check(&mut reconciler, &mut kernel, T0, &["delete nodes 2", "put nodes 3: underlay 192.0.2.2"]);
}

#[test]
fn change_during_a_plan_waits_for_the_next_plan() {
    let (mut reconciler, mut kernel) = settled();
    reconciler.set(net("10.0.2.7/32"), cached(301, 2));
    let plan = reconciler.plan(T0).expect("a plan");
    reconciler.set::<IpcacheValue>(net("10.0.2.7/32"), None);
    assert_eq!(reconciler.plan(T0), None);
    let outcome = kernel.apply(&plan);
    reconciler.complete(T0, &outcome);
    check(&mut reconciler, &mut kernel, T0, &["delete ipcache 10.0.2.7/32", "bump epochs of 10.0.2.7"]);
}

#[test]
fn step_that_failed_is_retried_alone_and_later() {
    let (mut reconciler, mut kernel) = settled();
    let bad = net("10.0.2.7/32");
    kernel.fail(TableKey::Ipcache(bad), OpErrorKind::Transient);
    reconciler.set(bad, cached(301, 2));
    reconciler.set(net("10.0.2.8/32"), cached(301, 2));
    let plan = reconciler.plan(T0).expect("a plan");
    let outcome = kernel.apply(&plan);
    let completed = reconciler.complete(T0, &outcome);
    assert_eq!(completed.done, [TableKey::Ipcache(net("10.0.2.8/32"))]);
    assert_eq!(completed.failed.len(), 1);
    check(&mut reconciler, &mut kernel, T0, &[]);
    assert_eq!(reconciler.next_retry(), Some(FIRST_RETRY));
    let again = ["put ipcache 10.0.2.7/32: identity 301 node 2", "bump epochs of 10.0.2.7"];
    check(&mut reconciler, &mut kernel, FIRST_RETRY, &again);
    assert_eq!(reconciler.next_retry(), Some(3 * FIRST_RETRY), "the pause doubles");
    kernel.heal(&TableKey::Ipcache(bad));
    check(&mut reconciler, &mut kernel, 3 * FIRST_RETRY, &again);
    assert_eq!(reconciler.next_retry(), None);
}

#[test]
fn endpoint_that_failed_is_removed_in_case_it_is_there_in_part() {
    let (mut reconciler, mut kernel) = settled();
    let key = TableKey::Endpoint(EndpointId(2));
    kernel.fail(key, OpErrorKind::Conflict);
    reconciler.set(EndpointId(2), endpoint("10.0.1.3", 300));
    let plan = reconciler.plan(T0).expect("a plan");
    let outcome = kernel.apply(&plan);
    reconciler.complete(T0, &outcome);
    kernel.heal(&key);
    reconciler.set::<EndpointValue>(EndpointId(2), None);
    check(&mut reconciler, &mut kernel, T0, &["delete endpoints 2"]);
    check(&mut reconciler, &mut kernel, T0, &[]);
}

#[test]
fn pruning_waits_until_the_source_is_complete() {
    let (_, kernel) = settled();
    let mut restarted = Reconciler::default();
    let (plan, differences) = restarted.plan_full(T0, kernel.observe(), Prune::NONE);
    assert_eq!(plan, None);
    assert!(differences.iter().all(|difference| difference.kept));
    let prune = Prune { ipcache: true, ..Prune::NONE };
    let (plan, differences) = restarted.plan_full(T0, kernel.observe(), prune);
    let steps: Vec<String> = plan.expect("a plan").ops.iter().map(ToString::to_string).collect();
    assert_eq!(steps, ["delete ipcache 10.0.2.0/24", "delete ipcache 10.0.1.2/32", "bump all epochs"]);
    let texts: Vec<String> = differences.iter().map(ToString::to_string).collect();
    assert_eq!(
        texts,
        [
            "base: not wanted, found gateway 10.0.1.1 port 8472 mtu 1450 tunnel bpf underlay 192.0.2.1 at 2 mtu 1500 (kept: its source is not complete)",
            "nodes 2: not wanted, found underlay 192.0.2.2 (kept: its source is not complete)",
            "ipcache 10.0.1.2/32: not wanted, found identity 300 node 1",
            "ipcache 10.0.2.0/24: not wanted, found identity 0 node 2",
            "routes 10.0.2.0/24: not wanted, found source 10.0.1.1 mtu 1450 (kept: its source is not complete)",
            "endpoints 1: not wanted, found address 10.0.1.2 identity 300 mac 02:00:00:00:00:01 host mac 02:00:00:00:00:02 (kept: its source is not complete)",
        ]
    );
}

#[test]
fn pruning_does_not_keep_what_is_removed_by_name() {
    let (_, mut kernel) = settled();
    let mut restarted = Reconciler::default();
    restarted.plan_full(T0, kernel.observe(), Prune::NONE);
    restarted.set::<IpcacheValue>(net("10.0.1.2/32"), None);
    check(&mut restarted, &mut kernel, T0, &["delete ipcache 10.0.1.2/32", "bump epochs of 10.0.1.2"]);
}

#[test]
fn audit_finds_and_repairs_damage() {
    let (mut reconciler, mut kernel) = settled();
    kernel.damage(&TableKey::Ipcache(net("10.0.1.2/32")));
    kernel.plant(&Op::Put(Entry::Route(net("10.0.9.0/24"), route().expect("a route"))));
    let (plan, differences) = reconciler.plan_full(T0, kernel.observe(), Prune::ALL);
    let texts: Vec<String> = differences.iter().map(ToString::to_string).collect();
    assert_eq!(
        texts,
        [
            "ipcache 10.0.1.2/32: missing, wanted identity 300 node 1",
            "routes 10.0.9.0/24: not wanted, found source 10.0.1.1 mtu 1450",
        ]
    );
    let outcome = kernel.apply(&plan.expect("a plan"));
    reconciler.complete(T0, &outcome);
    assert_eq!(reconciler.compare(&kernel.observe(), Prune::ALL), []);
}

#[test]
fn endpoint_there_in_part_is_removed_when_nobody_wants_it() {
    let (mut reconciler, kernel) = settled();
    let mut observed = kernel.observe();
    observed.endpoint_devices.push(EndpointId(9));
    let (plan, differences) = reconciler.plan_full(T0, observed, Prune::ALL);
    assert_eq!(differences.len(), 1);
    assert_eq!(differences[0].to_string(), "endpoints 9: not wanted, found in part");
    let steps: Vec<String> = plan.expect("a plan").ops.iter().map(ToString::to_string).collect();
    assert_eq!(steps, ["delete endpoints 9"]);
}

#[test]
fn full_table_is_reported_and_its_other_entries_are_made() {
    let mut reconciler = Reconciler::new(Limits::default().with("ipcache (addresses)", 2));
    let mut kernel = FakeDatapath::new();
    for host in 1..=3 {
        reconciler.set(net(&format!("10.0.1.{host}/32")), cached(300, 1));
    }
    let full = PlanError::Capacity { table: "ipcache (addresses)".to_owned(), wanted: 3, max: 2 };
    assert_eq!(reconciler.full(), [full]);
    let plan = reconciler.plan(T0).expect("a plan");
    let outcome = kernel.apply(&plan);
    reconciler.complete(T0, &outcome);
    assert_eq!(kernel.tables().ipcache.len(), 2);
    // Room is made and used in two plans: never more entries than fit.
    reconciler.set::<IpcacheValue>(net("10.0.1.1/32"), None);
    assert_eq!(reconciler.full(), []);
    check(&mut reconciler, &mut kernel, T0, &["delete ipcache 10.0.1.1/32", "bump epochs of 10.0.1.1"]);
    check(
        &mut reconciler,
        &mut kernel,
        T0,
        &["put ipcache 10.0.1.3/32: identity 300 node 1", "bump epochs of 10.0.1.3"],
    );
}

/// Flows to the node hold the Ethernet address of its device, which is another one when that is made anew.
#[test]
fn base_made_again_bumps_all_epochs() {
    let (mut reconciler, mut kernel) = settled();
    kernel.damage(&TableKey::BASE);
    reconciler.adopt(kernel.observe(), Prune::ALL);
    check(
        &mut reconciler,
        &mut kernel,
        T0,
        &[
            "put base: gateway 10.0.1.1 port 8472 mtu 1450 tunnel bpf underlay 192.0.2.1 at 2 mtu 1500",
            "bump all epochs",
        ],
    );
}
