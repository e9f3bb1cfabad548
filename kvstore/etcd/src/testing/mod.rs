//! Real etcd servers on loopback, for tests. They have a temporary directory and free ports, and end when they are dropped,
//! also after a failed assertion; when the test is killed, the kernel kills them.
//!
//! `WARREN_ETCD=/path/to/etcd` selects another etcd than the one in the `PATH`.

mod program;

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Child,
    time::Duration,
};

use kvstore_schema::Revision;
use kvstore_store::Store;
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use crate::{EtcdConfig, EtcdStore, TlsConfig};

use program::spawn;
pub use program::{missing, version};

/// How long a cluster may take to elect its leader, on a machine that is busy with other tests.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// The interval of polling its state.
const POLL: Duration = Duration::from_millis(50);

/// Attempts with other ports, since another process may take a free port before etcd does.
const PORT_ATTEMPTS: usize = 3;

/// The TLS files of a server.
#[derive(Debug, Clone)]
pub struct ServerTls {
    /// The server's certificate.
    pub cert: PathBuf,
    /// The certificate's key.
    pub key: PathBuf,
    /// The CA of the clients' certificates; clients without one are refused.
    pub client_ca: PathBuf,
}

/// A cluster of one or more members.
#[derive(Debug)]
pub struct EtcdCluster {
    members: Vec<Member>,
    client_tls: Option<TlsConfig>,
    _dir: TempDir,
}

#[derive(Debug)]
struct Member {
    args: Vec<String>,
    url: String,
    data: PathBuf,
    log: PathBuf,
    process: Option<Child>,
}

impl EtcdCluster {
    /// Starts `count` members, and waits until each of them knows a leader.
    ///
    /// # Panics
    /// When they do not start in time; the message has the end of a member's log.
    pub async fn start(count: usize) -> Self {
        Self::start_with(count, None).await
    }

    /// As [`Self::start`], with TLS for clients: the servers' files, and those of this struct's own client.
    ///
    /// # Panics
    /// As [`Self::start`].
    pub async fn start_with(count: usize, tls: Option<(ServerTls, TlsConfig)>) -> Self {
        for _ in 1..PORT_ATTEMPTS {
            let mut cluster = Self::spawn(count, tls.clone());
            match cluster.wait_ready().await {
                Ok(()) => return cluster,
                Err(log) if log.contains("address already in use") => {}
                Err(log) => panic!("etcd does not come up: {log}"),
            }
        }
        panic!("no free ports for {count} members of etcd");
    }

    fn spawn(count: usize, tls: Option<(ServerTls, TlsConfig)>) -> Self {
        let dir = TempDir::with_prefix("warren-etcd-").expect("make a temporary directory");
        let ports = free_ports(2 * count);
        let (server_tls, client_tls) = tls.unzip();
        let scheme = if server_tls.is_some() { "https" } else { "http" };
        let peer = |n: usize| format!("http://127.0.0.1:{}", ports[2 * n + 1]);
        let all = (0..count).map(|n| format!("m{n}={}", peer(n))).collect::<Vec<_>>().join(",");
        let members = (0..count).map(|n| {
            let url = format!("{scheme}://127.0.0.1:{}", ports[2 * n]);
            let data = dir.path().join(format!("m{n}"));
            let mut args = member_args(n, &data, &url, &peer(n), &all);
            args.extend(server_tls.as_ref().map(tls_args).unwrap_or_default());
            let log = dir.path().join(format!("m{n}.log"));
            let process = Some(spawn(&args, &log));
            Member { args, url, data, log, process }
        });
        Self { members: members.collect(), client_tls, _dir: dir }
    }

    /// A configuration for all members.
    pub fn config(&self) -> EtcdConfig {
        let urls = self.members.iter().map(|member| member.url.clone());
        EtcdConfig { tls: self.client_tls.clone(), ..EtcdConfig::new(urls) }
    }

    /// A store over all members.
    ///
    /// # Panics
    /// Never, since the configuration is valid.
    pub fn store(&self) -> EtcdStore {
        EtcdStore::connect(self.config()).expect("the configuration is valid")
    }

    /// The index of the leader.
    ///
    /// # Panics
    /// When there is none in time.
    pub async fn leader(&self) -> usize {
        let store = self.store();
        let begun = Instant::now();
        loop {
            let members = store.members().await;
            let leads = |health: &kvstore_store::MemberHealth| health.leader;
            if let Some(index) = members.iter().position(|member| member.health.as_ref().is_ok_and(leads)) {
                return index;
            }
            assert!(begun.elapsed() < START_TIMEOUT, "no leader: {members:?}");
            sleep(POLL).await;
        }
    }

