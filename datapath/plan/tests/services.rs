//! Plans of services as text: input -> expected steps.

use std::{net::IpAddr, time::Duration};

use datapath_plan::{
    Algorithm, BackendId, BackendState, BackendValue, FIRST_RETRY, FakeDatapath, Frontend, FrontendKind,
    FrontendValue, Limits, OpErrorKind, PlanError, Protocol, Prune, Reconciler, ServiceId, ServiceMode,
    ServiceValue, TableKey,
    lb::{Member, slots},
};

const T0: Duration = Duration::ZERO;
const WEB: ServiceId = ServiceId(1);

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn backend(address: &str) -> BackendValue {
    BackendValue { service: WEB, address: ip(address), port: 8080, weight: 1, state: BackendState::Active }
}

fn service(members: &[u32]) -> Option<ServiceValue> {
    Some(ServiceValue {
        algorithm: Algorithm::Maglev,
        affinity_seconds: 0,
        mode: ServiceMode::Snat,
        source_ranges: Vec::new(),
        members: members.iter().copied().map(BackendId).collect(),
    })
}

fn at(address: &str) -> Frontend {
    Frontend { address: ip(address), port: 80, protocol: Protocol::Tcp }
}

const TO_WEB: Option<FrontendValue> = Some(FrontendValue { service: WEB, kind: FrontendKind::Virtual });

fn steps(reconciler: &mut Reconciler, kernel: &mut FakeDatapath, now: Duration) -> Vec<String> {
    let Some(plan) = reconciler.plan(now) else { return Vec::new() };
    let outcome = kernel.apply(&plan);
    reconciler.complete(now, &outcome);
    plan.ops.iter().map(ToString::to_string).collect()
}

/// Plans, checks the text, carries it out.
fn check(reconciler: &mut Reconciler, kernel: &mut FakeDatapath, expected: &[&str]) {
    assert_eq!(steps(reconciler, kernel, T0), expected);
}

/// A service with two backends, carried out.
fn settled() -> (Reconciler, FakeDatapath) {
    let (mut reconciler, mut kernel) = (Reconciler::default(), FakeDatapath::new());
    reconciler.set(at("10.201.0.1"), TO_WEB);
    reconciler.set(WEB, service(&[1, 2]));
    reconciler.set(BackendId(1), Some(backend("10.0.1.2")));
    reconciler.set(BackendId(2), Some(backend("10.0.2.2")));
    check(
        &mut reconciler,
        &mut kernel,
        &[
            "put backends 1: service 1 address 10.0.1.2 port 8080 weight 1 active",
            "put backends 2: service 1 address 10.0.2.2 port 8080 weight 1 active",
            "put services 1: maglev snat members 1 2",
            "put frontends tcp 10.201.0.1 80: service 1 virtual",
            "bump epochs of 10.201.0.1",
        ],
    );
    check(&mut reconciler, &mut kernel, &[]);
    (reconciler, kernel)
}

#[test]
fn frontend_is_put_last_and_deleted_first() {
    let (mut reconciler, mut kernel) = settled();
    reconciler.set::<BackendValue>(BackendId(1), None);
    reconciler.set::<BackendValue>(BackendId(2), None);
    reconciler.set::<ServiceValue>(WEB, None);
    reconciler.set::<FrontendValue>(at("10.201.0.1"), None);
    check(
        &mut reconciler,
        &mut kernel,
        &[
            "delete frontends tcp 10.201.0.1 80",
            "delete services 1",
            "delete backends 2",
            "delete backends 1",
            "bump epochs of 10.0.1.2 10.0.2.2 10.201.0.1",
        ],
    );
}

#[test]
fn backend_leaves_the_slots_before_it_is_deleted() {
    let (mut reconciler, mut kernel) = settled();
    reconciler.set::<BackendValue>(BackendId(2), None);
    reconciler.set(WEB, service(&[1]));
    check(
        &mut reconciler,
        &mut kernel,
        &["put services 1: maglev snat members 1", "delete backends 2", "bump epochs of 10.0.2.2"],
    );
}

/// Whoever may not come any more must not go on either.
#[test]
fn source_ranges_that_narrow_bump_all_epochs() {
    let (mut reconciler, mut kernel) = settled();
    let ranges = |ranges: &[&str]| {
        let source_ranges = ranges.iter().map(|range| range.parse().expect("a range")).collect();
        service(&[1, 2]).map(|value| ServiceValue { source_ranges, ..value })
    };
    reconciler.set(WEB, ranges(&["192.0.2.0/24", "198.51.100.0/24"]));
    check(
        &mut reconciler,
        &mut kernel,
        &["put services 1: maglev snat sources 192.0.2.0/24 198.51.100.0/24 members 1 2", "bump all epochs"],
    );
    reconciler.set(WEB, ranges(&[]));
    check(&mut reconciler, &mut kernel, &["put services 1: maglev snat members 1 2"]);
}

/// Its flows go on: nothing is decided again.
#[test]
fn backend_that_terminates_bumps_no_epoch() {
    let (mut reconciler, mut kernel) = settled();
    let state = BackendState::Terminating;
    reconciler.set(BackendId(2), Some(BackendValue { state, ..backend("10.0.2.2") }));
    reconciler.set(WEB, service(&[1]));
    check(
        &mut reconciler,
        &mut kernel,
        &[
            "put backends 2: service 1 address 10.0.2.2 port 8080 weight 1 terminating",
            "put services 1: maglev snat members 1",
        ],
    );
}

