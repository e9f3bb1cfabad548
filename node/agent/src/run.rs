//! One run of the agent: from a checked configuration to a clean stop.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf, pin::pin, sync::Arc, time::Duration};

use anyhow::{Context, bail};
use datapath_linux::{LinuxConfig, WARREN_ROUTE_PROTOCOL, Watch, underlay};
use kvstore_schema::Schema;
use node_core::Node;
use sd_notify::NotifyState;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::JoinSet,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{error, info, warn};

use crate::{
    config::Config,
    http::{self, App, KernelReads},
    lock::{Lock, RUN_LOCK},
    machine::{self, Machine},
    metrics::Metrics,
    parts::{self, Tasks, spawn, spawn_until},
    preflight,
    shell::{
        Clock, Core, CoreLoop, EventHub, EventSources, Kernel, KernelProgress, LeaseKeeper, Outlets, Prober,
        StoreCalls, UnderlayKeeper, UnderlayState, collector, follow, pump,
    },
};

/// How long a clean stop may wait for pending answers and for a plan in progress. A process that ends before loses
/// nothing: the kernel keeps its state, and the next start reads it.
const STOP_WITHIN: Duration = Duration::from_secs(5);

/// Runs until SIGTERM or SIGINT. Programs, maps and devices stay in place.
///
/// # Errors
/// Why the agent cannot start, with what to do about it; or the part that failed.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let missing = preflight::missing();
    if !missing.is_empty() {
        bail!("{}", missing.join("\n"));
    }
    // New files are for root alone; where others may use one, its mode is set when it is created.
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    let _locks = take_locks(&config)?;
    let machine = machine::learn(&config)?;
    let stop = CancellationToken::new();
    // First, so that a signal stops the agent during its start too.
    let signals = tokio::spawn(stop_on_signal(stop.clone()));
    let (parts, socket) = Parts::start(&config, &machine, stop.clone()).await?;
    info!(
        node = %machine.node, fleet = %config.fleet.name, incarnation = machine.incarnation,
        version = env!("CARGO_PKG_VERSION"), store = config.store.word(), "agent started"
    );
    notify(&[NotifyState::Ready]);
    let result = parts.run(stop).await;
    notify(&[NotifyState::Stopping]);
    signals.abort();
    // A stale socket would be harmless, but clients of a missing one fail at once.
    if let Err(error) = fs::remove_file(&socket) {
        warn!(path = %socket.display(), %error, "socket cannot be removed");
    }
    info!("agent stopped; the kernel goes on forwarding");
    result
}

/// Locks the state and run folders. The datapath locks its pins.
fn take_locks(config: &Config) -> anyhow::Result<[Lock; 2]> {
    let state_dir = &config.node.state_dir;
    fs::create_dir_all(state_dir).with_context(|| format!("make state folder {}", state_dir.display()))?;
    fs::set_permissions(state_dir, fs::Permissions::from_mode(0o700))?;
    let run_dir = &config.node.run_dir;
    fs::create_dir_all(run_dir).with_context(|| format!("make run folder {}", run_dir.display()))?;
    fs::set_permissions(run_dir, fs::Permissions::from_mode(0o755))?;
    Ok([
        Lock::take(&state_dir.join("lock"), "state folder", state_dir, "node.state_dir")?,
        Lock::take(&run_dir.join(RUN_LOCK), "run folder", run_dir, "node.run_dir")?,
    ])
}

/// Stops the agent on the first signal, and ends the process on the second.
async fn stop_on_signal(stop: CancellationToken) -> anyhow::Result<()> {
    let mut term = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    for attempt in 0.. {
        let name = tokio::select! {
            _ = term.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        if attempt > 0 {
            warn!(signal = name, "second signal; exiting at once");
            std::process::exit(1);
        }
        info!(signal = name, "stopping");
        stop.cancel();
    }
    Ok(())
}

/// Notifies systemd, if it runs this agent.
fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        warn!(%error, "systemd cannot be notified");
    }
}

/// The running agent.
struct Parts {
    tasks: Tasks,
    requests: TaskTracker,
    core: Core,
    progress: KernelProgress,
}

