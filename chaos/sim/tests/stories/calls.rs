//! Calls at a bad moment, to a node without a fleet: which response belongs to which call.

use std::{collections::VecDeque, time::Duration};

use datapath_plan::{FakeDatapath, Observed, OpErrorKind, PlanOutcome, TableKey};
use kvstore_schema::{ListPage, Revision, StoreIdentity};
use node_core::{Call, CallError, CallId, Command, Event, KvUpdate, Node, Now, Reply};

use chaos_sim::{Agent, Sim, config, name, spec};

type Answer = (CallId, Result<Reply, CallError>);

fn answers(commands: &[Command]) -> Vec<Answer> {
    let answer = |command: &Command| match command {
        Command::Reply(call, answer) => Some((*call, answer.clone())),
        _ => None,
    };
    commands.iter().filter_map(answer).collect()
}

/// A node that has observed an empty kernel and listed an empty store, and is idle.
fn started() -> Node {
    let mut node = Node::new(config(1));
    let page = ListPage { entries: Vec::new(), revision: Revision(1), store: StoreIdentity(1), more: false };
    let mut kernel = FakeDatapath::new();
    let mut events = VecDeque::from([
        Event::Started { snapshot: None, endpoints: Vec::new() },
        Event::Kv(KvUpdate::Listed(page)),
    ]);
    while let Some(event) = events.pop_front() {
        for command in node.handle(Now::default(), event) {
            match command {
                Command::Apply(plan) => events.push_back(Event::Applied(kernel.apply(&plan))),
                Command::Observe => events.push_back(Event::Observed(Ok(kernel.observe()))),
                _ => {}
            }
        }
    }
    node
}

#[test]
fn audit_is_answered_by_an_observation_that_began_after_it() {
    let mut node = started();
    let audit = |call| Event::Called(CallId(call), Call::Audit { repair: false });
    let observes = |commands: &[Command]| commands.iter().any(|command| matches!(command, Command::Observe));
    assert!(observes(&node.handle(Now::default(), audit(1))));
    assert!(!observes(&node.handle(Now::default(), audit(2))), "one reading at a time");
    let commands = node.handle(Now::default(), Event::Observed(Ok(Observed::default())));
    let answered: Vec<CallId> = answers(&commands).iter().map(|(call, _)| *call).collect();
    assert_eq!(answered, [CallId(1)]);
    assert!(observes(&commands), "a further reading for the second");
    let commands = node.handle(Now::default(), Event::Observed(Ok(Observed::default())));
    assert_eq!(answers(&commands)[0].0, CallId(2));
}

#[test]
fn delete_during_a_failing_attach_is_answered() {
    let mut sim = Sim::with(57, vec![config(1)]);
    sim.settle();
    let Agent { node: Some(node), kernel, .. } = &mut sim.agents[0] else { panic!("it runs") };
    let mut known = FakeDatapath::clone(kernel);
    let plan = |commands: Vec<Command>| {
        commands.into_iter().find_map(|command| match command {
            Command::Apply(plan) => Some(plan),
            _ => None,
        })
    };
    // The labels have an identity already, so that the endpoint goes into the kernel at once.
    let at = |seconds| Now { monotonic: Duration::from_secs(seconds), wall: Duration::from_secs(seconds) };
    let now = at(1);
    let commands = node.handle(now, Event::Called(CallId(1), Call::EndpointAdd(spec("a", "app=a"))));
    let acquire = commands.into_iter().find_map(|command| match command {
        Command::Kv(id, request) => Some((id, request)),
        _ => None,
    });
    let (id, request) = acquire.expect("a request for a number");
    let outcome = sim.store.execute(&request);
    let attach = plan(node.handle(now, Event::KvAnswer(id, outcome))).expect("a plan that attaches it");
    let commands = node.handle(now, Event::Called(CallId(2), Call::EndpointDelete(name("a"))));
    let first = answers(&commands);
    assert!(matches!(&first[..], [(CallId(1), Err(_))]), "who added it is told: {first:?}");
    let key = attach.ops.iter().filter_map(TableKey::of).find(|key| matches!(key, TableKey::Endpoint(_)));
    let key = key.expect("an endpoint's step");
    known.fail(key, OpErrorKind::Transient);
    let failed: PlanOutcome = known.apply(&attach);
    known.heal(&key);
    let commands = node.handle(now, Event::Applied(failed));
    assert_eq!(answers(&commands), [], "deleting it has not been tried yet");
    let mut next = plan(commands);
    let mut told = Vec::new();
    // A failed operation is retried after a pause.
    for seconds in 2..100 {
        let event = next.take().map_or(Event::Woke, |plan| Event::Applied(known.apply(&plan)));
        let commands = node.handle(at(seconds), event);
        told.extend(answers(&commands));
        next = plan(commands);
    }
    assert_eq!(told, [(CallId(2), Ok(Reply::EndpointDeleted { existed: true }))]);
}
