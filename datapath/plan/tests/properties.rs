//! Properties of any sequence of wishes, failures, damage and restarts.

use std::{net::IpAddr, time::Duration};

use datapath_plan::{
    Algorithm, BackendId, BackendState, BackendValue, Base, BaseUnderlay, EndpointId, EndpointValue,
    FakeDatapath, Frontend, FrontendKind, FrontendValue, HostRouting, IpcacheValue, LONGEST_RETRY, Mac, Mode,
    NodeIndex, NodeValue, Observed, ObservedDelta, OpErrorKind, Plan, Protocol, Prune, Reconciler,
    RouteValue, ServiceId, ServiceMode, ServiceValue, Single, TableKey,
};
use identity::Identity;
use ipnetwork::IpNetwork;
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Step {
    Set(TableKey, Option<u8>),
    PlanAndApply,
    /// The plan is made now and its outcome comes after the next step.
    PlanOnly,
    Fail(TableKey),
    Heal(TableKey),
    Damage(TableKey),
    Audit,
    Restart,
    Wait,
}

fn address(n: u8) -> IpAddr {
    IpAddr::from([10, 0, 1, n])
}

fn key() -> impl Strategy<Value = TableKey> {
    let exact = |n| IpNetwork::new(address(n), 32).expect("a host route");
    let prefix = |n| IpNetwork::new(IpAddr::from([10, 0, n, 0]), 24).expect("a prefix");
    prop_oneof![
        Just(TableKey::BASE),
        (2..5u32).prop_map(|n| TableKey::Node(NodeIndex(n))),
        (1..5u8).prop_map(move |n| TableKey::Ipcache(exact(n))),
        (1..4u8).prop_map(move |n| TableKey::Ipcache(prefix(n))),
        (1..4u8).prop_map(move |n| TableKey::Route(prefix(n))),
        (1..5u32).prop_map(|n| TableKey::Endpoint(EndpointId(n))),
        (1..5u32).prop_map(|n| TableKey::Backend(BackendId(n))),
        (1..4u32).prop_map(|n| TableKey::Service(ServiceId(n))),
        (0..4u8).prop_map(|n| TableKey::Frontend(Frontend {
            address: if n == 0 { IpAddr::from([0, 0, 0, 0]) } else { IpAddr::from([10, 201, 0, n]) },
            port: 80,
            protocol: Protocol::Tcp,
        })),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (key(), proptest::option::weighted(0.7, 0..3u8)).prop_map(|(key, value)| Step::Set(key, value)),
        4 => Just(Step::PlanAndApply),
        1 => Just(Step::PlanOnly),
        1 => key().prop_map(Step::Fail),
        1 => key().prop_map(Step::Heal),
        1 => key().prop_map(Step::Damage),
        1 => Just(Step::Audit),
        1 => Just(Step::Restart),
        1 => Just(Step::Wait),
    ]
}

/// Wants an entry in one of its variants, or not at all.
fn set(reconciler: &mut Reconciler, key: TableKey, variant: Option<u8>) {
    let identity = |n: u8| Identity::new(300 + u32::from(n)).expect("in range");
    match key {
        TableKey::BASE => reconciler.set(
            Single,
            Some(Base {
                gateway: address(1),
                tunnel_port: 8472,
                mtu_bytes: 1400 + u32::from(variant.unwrap_or(0)),
                mode: Mode::default(),
                host_routing: HostRouting::default(),
                underlay: BaseUnderlay { ifindex: 2, address: address(1), mtu_bytes: 1500 },
                masquerade: None,
            }),
        ),
        TableKey::Node(index) => {
            // Two nodes never have one underlay address: the kernel's inverse table has one slot for it.
            let underlay = |n: u8| IpAddr::from([192, 0, 2, u8::try_from(index.0).expect("small") * 10 + n]);
            reconciler.set(index, variant.map(|n| NodeValue { underlay: underlay(n) }));
        }
        TableKey::Ipcache(prefix) => reconciler
            .set(prefix, variant.map(|n| IpcacheValue { identity: identity(n), node: NodeIndex(1) })),
        TableKey::Route(prefix) => reconciler.set::<RouteValue>(
            prefix,
            variant.map(|n| RouteValue {
                next_hop: None,
                source: address(1),
                mtu_bytes: 1400 + u32::from(n),
            }),
        ),
        TableKey::Endpoint(id) => reconciler.set::<EndpointValue>(
            id,
            variant.map(|n| EndpointValue {
                address: address(u8::try_from(id.0).expect("small") + 10),
                identity: identity(n),
                mac: Mac([2, 0, 0, 0, 0, n]),
                host_mac: Mac([2, 0, 0, 0, 1, n]),
                attachment: Some(datapath_plan::Attachment::Netns {
                    path: "/a".into(),
                    interface: "eth0".into(),
                }),
            }),
        ),
        TableKey::Backend(id) => reconciler.set::<BackendValue>(
            id,
            variant.map(|n| BackendValue {
                service: ServiceId(1),
                address: address(u8::try_from(id.0).expect("small") + 20),
                port: 80 + u16::from(n / 2),
                weight: u16::from(n),
                state: BackendState::Active,
            }),
        ),
        TableKey::Service(id) => reconciler.set::<ServiceValue>(
            id,
            variant.map(|n| ServiceValue {
                algorithm: Algorithm::Maglev,
                affinity_seconds: 0,
                mode: ServiceMode::Snat,
                source_ranges: Vec::new(),
                // Of the first one; it may want what is not there.
                members: if id.0 == 1 { (1..=u32::from(n)).map(BackendId).collect() } else { Vec::new() },
            }),
        ),
        TableKey::Frontend(frontend) => reconciler.set::<FrontendValue>(
            frontend,
            variant
                .map(|n| FrontendValue { service: ServiceId(u32::from(n) + 1), kind: FrontendKind::Virtual }),
        ),
    }
}