#[test]
fn backend_weight_or_address_puts_its_service_again() {
    let (mut reconciler, mut kernel) = settled();
    reconciler.set(BackendId(2), Some(BackendValue { weight: 3, ..backend("10.0.2.2") }));
    check(
        &mut reconciler,
        &mut kernel,
        &[
            "put backends 2: service 1 address 10.0.2.2 port 8080 weight 3 active",
            "put services 1: maglev snat members 1 2",
        ],
    );
    reconciler.set(BackendId(2), Some(backend("10.0.2.9")));
    check(
        &mut reconciler,
        &mut kernel,
        &[
            "put backends 2: service 1 address 10.0.2.9 port 8080 weight 1 active",
            "put services 1: maglev snat members 1 2",
            "bump epochs of 10.0.2.2",
        ],
    );
}

/// A member without a backend is a failed step; the other members work, and it is made up for at once.
#[test]
fn member_without_backend_is_added_when_the_backend_comes() {
    let (mut reconciler, mut kernel) = settled();
    reconciler.set(WEB, service(&[1, 2, 3]));
    check(&mut reconciler, &mut kernel, &["put services 1: maglev snat members 1 2 3"]);
    assert_eq!(kernel.tables().services[&WEB].members, [BackendId(1), BackendId(2)]);
    let error = &reconciler.failing().values().next().expect("a failure").error;
    assert_eq!(error.text, "services 1: backend 3 is not there");
    reconciler.set(BackendId(3), Some(backend("10.0.3.2")));
    check(
        &mut reconciler,
        &mut kernel,
        &[
            "put backends 3: service 1 address 10.0.3.2 port 8080 weight 1 active",
            "put services 1: maglev snat members 1 2 3",
        ],
    );
    assert_eq!(kernel.tables().services[&WEB].members.len(), 3);
}

/// The kernel is not asked: a plan says from which backends slots follow, as they are when its steps are carried out.
#[test]
fn slot_table_of_a_plan_has_the_backends_as_they_will_be() {
    let (mut reconciler, _) = settled();
    reconciler.set(BackendId(2), Some(BackendValue { weight: 3, ..backend("10.0.2.9") }));
    reconciler.set(WEB, service(&[1, 2, 3]));
    let plan = reconciler.plan(T0).expect("a plan");
    let table = &plan.slot_tables[&WEB];
    let member = |id, address, weight| Member { id: BackendId(id), address: ip(address), port: 8080, weight };
    assert_eq!(table.members(), [member(1, "10.0.1.2", 1), member(2, "10.0.2.9", 3)]);
    assert_eq!(table.slots(), slots(Algorithm::Maglev, table.members()));
    assert_eq!(table.missing(&service(&[1, 2, 3]).expect("a service")), Some(BackendId(3)));
}

#[test]
fn slot_table_leaves_out_a_backend_whose_own_step_failed() {
    let (mut reconciler, mut kernel) = settled();
    kernel.fail(TableKey::Backend(BackendId(3)), OpErrorKind::Transient);
    reconciler.set(BackendId(3), Some(backend("10.0.3.2")));
    reconciler.set(WEB, service(&[1, 2, 3]));
    let put = [
        "put backends 3: service 1 address 10.0.3.2 port 8080 weight 1 active",
        "put services 1: maglev snat members 1 2 3",
    ];
    check(&mut reconciler, &mut kernel, &put);
    assert_eq!(kernel.tables().services[&WEB].members, [BackendId(1), BackendId(2)]);
    kernel.heal(&TableKey::Backend(BackendId(3)));
    assert_eq!(steps(&mut reconciler, &mut kernel, FIRST_RETRY), put);
    assert_eq!(kernel.tables().services[&WEB].members.len(), 3);
}

#[test]
fn services_are_not_pruned_before_all_are_known() {
    let (_, kernel) = settled();
    let mut restarted = Reconciler::default();
    let (plan, differences) =
        restarted.plan_full(T0, kernel.observe(), Prune { services: false, ..Prune::ALL });
    assert_eq!(plan, None);
    assert_eq!(differences.len(), 4);
    assert!(differences.iter().all(|difference| difference.kept));
    let (plan, _) = restarted.plan_full(T0, kernel.observe(), Prune { services: true, ..Prune::NONE });
    assert_eq!(plan.expect("a plan").ops.len(), 5, "four removals, and the epochs");
}

#[test]
fn full_service_tables_are_reported() {
    let limits = Limits::default().with("backends", 1).with("services", 0).with("frontends", 0);
    let mut reconciler = Reconciler::new(limits);
    let mut kernel = FakeDatapath::new();
    reconciler.set(at("10.201.0.1"), TO_WEB);
    reconciler.set(WEB, service(&[1, 2]));
    reconciler.set(BackendId(1), Some(backend("10.0.1.2")));
    reconciler.set(BackendId(2), Some(backend("10.0.2.2")));
    let full = |table: &str, wanted, max| PlanError::Capacity { table: table.to_owned(), wanted, max };
    assert_eq!(reconciler.full(), [full("backends", 2, 1), full("services", 1, 0), full("frontends", 1, 0)]);
    check(
        &mut reconciler,
        &mut kernel,
        &["put backends 1: service 1 address 10.0.1.2 port 8080 weight 1 active"],
    );
}
