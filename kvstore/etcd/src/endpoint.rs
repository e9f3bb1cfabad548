//! One member as we reach it: its client, made when needed and made anew when it failed or when the
//! certificates on disk have changed.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use etcd_client::{Certificate, Client, ConnectOptions, Identity, TlsOptions};
use tokio::time::Instant;
use tracing::warn;

use crate::{
    classify::Failure,
    config::{EtcdConfig, TlsConfig},
};

/// The longest that a member may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Pings on the connection. Below 5 s the server closes it: "too many pings".
const KEEP_ALIVE: Duration = Duration::from_secs(6);

/// How long a ping may go unanswered.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(3);

/// What tells one version of a file from the next: inode, size, time of change in ns.
type Fingerprint = Vec<Option<(u64, u64, i64, i64)>>;

/// How long files that did not work are left alone, while a client made from earlier ones does.
const FILES_PAUSE: Duration = Duration::from_secs(5);

struct Connected {
    client: Client,
    files: Fingerprint,
    generation: u64,
    /// Newer files that did not work, and when.
    rejected: Option<(Fingerprint, Instant)>,
    /// A call failed on it: another one is to be made.
    suspect: bool,
}

impl Connected {
    fn handle(&self) -> Handle {
        Handle { client: self.client.clone(), generation: self.generation }
    }

    /// Whether this client is to be used while the files on disk are these.
    fn serves(&self, files: &Fingerprint) -> bool {
        let rejected = |(bad, at): &(Fingerprint, Instant)| bad == files && at.elapsed() < FILES_PAUSE;
        !self.suspect && (self.files == *files || self.rejected.as_ref().is_some_and(rejected))
    }
}

#[derive(Default)]
struct Slot {
    connected: Option<Connected>,
    generation: u64,
}

/// One member.
pub(crate) struct Endpoint {
    pub(crate) url: String,
    slot: Mutex<Slot>,
    /// Held while a client is made: of many calls that find none, one makes it for all.
    making: tokio::sync::Mutex<()>,
}

/// A client, and which of the endpoint's clients it is.
pub(crate) struct Handle {
    pub(crate) client: Client,
    generation: u64,
}

impl Endpoint {
    pub(crate) fn new(url: String) -> Self {
        Self { url, slot: Mutex::default(), making: tokio::sync::Mutex::default() }
    }

    /// A client that has answered once. It is an idempotent question which settles whether there is a
    /// connection, so that a write that fails later was really sent.
    pub(crate) async fn client(&self, config: &EtcdConfig) -> Result<Handle, Failure> {
        let files = config.tls.as_ref().map(fingerprint).unwrap_or_default();
        if let Some(handle) = self.current(&files) {
            return Ok(handle);
        }
        let _making = self.making.lock().await;
        if let Some(handle) = self.current(&files) {
            return Ok(handle);
        }
        let made = match make(&self.url, config).await {
            Ok(client) => client,
            // In the middle of a rotation the files may not fit together. The former client, which still
            // holds the former files and connects again by itself, is better than none.
            Err(failure) => return self.stale(files, &failure).ok_or_else(|| failure.of_a_question()),
        };
        let mut slot = self.lock();
        slot.generation += 1;
        let generation = slot.generation;
        slot.connected =
            Some(Connected { client: made.clone(), files, generation, rejected: None, suspect: false });
        Ok(Handle { client: made, generation })
    }

    /// Says that a client failed, so that the next call makes another one.
    pub(crate) fn discard(&self, handle: &Handle) {
        if let Some(connected) = &mut self.lock().connected
            && connected.generation == handle.generation
        {
            connected.suspect = true;
        }
    }

    fn current(&self, files: &Fingerprint) -> Option<Handle> {
        let slot = self.lock();
        slot.connected.as_ref().filter(|connected| connected.serves(files)).map(Connected::handle)
    }

    /// The client made from other files than these, which do not work.
    fn stale(&self, files: Fingerprint, failure: &Failure) -> Option<Handle> {
        let mut slot = self.lock();
        let connected = slot.connected.as_mut().filter(|connected| connected.files != files)?;
        warn!(endpoint = %self.url, ?failure, "changed TLS files do not work yet, keeping the former ones");
        connected.rejected = Some((files, Instant::now()));
        Some(connected.handle())
    }

    fn lock(&self) -> MutexGuard<'_, Slot> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn make(url: &str, config: &EtcdConfig) -> Result<Client, Failure> {
    let mut options = ConnectOptions::new()
        .with_connect_timeout(CONNECT_TIMEOUT)
        .with_keep_alive(KEEP_ALIVE, KEEP_ALIVE_TIMEOUT)
        .with_keep_alive_while_idle(true)
        .with_auto_token_refresh(true)
        // Without it a watch on a member of a minority stays open and silent.
        .with_require_leader(true);
    if let Some((user, password)) = &config.auth {
        options = options.with_user(user, password);
    }
    if let Some(tls) = &config.tls {
        options = options.with_tls(tls_options(tls).map_err(Failure::Retry)?);
    }
    let mut client = Client::connect([url], Some(options)).await?;
    client.status().await?;
    Ok(client)
}

fn tls_options(tls: &TlsConfig) -> Result<TlsOptions, String> {
    let read = |path: &PathBuf| fs::read(path).map_err(|error| format!("read {}: {error}", path.display()));
    let mut options = TlsOptions::new().ca_certificate(Certificate::from_pem(read(&tls.ca)?));
    if let (Some(cert), Some(key)) = (&tls.cert, &tls.key) {
        options = options.identity(Identity::from_pem(read(cert)?, read(key)?));
    }
    if let Some(name) = &tls.server_name {
        options = options.domain_name(name);
    }
    Ok(options)
}

/// Three `stat` calls, a few microseconds: cheap enough for every call, and no watcher to keep alive.
fn fingerprint(tls: &TlsConfig) -> Fingerprint {
    let stat = |path| {
        let meta = fs::metadata(path).ok()?;
        Some((meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec()))
    };
    tls.files().map(stat).collect()
}
