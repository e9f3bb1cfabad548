//! Random histories: calls, faults, deaths and repairs, drawn by a seed; then everything heals, and the fleet has a
//! while to come to be as its store says.

use std::{
    collections::BTreeSet,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use datapath_plan::{EndpointId, OpErrorKind, TableKey};
use kvstore_schema::StoreIdentity;
use kvstore_store::{MemState, WriteFates};
use node_core::Call;

use crate::{
    Agent, Bug, Invariant, Log, Sim, Violation, check,
    config::{config, name, spec},
    invariant::Checked,
};

/// How long a fleet may take to converge once everything has healed: the longest retry of a step that failed is 60 s,
/// and what was refused is tried again after 30 s.
const HEALED_WITHIN: Duration = Duration::from_secs(120);

/// How a history went.
#[derive(Debug, Clone, Copy, Default)]
pub struct Course {
    /// Nodes at its begin.
    pub nodes: usize,
    /// From the heal to convergence.
    pub converged_after: Duration,
    /// In all.
    pub lasted: Duration,
}

/// A history that met something which must not be.
#[derive(Debug)]
pub struct Failure {
    /// What gives the same history again.
    pub seed: u64,
    /// What must not be.
    pub violation: Violation,
    /// The last steps before.
    pub story: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.story {
            writeln!(f, "  {line}")?;
        }
        write!(f, "seed {}: {}", self.seed, self.violation)
    }
}

/// Runs the history of a seed, with a bug or without one. One that fails runs again, to tell its last steps.
///
/// # Errors
/// The first thing that must not be.
pub fn run(seed: u64, bug: Option<Bug>) -> Result<Course, Box<Failure>> {
    let attempt = |told: bool| {
        let mut history = History::new(seed, bug);
        if told {
            history.sim.remember();
        }
        let ended = catch_unwind(AssertUnwindSafe(|| history.run()));
        let ended = ended.unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().map_or("a panic", String::as_str);
            Err(Invariant::Sound.broken(text.to_owned()))
        });
        (ended, history.sim.story.unwrap_or_default())
    };
    match attempt(false).0 {
        Ok(course) => Ok(course),
        Err(violation) => {
            let story = if bug.is_none() { attempt(true).1.into() } else { Vec::new() };
            Err(Box::new(Failure { seed, violation, story }))
        }
    }
}

struct History {
    rng: fastrand::Rng,
    sim: Sim,
    steps: usize,
    failing: Vec<(usize, TableKey)>,
    removed: BTreeSet<usize>,
    backup: Option<MemState>,
    /// Whether the store is emptied, or put back to an earlier state, at the end.
    wipes: bool,
}

