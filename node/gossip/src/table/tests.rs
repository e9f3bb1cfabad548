//! Sightings in, events out.

use node_facts::{
    Liveness::{Alive, Dead, Silent},
    NodeHealth, encode,
};

use super::*;

const ROUND: Duration = Duration::from_secs(1);

fn table() -> PeerTable {
    let mut table = PeerTable::new(NodeName::new("me").unwrap(), "f1".to_owned(), ROUND);
    table.set_own_generation(100);
    table
}

fn facts(node: &str) -> NodeFacts {
    NodeFacts {
        fleet_id: "f1".to_owned(),
        node: NodeName::new(node).unwrap(),
        incarnation: 1,
        underlay: vec!["192.0.2.1".parse().unwrap()],
        moves: 0,
        gateway: None,
        cidrs: vec![],
        applied_generation: 1,
        recorded_life: 0,
        cut_off: false,
        recorded_revision: 0,
        health: NodeHealth::Ok,
        pending: vec![],
        unwell: Vec::new(),
    }
}

fn sighting(name: &str, generation: u64, heartbeat: u64, alive: bool) -> Sighting {
    Sighting {
        name: name.into(),
        generation,
        address: "192.0.2.1:1".parse().unwrap(),
        alive,
        heartbeat,
        version: 0,
        values: Some(BTreeMap::new()),
    }
}

fn telling(sighting: Sighting, version: u64, facts: &NodeFacts) -> Sighting {
    Sighting { version, values: Some(encode(facts).unwrap().into_iter().collect()), ..sighting }
}

fn live(node: &str, liveness: Liveness) -> GossipEvent {
    GossipEvent::Live { node: NodeName::new(node).unwrap(), liveness }
}

fn told(facts: NodeFacts) -> GossipEvent {
    GossipEvent::Facts { node: facts.node.clone(), facts: Arc::new(facts) }
}

/// Compares the reasons only.
fn check_rejected(events: &[GossipEvent], expected: &str) {
    let [GossipEvent::Rejected { reason, .. }] = events else { panic!("one rejection: {events:?}") };
    assert!(reason.contains(expected), "{reason}");
}

#[test]
fn node_is_dead_only_when_suspected_and_silent() {
    let (mut table, start) = (table(), Instant::now());
    assert_eq!(table.observe(start, vec![sighting("n1", 1, 1, false)]), [], "not heard of enough yet");
    assert_eq!(table.observe(start, vec![sighting("n1", 1, 2, true)]), [live("n1", Alive)]);
    assert_eq!(table.observe(start + 2 * ROUND, vec![sighting("n1", 1, 2, false)]), [], "suspected only");
    assert_eq!(table.silences(start + 2 * ROUND), []);
    assert_eq!(table.silences(start + 3 * ROUND), [live("n1", Silent)]);
    assert_eq!(table.silences(start + 9 * ROUND), [], "said once");
    assert_eq!(table.observe(start + 9 * ROUND, vec![sighting("n1", 1, 2, true)]), [], "silent only");
    assert_eq!(table.observe(start + 9 * ROUND, vec![sighting("n1", 1, 2, false)]), [live("n1", Dead)]);
    assert_eq!(table.observe(start + 9 * ROUND, vec![sighting("n1", 1, 2, false)]), [], "said once");
    assert_eq!(
        table.observe(start + 10 * ROUND, vec![sighting("n1", 1, 3, false)]),
        [],
        "one word is no life"
    );
    assert_eq!(table.observe(start + 10 * ROUND, vec![sighting("n1", 1, 3, true)]), [live("n1", Alive)]);
}

#[test]
fn heartbeat_ends_a_silence() {
    let (mut table, start) = (table(), Instant::now());
    assert_eq!(table.observe(start, vec![sighting("n1", 1, 1, true)]), [live("n1", Alive)]);
    assert_eq!(table.observe(start + 3 * ROUND, vec![sighting("n1", 1, 1, true)]), [live("n1", Silent)]);
    assert_eq!(table.observe(start + 4 * ROUND, vec![sighting("n1", 1, 2, false)]), [live("n1", Alive)]);
}