impl Parts {
    /// Starts all parts. Returns the path of the API's socket too.
    async fn start(
        config: &Config,
        machine: &Machine,
        stop: CancellationToken,
    ) -> anyhow::Result<(Self, PathBuf)> {
        let clock = Clock::start();
        let metrics = Arc::new(Metrics::new());
        let (core, inputs) = Core::channel();
        let mut tasks = JoinSet::new();
        let requests = TaskTracker::new();

        let choice = parts::underlay_choice(config);
        let stack = Watch::open(WARREN_ROUTE_PROTOCOL).await.context("watch the network stack")?;
        let underlay = underlay(&choice, None).await.context("choose the underlay")?;
        info!(interface = underlay.interface, address = %underlay.address, reason = underlay.reason, "underlay chosen");
        let metrics_listener = http::bind_metrics(config.http.metrics_listen).await?;
        let store = parts::store(config, &stop, &mut tasks)?;
        // Started early: a large fleet is listed while the kernel verifies the programs.
        let schema = Schema::new(&config.fleet.name);
        let followed = follow(store.clone(), schema.root(), core.clone(), metrics.clone());
        spawn_until(&stop, &mut tasks, "store watch", async { Ok(followed.await?) });
        let gossip = parts::gossip(config, machine, &underlay, &core, &stop, &mut tasks).await?;
        let linux = LinuxConfig {
            sockets: parts::sockets(&config.datapath),
            xdp: parts::xdp(&config.datapath),
            ..LinuxConfig::at(&config.datapath.pin_root)
        };
        let kernel =
            Kernel::start(linux, core.clone(), metrics.clone()).await.context("open the datapath")?;

        // The last step that can fail, so that every client that can connect gets an answer.
        let (socket, socket_path) = http::bind_socket(&config.node.run_dir, &config.http.socket_group)?;

        let (lease, keep) = LeaseKeeper::new(store.clone(), metrics.clone());
        let hub = EventHub::default();
        spawn_until(&stop, &mut tasks, "lease", async {
            keep.await;
            Ok(())
        });
        let flows = Arc::new(kernel.flows);
        let (ended, collect) = collector(flows.clone(), metrics.clone());
        spawn_until(&stop, &mut tasks, "flow collector", async { Ok(collect.await?) });
        let sources = EventSources { reports: kernel.events, ended };
        let pumped = pump(sources, core.clone(), hub.clone(), metrics.clone());
        spawn_until(&stop, &mut tasks, "event pump", async { Ok(pumped.await?) });
        let (gone, progress) = (kernel.gone, kernel.progress);
        spawn(&mut tasks, "kernel", async {
            // Nothing is ever sent; the end of the thread drops the sender.
            drop(gone.await);
            Ok(())
        });
        let (prober, probe) = Prober::new(core.clone(), metrics.clone());
        spawn_until(&stop, &mut tasks, "prober", async { Ok(probe.await?) });
        let node_config = parts::node_config(config, machine, &underlay);
        let (underlay_sender, underlay) = watch::channel(UnderlayState { underlay, problem: None });
        let keeper = UnderlayKeeper {
            choice,
            core: core.clone(),
            gossip: gossip.clone(),
            gossip_port: config.gossip.port,
            state: underlay_sender,
        };
        spawn_until(&stop, &mut tasks, "underlay", async { Ok(keeper.run(stack).await?) });
        let app = App {
            core: core.clone(),
            kernel: kernel.kernel.clone(),
            flows,
            hub,
            store: store.clone(),
            store_kind: config.store,
            lease: lease.clone(),
            gossip: gossip.clone(),
            metrics: metrics.clone(),
            underlay,
            clock,
            stop: stop.clone(),
            kernel_reads: KernelReads::default(),
        };
        let (api, page) = (http::serve_api(socket, app.clone()), http::serve_metrics(metrics_listener, app));
        spawn(&mut tasks, "API", async { Ok(api.await?) });
        spawn(&mut tasks, "metrics", async { Ok(page.await?) });
        let (snapshot, snapshots) = parts::snapshot(config, &mut tasks).unzip();
        let (kept, endpoints) = parts::endpoints(config, &mut tasks);
        let node = CoreLoop {
            node: Node::new(node_config),
            snapshot: snapshot.flatten(),
            endpoints: kept,
            inputs,
            outlets: Outlets {
                kernel: kernel.kernel,
                store: StoreCalls::new(store, core.clone(), requests.clone(), metrics.clone()),
                lease,
                gossip,
                prober,
                snapshots,
                endpoints,
            },
            clock,
            recorder: parts::recorder(config, &mut tasks),
            metrics,
            stop,
        };
        spawn(&mut tasks, "node", async {
            node.run().await;
            Ok(())
        });
        Ok((Self { tasks, requests, core, progress }, socket_path))
    }

    /// Runs until stopped. A part that ends before is a bug, and ends the agent.
    async fn run(mut self, stop: CancellationToken) -> anyhow::Result<()> {
        let watchdog = watch_over(self.core.clone(), self.progress.clone());
        let mut watchdog = pin!(watchdog);
        let early = tokio::select! {
            // The stop first: a part that ends because of it has not failed.
            biased;
            () = stop.cancelled() => None,
            ended = self.tasks.join_next() => ended,
            () = &mut watchdog => None,
        };
        stop.cancel();
        self.requests.close();
        let finished = async {
            while let Some(ended) = self.tasks.join_next().await {
                if let Ok((name, Err(error))) = ended {
                    info!(part = name, %error, "part ended");
                }
            }
        };
        if tokio::time::timeout(STOP_WITHIN, finished).await.is_err() {
            warn!(within = ?STOP_WITHIN, "parts have not stopped in time; exiting anyway");
            self.tasks.abort_all();
        }
        match early {
            None => Ok(()),
            Some(Ok((name, result))) => {
                error!(part = name, ?result, "part ended on its own");
                Err(result.err().unwrap_or_else(|| anyhow::anyhow!("it ended")))
                    .with_context(|| format!("run {name}"))
            }
            Some(Err(panicked)) => Err(panicked).context("run a part of the agent"),
        }
    }
}

/// Notifies systemd's watchdog while the node answers and the kernel's thread makes progress. Never ends: systemd restarts
/// an agent that is stuck.
async fn watch_over(core: Core, progress: KernelProgress) {
    let Some(timeout) = sd_notify::watchdog_enabled() else { return std::future::pending().await };
    let mut ticks = tokio::time::interval(timeout / 2);
    loop {
        ticks.tick().await;
        if progress.is_stuck() {
            error!("kernel thread is stuck; the watchdog is not notified");
        } else if core.read(|_| ()).await.is_ok() {
            notify(&[NotifyState::Watchdog]);
        }
    }
}
