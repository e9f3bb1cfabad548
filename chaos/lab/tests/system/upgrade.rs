//! Agents are killed, stopped, upgraded and downgraded under traffic, between endpoints and to the outside: no packet
//! is lost, and the flows stay the same.
//!
//! The other build is `warrend-next`, whose flow table has another layout. `deploy/run-tests.sh` builds it; without
//! it the tests are skipped.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use chaos_lab::{
    Endpoint, ask,
    probe::{Connections, Ping, Running, Streams},
    wait,
};
use nix::sys::signal::Signal;
use node_api::FlowQuery;
use rand::{RngExt, SeedableRng, rngs::SmallRng};

use crate::support::{SOON, TestLab};

const THIS: &str = "warrend";
const OTHER: &str = "warrend-next";

/// The number of rounds of each kind; `make test-upgrade` does 20.
fn rounds() -> usize {
    std::env::var("UPGRADE_ROUNDS").map_or(2, |rounds| rounds.parse().expect("a number of rounds"))
}

/// Two nodes under traffic.
struct Show {
    lab: TestLab,
    probes: Vec<Running>,
    origin: Instant,
}

impl Show {
    fn begin(test: &str, streams: usize) -> Option<Self> {
        let lab = TestLab::up(test, 2, 1)?;
        if !lab.spec().programs.join(OTHER).is_file() {
            println!("skipped: {OTHER} is not built: make test-upgrade");
            return None;
        }
        let from = lab.endpoint("n1", "from", "app=from");
        let beside = lab.endpoint("n1", "beside", "app=beside");
        let to = lab.endpoint("n2", "to", "app=to");
        let outside = lab.external_machine("x1");
        lab.wait_in_ipcache("n1", [&to]);
        lab.wait_in_ipcache("n2", [&from]);
        let connections = |from: &Endpoint, to: &Endpoint| Connections {
            from: from.clone(),
            to: to.clone(),
            interval: Duration::from_millis(50),
        };
        let probes = [
            Ping::new(&from.namespace, to.address).start(),
            Streams::new(&from, &to, streams).start(),
            Streams::new(&from, &beside, streams.div_ceil(10)).start(),
            connections(&to, &from).start(),
            // Masqueraded. No new connections: one that begins while the layout changes may need three attempts, 3 s.
            Streams::new(&from, &outside, streams.div_ceil(10)).start(),
        ];
        let probes = probes.into_iter().map(Result::unwrap).collect();
        let show = Self { lab, probes, origin: Instant::now() };
        show.more();
        Some(show)
    }

    /// Waits until every probe has carried more traffic.
    fn more(&self) {
        self.probes.iter().for_each(|probe| probe.wait_for_more(10, SOON).unwrap());
    }

    fn change(&self, node: &str, signal: Signal, program: &str) {
        self.more();
        self.lab.end(node, signal).unwrap();
        self.more();
        self.lab.start_agent_of(program, node, &[]).unwrap();
        self.lab.wait_node_ready(node).unwrap();
        self.more();
    }

    /// The kernel's ids of a node's maps.
    fn map_ids(&self, node: &str) -> BTreeMap<String, u32> {
        let maps = ask(self.lab.api(node).maps()).unwrap();
        maps.items.into_iter().map(|map| (map.name, map.id)).collect()
    }

    /// The maps that were replaced.
    fn remade(&self, node: &str, before: &BTreeMap<String, u32>) -> Vec<String> {
        let now = self.map_ids(node);
        assert!(now.keys().eq(before.keys()));
        now.into_iter().filter(|(name, id)| before[name] != *id).map(|(name, _)| name).collect()
    }

    /// The number of a node's flows that are as old as the traffic.
    fn old_flows(&self, node: &str) -> usize {
        // Ages of flows are in ticks of the kernel's coarse clock, and the last flow began just before the traffic's
        // origin.
        const SLACK_MS: u64 = 100;
        let shown_ms = self.origin.elapsed().as_millis() as u64;
        let all = FlowQuery { limit: Some(usize::from(u16::MAX)), ..FlowQuery::default() };
        let flows = ask(self.lab.api(node).flows(&all)).unwrap();
        flows.items.iter().filter(|flow| flow.age_ms + SLACK_MS >= shown_ms && flow.packets > 0).count()
    }

    fn end_without_loss(self) {
        self.more();
        for probe in self.probes {
            let report = probe.stop().unwrap();
            let words = report.describe(self.origin);
            eprintln!(
                "{} {} of {}, {:?} sent again, longest pause of the probe {:?}, {:?}: {words:?}",
                report.unit,
                report.arrived,
                report.sent,
                report.retransmissions,
                report.longest_pause,
                report.latency
            );
            assert_eq!(report.losses().count(), 0, "{words:?}");
        }
        for node in ["n1", "n2"] {
            let (code, text, _) = self.lab.warren(node, &["state", "diff"]);
            assert_eq!(code, 0, "{node}: {text}");
        }
    }
}

/// The maps with another layout, and those that every build creates for itself.
const REMADE: [&str; 5] =
    ["WARREN_BUDGETS", "WARREN_CONFIG", "WARREN_EVENTS", "WARREN_FLOWS_V4", "WARREN_SCRATCH"];

#[test]
fn upgrade_and_downgrade_lose_no_packet() {
    let Some(show) = Show::begin("upgrade", 100) else { return };
    for round in 0..rounds() {
        // The streams between the nodes, those on n1, those to the outside, and the ping.
        let (node, flows) = [("n1", 100 + 10 + 10 + 1), ("n2", 100 + 1)][round % 2];
        let changes: [(Signal, &str, &[&str]); 4] = [
            (Signal::SIGKILL, THIS, &[]),
            (Signal::SIGTERM, THIS, &[]),
            (Signal::SIGTERM, OTHER, &REMADE),
            (Signal::SIGTERM, THIS, &REMADE),
        ];
        for (signal, program, remade) in changes {
            let before = show.map_ids(node);
            show.change(node, signal, program);
            assert_eq!(show.remade(node, &before), remade, "{program} after {signal}");
            let old = show.old_flows(node);
            assert!(old >= flows, "{old} of {flows} flows of {node} are old: {program} after {signal}");
        }
    }
    show.end_without_loss();
}

#[test]
fn upgrade_interrupted_by_a_kill_can_be_continued_by_either_build() {
    let seed: u64 = rand::random();
    eprintln!("seed {seed}");
    let mut random = SmallRng::seed_from_u64(seed);
    let Some(show) = Show::begin("takeover", 20) else { return };
    show.lab.end("n1", Signal::SIGTERM).unwrap();
    let mut program = THIS;
    for _ in 0..rounds() * 4 {
        // Mostly the other build comes next: it has most to do.
        program = if random.random_bool(0.75) == (program == THIS) { OTHER } else { THIS };
        show.lab.start_agent_of(program, "n1", &[]).unwrap();
        // A random moment of its start: any moment must do.
        std::thread::sleep(Duration::from_millis(random.random_range(0..600)));
        show.lab.end("n1", Signal::SIGKILL).unwrap();
        show.more();
    }
    show.lab.start_agent_of(THIS, "n1", &[]).unwrap();
    show.lab.wait_node_ready("n1").unwrap();
    wait::until("n1 to have all it wants", SOON, || {
        let (code, text, _) = show.lab.warren("n1", &["state", "diff"]);
        anyhow::ensure!(code == 0, "{text}");
        Ok(())
    })
    .unwrap();
    show.end_without_loss();
}