/// Wants the backends that services want as members.
fn complete_services(reconciler: &mut Reconciler) {
    let members: Vec<BackendId> =
        reconciler.wanted().services.values().flat_map(|service| service.members.clone()).collect();
    for id in members {
        if !reconciler.wanted().backends.contains_key(&id) {
            set(reconciler, TableKey::Backend(id), Some(1));
        }
    }
}

/// The same wishes in a reconciler that has just started: its endpoints' attachments are known again, as
/// from a snapshot.
fn restarted(old: &Reconciler, kernel: &FakeDatapath, now: Duration) -> (Reconciler, Option<Plan>) {
    let mut new = Reconciler::default();
    if let Some(base) = old.wanted().base.clone() {
        new.set(Single, Some(base));
    }
    old.wanted().nodes.iter().for_each(|(index, value)| new.set(*index, Some(*value)));
    old.wanted().ipcache.iter().for_each(|(prefix, value)| new.set(*prefix, Some(*value)));
    old.wanted().routes.iter().for_each(|(prefix, value)| new.set(*prefix, Some(*value)));
    old.wanted().endpoints.iter().for_each(|(id, value)| new.set(*id, Some(value.clone())));
    old.wanted().backends.iter().for_each(|(id, value)| new.set(*id, Some(*value)));
    old.wanted().services.iter().for_each(|(id, value)| new.set(*id, Some(value.clone())));
    old.wanted().frontends.iter().for_each(|(key, value)| new.set(*key, Some(*value)));
    let (plan, _) = new.plan_full(now, kernel.observe(), Prune::ALL);
    (new, plan)
}

fn no_entry_twice(plan: &Plan) -> Result<(), TestCaseError> {
    let mut keys: Vec<TableKey> = plan.ops.iter().filter_map(TableKey::of).collect();
    let all = keys.len();
    keys.sort_unstable();
    keys.dedup();
    prop_assert_eq!(keys.len(), all, "an entry twice in {:?}", plan.ops);
    Ok(())
}

