//! Endpoints: what a caller asks for, and what the whole fleet then knows.

use std::{collections::BTreeSet, time::Duration};

use datapath_plan::{OpErrorKind, TableKey};
use identity::Identity;
use node_core::{Call, CallErrorKind, Reply};

use chaos_sim::{Sim, added, check, name, spec};

#[test]
fn identities_are_shared_by_equal_label_sets() {
    let mut sim = Sim::new(5, 2);
    sim.settle();
    let calls: Vec<_> = (0..100)
        .map(|n| sim.call(n % 5 + 1, Call::EndpointAdd(spec(&format!("e{n}"), &format!("app=a{}", n % 10)))))
        .collect();
    sim.settle();
    let identities: BTreeSet<Identity> =
        calls.iter().map(|call| added(sim.replies.remove(call).expect("an answer")).1).collect();
    assert_eq!(identities.len(), 10);
    assert_eq!(check::view(&sim).identities().len(), 10);
    check::converged(&sim);
}

#[test]
fn endpoint_is_added_and_deleted_on_every_node() {
    let mut sim = Sim::new(3, 3);
    sim.settle();
    let (address, identity) = added(sim.add(1, "web", "app=web"));
    check::converged(&sim);
    for n in 1..=3 {
        let entry = sim.node(n).lookup(address).expect("an entry");
        assert_eq!((entry.identity, entry.node.expect("a node").as_str()), (identity, "n1"));
        assert_eq!(entry.labels.to_string(), "app=web");
    }
    assert_eq!(sim.ask(1, Call::EndpointDelete(name("web"))), Ok(Reply::EndpointDeleted { existed: true }));
    assert_eq!(sim.ask(1, Call::EndpointDelete(name("web"))), Ok(Reply::EndpointDeleted { existed: false }));
    check::converged(&sim);
    for n in 1..=3 {
        assert_eq!(sim.node(n).lookup(address).expect("the block").prefix.prefix(), 24);
    }
    // The address is in cooldown, so the next endpoint gets another one.
    assert_ne!(added(sim.add(1, "web", "app=web")).0, address);
}

#[test]
fn endpoint_add_is_idempotent_and_detects_conflicts() {
    let mut sim = Sim::new(1, 4);
    sim.settle();
    let first = added(sim.add(1, "web", "app=web"));
    match sim.add(1, "web", "app=web") {
        Ok(Reply::EndpointAdded { address, identity, existed: true, .. }) => {
            assert_eq!((address, identity), first)
        }
        other => panic!("{other:?}"),
    }
    let error = sim.add(1, "web", "app=db").expect_err("other labels");
    assert_eq!(error.kind, CallErrorKind::Conflict);
    assert_eq!(
        error.text,
        "endpoint web exists with labels {app=web}; delete it first, or choose another name"
    );
    let mut other = spec("web2", "app=web");
    other.attachment = spec("web", "").attachment;
    let error = sim.ask(1, Call::EndpointAdd(other)).expect_err("the same interface");
    assert_eq!(
        error.text,
        "interface eth0 of /run/netns/web belongs to endpoint web; delete that one first, or name another interface"
    );
}

#[test]
fn endpoint_address_request_is_granted_or_rejected_with_the_reason() {
    let mut sim = Sim::new(1, 5);
    sim.settle();
    let block = sim.node(1).status().cidrs[0].cidr;
    let at = |host: u32| -> std::net::IpAddr {
        let std::net::IpAddr::V4(base) = block.network() else { panic!("an IPv4 pool") };
        std::net::Ipv4Addr::from(u32::from(base) + host).into()
    };
    let mut wanted = |endpoint: &str, address| {
        let spec = node_core::EndpointSpec { address: Some(address), ..spec(endpoint, "app=web") };
        sim.ask(1, Call::EndpointAdd(spec))
    };
    assert_eq!(added(wanted("a", at(77))).0, at(77));
    assert_eq!(wanted("b", at(77)).expect_err("taken").kind, CallErrorKind::Conflict);
    let error = wanted("c", "10.99.0.1".parse().expect("an address")).expect_err("elsewhere");
    assert_eq!(error.kind, CallErrorKind::Invalid);
    assert_eq!(
        error.text,
        format!(
            "address 10.99.0.1 is not one that this node may give to an endpoint: its pod CIDRs are {block}"
        )
    );
    assert_eq!(wanted("d", at(1)).expect_err("the gateway").kind, CallErrorKind::Invalid);
}

#[test]
fn endpoint_that_cannot_be_attached_leaves_nothing() {
    let mut sim = Sim::new(1, 10);
    sim.settle();
    added(sim.add(1, "a", "app=a"));
    let next = datapath_plan::EndpointId(2);
    sim.agent(1).kernel.fail(TableKey::Endpoint(next), OpErrorKind::NamespaceGone);
    let id = sim.call(1, Call::EndpointAdd(spec("b", "app=b")));
    sim.settle();
    let error = sim.replies.remove(&id).expect("an answer").expect_err("not attached");
    assert_eq!(error.kind, CallErrorKind::Invalid);
    assert_eq!(error.text, "endpoint b not attached: endpoints 2: failed as the test wants");
    sim.agent(1).kernel.heal(&TableKey::Endpoint(next));
    sim.advance(Duration::from_secs(61));
    assert_eq!(sim.node(1).endpoints().len(), 1);
    check::converged(&sim);
}

#[test]
fn identity_is_collected_after_its_last_endpoint() {
    let mut sim = Sim::new(2, 20);
    sim.settle();
    let (_, identity) = added(sim.add(1, "a", "app=a"));
    assert_eq!(sim.ask(1, Call::EndpointDelete(name("a"))), Ok(Reply::EndpointDeleted { existed: true }));
    sim.advance(Duration::from_secs(30));
    assert_eq!(added(sim.add(1, "a2", "app=a")).1, identity, "within the grace nothing moves");
    assert_eq!(sim.ask(1, Call::EndpointDelete(name("a2"))), Ok(Reply::EndpointDeleted { existed: true }));
    sim.advance(Duration::from_secs(65));
    assert!(check::view(&sim).refs(identity).is_empty());
    sim.advance(Duration::from_secs(2 * 900));
    assert_eq!(check::view(&sim).identities().len(), 0);
}

/// The kernel is busy with another endpoint, or being observed, so that no plan has created this one yet.
#[test]
fn endpoint_deleted_before_its_plan_was_applied_is_gone() {
    for seed in 0..20 {
        let mut sim = Sim::new(1, seed);
        sim.settle();
        added(sim.add(1, "known", "app=a"));
        let busy = sim.call(1, Call::EndpointAdd(spec("busy", "app=a")));
        let early = sim.call(1, Call::EndpointAdd(spec("early", "app=a")));
        let delete = sim.call(1, Call::EndpointDelete(name("early")));
        sim.settle();
        added(sim.replies.remove(&busy).expect("an answer"));
        assert!(sim.replies.contains_key(&early), "seed {seed}: the add is answered, whichever way");
        let deleted = sim.replies.remove(&delete);
        assert_eq!(deleted, Some(Ok(Reply::EndpointDeleted { existed: true })), "seed {seed}");
        added(sim.add(1, "early", "app=a"));
        check::converged(&sim);
    }
}