impl History {
    fn new(seed: u64, bug: Option<Bug>) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let (nodes, steps) = match seed % 10 {
            9 => (rng.u8(15..=25), 60),
            _ => (rng.u8(2..=6), 150),
        };
        let mut configs: Vec<_> = (1..=nodes).map(config).collect();
        // Small blocks and pools, so that they fill; short rests, so that things come back.
        let pool = if nodes > 8 { "10.0.0.0/22" } else { "10.0.0.0/24" };
        configs.iter_mut().for_each(|config| {
            config.pools = vec![pool.parse().expect("a pool")];
            config.block_prefix_v4 = 29;
            config.quarantine = Duration::from_secs(120);
            config.address_cooldown = Duration::from_secs(20);
            config.audit_interval = Duration::from_secs(60);
        });
        let mut sim = Sim::with(seed, configs);
        sim.rounds = true;
        if let Some(bug) = bug {
            sim.plant(bug);
        } else if seed.is_multiple_of(4) {
            for n in 1..=sim.agents.len() {
                sim.agent(n).log = Some(Log::new(seed));
                sim.restart(n);
            }
        }
        Self {
            rng,
            sim,
            steps,
            failing: Vec::new(),
            removed: BTreeSet::new(),
            backup: None,
            wipes: seed % 10 == 8,
        }
    }

    fn run(&mut self) -> Result<Course, Violation> {
        let nodes = self.sim.agents.len();
        for _ in 0..self.steps {
            self.act()?;
            if self.rng.u8(0..3) > 0 {
                self.sim.quiet()?;
            }
        }
        self.heal();
        let converged_after = self.converge()?;
        // What the fleet has changed is in the snapshots by then.
        self.sim.pass(Duration::from_secs(10))?;
        for n in 1..=nodes {
            check::restart_is_nothing(&self.sim, n)?;
        }
        for (log, n) in self.sim.agents.iter().filter_map(|agent| agent.log.as_ref()).zip(1..) {
            log.replay().map_err(|text| Invariant::ReplayIsLife.broken(format!("n{n}: {text}")))?;
        }
        if self.wipes {
            // Nothing leaves a kernel on the word of such a store.
            self.wipe();
            self.sim.pass(HEALED_WITHIN)?;
        }
        Ok(Course { nodes, converged_after, lasted: self.sim.now })
    }

    fn act(&mut self) -> Checked {
        let Self { rng, sim, .. } = self;
        let n = rng.usize(1..=sim.agents.len());
        let there = sim.agents[n - 1].node.is_some();
        let endpoint = name(&format!("e{}", rng.u8(0..6)));
        match rng.u8(0..100) {
            0..22 if there => {
                let labels = format!("app=a{}", rng.u8(0..5));
                sim.call(n, Call::EndpointAdd(spec(endpoint.as_str(), &labels)));
            }
            22..34 if there => drop(sim.call(n, Call::EndpointDelete(endpoint))),
            34..37 => sim.agent(n).store_up = false,
            37..39 => sim.agent(n).store_hangs = true,
            39..41 => sim.agents.iter_mut().for_each(|agent| agent.store_up = false),
            41..46 => sim.store_back(),
            46..49 => {
                let percent = rng.u8(0..3) * 20;
                sim.agent(n).fates = WriteFates::seeded(rng.u64(..), percent);
            }
            49..53 => self.crash(n),
            53..55 => sim.halt(n),
            55..58 if there => sim.agent(n).paused = true,
            58..61 => sim.agents.iter_mut().for_each(|agent| agent.paused = false),
            61 if there => sim.reboot(n),
            62..64 => self.damage(n),
            64..66 => {
                let key = TableKey::Endpoint(EndpointId(rng.u32(1..20)));
                self.failing.push((n, key));
                sim.agent(n).kernel.fail(key, OpErrorKind::Transient);
            }
            66 if there => {
                let repair = rng.bool();
                sim.call(n, Call::Audit { repair });
            }
            67 => sim.agent(n).relist(),
            68 => {
                let at = sim.store.revision();
                // Done already: no harm.
                drop(sim.store.compact(at));
            }
            69 if there => sim.agent(n).reload(),
            70..75 => self.disturb(n),
            75..77 => sim.links.heal(),
            77 => {
                let address = [192, 0, 2, rng.u8(100..250)].into();
                // Two nodes with one address are another story: one of them is unreachable.
                if sim.agents.iter().all(|agent| !agent.config.underlay.addresses.contains(&address)) {
                    sim.readdress(n, address);
                }
            }
            78..81 if !there => self.start(n),
            81 if !there => {
                let gone = sim.agents[n - 1].config.node.clone();
                let by = rng.usize(1..=sim.agents.len());
                if sim.agents[by - 1].node.is_some() {
                    sim.call(by, Call::NodeRemove(gone));
                    self.removed.insert(n);
                }
            }
            82 => self.backup = Some(sim.store.clone()),
            _ => {
                let by = Duration::from_millis(rng.u64(1..20_000));
                return sim.pass(by);
            }
        }
        Ok(())
    }

    /// A process dies and is started again; its last snapshot may not have been written yet.
    fn crash(&mut self, n: usize) {
        if self.removed.contains(&n) {
            return;
        }
        self.sim.halt(n);
        if self.rng.u8(0..4) == 0 {
            let agent = self.sim.agent(n);
            agent.disk = agent.disk_before.take();
        }
        self.sim.restart(n);
    }

    /// The store is emptied, or restored from a backup, and every watch lists again.
    fn wipe(&mut self) {
        let Self { rng, sim, backup, .. } = self;
        sim.tell(|| "the store is wiped or restored".to_owned());
        match backup.take() {
            Some(backup) => sim.store.restore(backup),
            None => sim.store = MemState::new(StoreIdentity(rng.u64(2..))),
        }
        sim.agents.iter_mut().for_each(Agent::relist);
    }

    /// Starts an agent that is not there; one that an operator has removed comes back as a new machine.
    fn start(&mut self, n: usize) {
        if self.removed.remove(&n) {
            let agent = self.sim.agent(n);
            agent.disk = None;
            agent.disk_endpoints.clear();
            self.sim.reboot(n);
        } else {
            self.sim.restart(n);
        }
    }

    /// Something is taken from a kernel. Without its attachment an endpoint cannot be made again: not that.
    fn damage(&mut self, n: usize) {
        let agent = self.sim.agent(n);
        let keys: Vec<TableKey> = agent.kernel.tables().keys().into_iter().collect();
        let keys: Vec<_> = keys.iter().filter(|key| !matches!(key, TableKey::Endpoint(_))).collect();
        if let Some(key) = self.rng.choice(&keys) {
            agent.kernel.damage(key);
        }
    }

    /// A way is cut or slow, on one side or both; or a node is alone; or the fleet falls in two halves.
    fn disturb(&mut self, n: usize) {
        let Self { rng, sim, .. } = self;
        let nodes = sim.agents.len();
        let other = rng.usize(0..nodes);
        let kind = rng.u8(0..5);
        for a in 0..nodes {
            for b in 0..nodes {
                let concerned = match kind {
                    0 | 1 => (a, b) == (n - 1, other),
                    2 => a == n - 1 || b == n - 1,
                    3 => (a < nodes / 2) != (b < nodes / 2),
                    _ => true,
                };
                if concerned && a != b {
                    let link = sim.links.link(a, b);
                    match kind {
                        0 | 2 | 3 => link.up = false,
                        1 => link.delay = Duration::from_millis(rng.u64(0..30_000)),
                        _ => link.loss_percent = rng.u8(0..60),
                    }
                }
            }
        }
    }

    fn heal(&mut self) {
        for n in 1..=self.sim.agents.len() {
            if self.sim.agents[n - 1].node.is_none() {
                self.start(n);
            }
        }
        let Self { sim, failing, .. } = self;
        sim.links.heal();
        sim.store_back();
        for agent in &mut sim.agents {
            agent.paused = false;
            agent.fates = WriteFates::default();
        }
        for (n, key) in std::mem::take(failing) {
            sim.agent(n).kernel.heal(&key);
        }
    }

    fn converge(&mut self) -> Result<Duration, Violation> {
        let healed = self.sim.now;
        loop {
            self.sim.pass(Duration::from_secs(1))?;
            let after = self.sim.now - healed;
            match check::try_converged(&self.sim) {
                Ok(()) => return Ok(after),
                Err(violation) if after > HEALED_WITHIN => return Err(violation),
                Err(_) => {}
            }
        }
    }
}