#[test]
fn restart_is_no_death_and_the_newest_incarnation_counts() {
    let (mut table, now) = (table(), Instant::now());
    let (old, new) = (facts("n1"), NodeFacts { applied_generation: 2, ..facts("n1") });
    let before = vec![telling(sighting("n1", 1, 9, true), 5, &old)];
    assert_eq!(table.observe(now, before), [live("n1", Alive), told(old.clone())]);
    let both =
        || vec![telling(sighting("n1", 2, 1, false), 2, &new), telling(sighting("n1", 1, 9, true), 5, &old)];
    assert_eq!(table.observe(now, both()), [told(new.clone())]);
    assert_eq!(table.observe(now, both()), [], "doing it twice changes nothing");
    assert_eq!(table.status(now)[0].incarnation, 2);
}

#[test]
fn restart_of_the_gossip_task_changes_nothing_about_others() {
    let (mut table, now) = (table(), Instant::now());
    let known = || vec![telling(sighting("n1", 1, 9, true), 5, &facts("n1"))];
    assert_eq!(table.observe(now, known()).len(), 2);
    assert_eq!(table.observe(now + ROUND, vec![]), []);
    assert_eq!(table.observe(now + 2 * ROUND, known()), []);
    assert_eq!(table.observe(now + 9 * ROUND, vec![]), [live("n1", Dead)], "gone for long");
    assert_eq!(table.status(now), []);
}

#[test]
fn facts_must_match_their_sender() {
    let now = Instant::now();
    let tell = |name: &str, facts: &NodeFacts| {
        table().observe(now, vec![telling(sighting(name, 1, 1, false), 1, facts)])
    };
    assert_eq!(tell("n1", &facts("n1")), [told(facts("n1"))]);
    check_rejected(&tell("n2", &facts("n1")), "facts of n1 under the name of n2");
    check_rejected(&tell("NOT A NAME", &facts("n1")), "is not valid");
    check_rejected(&tell("n1", &NodeFacts { fleet_id: "f2".to_owned(), ..facts("n1") }), "fleet id f2");
    let unknown = NodeFacts { fleet_id: String::new(), ..facts("n1") };
    assert_eq!(tell("n1", &unknown), [told(unknown)], "no id yet is no contradiction");
}

#[test]
fn own_node_name_cannot_be_taken_by_others() {
    let (mut table, now) = (table(), Instant::now());
    assert_eq!(table.observe(now, vec![sighting("me", 99, 1, true)]), [], "our former incarnation");
    let other = || vec![telling(sighting("me", 101, 1, true), 1, &facts("me"))];
    check_rejected(
        &table.observe(now, other()),
        "another agent, at 192.0.2.1:1, gossips under this node's name",
    );
    assert_eq!(table.observe(now, other()), [], "said once");
    assert_eq!(table.status(now), []);
}

#[test]
fn invalid_entries_are_reported_beside_the_valid_ones() {
    let (mut table, now) = (table(), Instant::now());
    let mut bad = telling(sighting("n1", 1, 1, false), 1, &facts("n1"));
    let values = bad.values.as_mut().unwrap();
    let text = values["facts"].replace("\"pending_chunks\":0", "\"pending_chunks\":1");
    values.insert("facts".to_owned(), text);
    assert_eq!(table.observe(now, vec![bad.clone()]), [], "the chunk has not arrived");
    bad.version = 2;
    bad.values.as_mut().unwrap().insert("pending/0".to_owned(), "junk".to_owned());
    let events = table.observe(now, vec![bad]);
    check_rejected(&events[..1], "pending/0");
    assert_eq!(events[1..], [told(facts("n1"))]);
}