    /// Stops a member with SIGSTOP; its connections stay open. Waits until all its threads have stopped.
    ///
    /// # Panics
    /// When waiting fails.
    pub fn freeze(&self, index: usize) {
        let member = &self.members[index];
        member.signal(libc::SIGSTOP);
        // SAFETY: all zeros is a valid siginfo_t, and it outlives the call.
        let result = unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            libc::waitid(libc::P_PID, member.pid().cast_unsigned(), &raw mut info, libc::WSTOPPED)
        };
        assert_eq!(result, 0, "wait for member {index}: {}", std::io::Error::last_os_error());
    }

    /// Lets a frozen member go on.
    pub fn thaw(&self, index: usize) {
        self.members[index].signal(libc::SIGCONT);
    }

    /// Kills a member, and keeps its data.
    pub fn kill(&mut self, index: usize) {
        self.members[index].end();
    }

    /// Removes a killed member's data.
    ///
    /// # Panics
    /// When they cannot be removed.
    pub fn wipe(&mut self, index: usize) {
        assert!(self.members[index].process.is_none(), "member {index} runs");
        fs::remove_dir_all(&self.members[index].data).expect("remove the member's data");
    }

    /// Starts a killed member again, with its data.
    pub fn revive(&mut self, index: usize) {
        let member = &mut self.members[index];
        member.process = Some(spawn(&member.args, &member.log));
    }

    /// Waits until every member knows a leader.
    ///
    /// # Errors
    /// The end of a member's log, when the member ended or the time is over.
    pub async fn wait_ready(&mut self) -> Result<(), String> {
        let store = self.store();
        let begun = Instant::now();
        loop {
            for member in &mut self.members {
                if member.has_ended() {
                    return Err(member.log_end());
                }
            }
            let members = store.members().await;
            if members.iter().all(|member| member.health.is_ok()) {
                return Ok(());
            }
            if begun.elapsed() > START_TIMEOUT {
                return Err(format!("{members:?}\n{}", self.members[0].log_end()));
            }
            sleep(POLL).await;
        }
    }

    /// Compacts the history up to a revision.
    ///
    /// # Panics
    /// When the first member refuses.
    pub async fn compact(&self, at: Revision) {
        let mut client = etcd_client::Client::connect([&self.members[0].url], None).await.expect("connect");
        client.compact(at.0, None).await.expect("compact");
    }
}

impl Member {
    fn pid(&self) -> i32 {
        self.process.as_ref().expect("the member runs").id().cast_signed()
    }

    fn signal(&self, signal: i32) {
        let pid = self.pid();
        // SAFETY: kill(2) takes plain numbers; the child has not been waited for, so its id is not reused.
        let result = unsafe { libc::kill(pid, signal) };
        assert_eq!(result, 0, "signal {signal} to {pid}: {}", std::io::Error::last_os_error());
    }

    fn end(&mut self) {
        if let Some(mut process) = self.process.take() {
            // SIGKILL ends a stopped process too. An error means that the process has ended already.
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    fn has_ended(&mut self) -> bool {
        self.process.as_mut().is_some_and(|process| !matches!(process.try_wait(), Ok(None)))
    }

    fn log_end(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(10)..].join("\n")
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.end();
    }
}

/// Distinct free ports: all are held until the last is found.
fn free_ports(count: usize) -> Vec<u16> {
    let bind = |_| TcpListener::bind("127.0.0.1:0").expect("a free port on loopback");
    let listeners: Vec<TcpListener> = (0..count).map(bind).collect();
    let port = |listener: &TcpListener| listener.local_addr().expect("bound").port();
    listeners.iter().map(port).collect()
}

fn member_args(index: usize, data: &Path, url: &str, peer: &str, all: &str) -> Vec<String> {
    let pairs = [
        ("--name", format!("m{index}")),
        ("--data-dir", data.display().to_string()),
        ("--listen-client-urls", url.to_owned()),
        ("--advertise-client-urls", url.to_owned()),
        ("--listen-peer-urls", peer.to_owned()),
        ("--initial-advertise-peer-urls", peer.to_owned()),
        ("--initial-cluster", all.to_owned()),
        ("--initial-cluster-state", "new".to_owned()),
        ("--logger", "zap".to_owned()),
        ("--log-outputs", "stderr".to_owned()),
    ];
    pairs.into_iter().flat_map(|(name, value)| [name.to_owned(), value]).collect()
}

fn tls_args(tls: &ServerTls) -> Vec<String> {
    vec![
        format!("--cert-file={}", tls.cert.display()),
        format!("--key-file={}", tls.key.display()),
        format!("--trusted-ca-file={}", tls.client_ca.display()),
        "--client-cert-auth".to_owned(),
    ]
}