/// What the kernel holds, without what it does not remember, and without a base that nobody wants.
fn same_tables(reconciler: &Reconciler, kernel: &FakeDatapath) -> Result<(), TestCaseError> {
    let mut wanted = reconciler.wanted().clone();
    wanted.endpoints.values_mut().for_each(|endpoint| endpoint.attachment = None);
    let mut found = kernel.observe().tables;
    if wanted.base.is_none() {
        found.base = None;
    }
    prop_assert_eq!(wanted, found);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn reconciler_ends_as_wanted_after_any_history(steps in proptest::collection::vec(step(), 0..60)) {
        let mut now = Duration::ZERO;
        let mut reconciler = Reconciler::default();
        let mut kernel = FakeDatapath::new();
        let mut late = None;
        let mut failing = Vec::new();
        for step in steps {
            match step {
                Step::Set(key, variant) => set(&mut reconciler, key, variant),
                Step::PlanAndApply => if let Some(plan) = reconciler.plan(now) {
                    no_entry_twice(&plan)?;
                    let outcome = kernel.apply(&plan);
                    reconciler.complete(now, &outcome);
                },
                Step::PlanOnly => {
                    late = reconciler.plan(now).or(late);
                    continue;
                }
                Step::Fail(key) => {
                    kernel.fail(key, OpErrorKind::Transient);
                    failing.push(key);
                }
                Step::Heal(key) => kernel.heal(&key),
                Step::Damage(key) => kernel.damage(&key),
                Step::Audit if reconciler.in_flight() => {}
                Step::Audit => reconciler.adopt(kernel.observe(), Prune::ALL),
                Step::Restart => {
                    let (new, plan) = restarted(&reconciler, &kernel, now);
                    reconciler = new;
                    late = plan;
                    continue;
                }
                Step::Wait => now += Duration::from_secs(1),
            }
            if let Some(plan) = late.take() {
                no_entry_twice(&plan)?;
                let outcome = kernel.apply(&plan);
                reconciler.complete(now, &outcome);
            }
        }
        if let Some(plan) = late.take() {
            let outcome = kernel.apply(&plan);
            reconciler.complete(now, &outcome);
        }

        // Everything heals; after an audit and one pause the kernel is as wanted.
        failing.iter().for_each(|key| kernel.heal(key));
        complete_services(&mut reconciler);
        reconciler.adopt(kernel.observe(), Prune::ALL);
        now += LONGEST_RETRY;
        // Twice: a base of another MTU has endpoints done again after it.
        for _ in 0..2 {
            let Some(plan) = reconciler.plan(now) else { break };
            let outcome = kernel.apply(&plan);
            prop_assert_eq!(&outcome.failures, &[]);
            reconciler.complete(now, &outcome);
        }
        same_tables(&reconciler, &kernel)?;
        prop_assert_eq!(reconciler.plan(now), None, "nothing is left to do");
        prop_assert_eq!(reconciler.dirty(), 0);
        prop_assert_eq!(reconciler.compare(&kernel.observe(), Prune::ALL).len(), usize::from(
            reconciler.wanted().base.is_none() && kernel.tables().base.is_some()));

        // A restart changes nothing.
        let before = kernel.steps();
        let (_, plan) = restarted(&reconciler, &kernel, now);
        prop_assert_eq!(plan, None);
        prop_assert_eq!(kernel.steps(), before);
    }

    #[test]
    fn observed_delta_gives_the_observation_back(
        expected in proptest::collection::vec((key(), proptest::option::of(0..3u8)), 0..30),
        observed in proptest::collection::vec((key(), proptest::option::of(0..3u8)), 0..30),
        devices in proptest::option::of(proptest::collection::vec(1..5u32, 0..4)),
    ) {
        let tables = |sets: Vec<(TableKey, Option<u8>)>| {
            let mut reconciler = Reconciler::default();
            sets.into_iter().for_each(|(key, variant)| set(&mut reconciler, key, variant));
            reconciler.wanted().clone()
        };
        let (expected, tables) = (tables(expected), tables(observed));
        let endpoint_devices = match devices {
            Some(devices) => devices.into_iter().map(EndpointId).collect(),
            None => tables.endpoints.keys().copied().collect(),
        };
        let observed = Observed { tables, broken: vec!["base".to_owned()], endpoint_devices };
        prop_assert_eq!(&ObservedDelta::new(&expected, &observed).apply(&expected), &observed);
        let nothing = ObservedDelta::new(&observed.tables, &observed);
        prop_assert_eq!(nothing.apply(&observed.tables), observed);
    }

    #[test]
    fn reconciler_incremental_equals_full(sets in proptest::collection::vec((key(), proptest::option::of(0..3u8)), 0..60)) {
        let now = Duration::ZERO;
        let (mut kernel, mut reconciler) = (FakeDatapath::new(), Reconciler::default());
        for (key, variant) in &sets {
            set(&mut reconciler, *key, *variant);
            if let Some(plan) = reconciler.plan(now) {
                let outcome = kernel.apply(&plan);
                reconciler.complete(now, &outcome);
            }
        }
        complete_services(&mut reconciler);
        if let Some(plan) = reconciler.plan(now) {
            let outcome = kernel.apply(&plan);
            reconciler.complete(now, &outcome);
        }
        let mut at_once = Reconciler::default();
        sets.iter().for_each(|(key, variant)| set(&mut at_once, *key, *variant));
        complete_services(&mut at_once);
        let mut other = FakeDatapath::new();
        let (plan, _) = at_once.plan_full(now, other.observe(), Prune::ALL);
        if let Some(plan) = plan {
            other.apply(&plan);
            // Applying is idempotent.
            let (_, changes) = other.steps();
            other.apply(&plan);
            prop_assert_eq!(other.steps().1, changes);
        }
        prop_assert_eq!(kernel.tables(), other.tables());
    }
}
