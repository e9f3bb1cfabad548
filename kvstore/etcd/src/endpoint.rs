//! One member of the cluster: its client, created when needed, and again after a failure or a change of the certificates on
//! disk.

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

/// The deadline of a connection attempt.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// The interval of HTTP/2 pings. Below 5 s the server closes the connection: "too many pings".
const KEEP_ALIVE: Duration = Duration::from_secs(6);

/// The deadline of a ping's answer.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(3);

/// Identifies the versions of files: inode, size, time of change in s and ns.
type Fingerprint = Vec<Option<(u64, u64, i64, i64)>>;

/// How long files that do not work are not tried again, while the client of earlier ones works.
const FILES_PAUSE: Duration = Duration::from_secs(5);

struct Connected {
    client: Client,
    files: Fingerprint,
    generation: u64,
    /// Newer files that did not work, and when they were tried.
    rejected: Option<(Fingerprint, Instant)>,
    /// A call failed on this client, so the next call makes another one.
    suspect: bool,
}

impl Connected {
    fn handle(&self) -> Handle {
        Handle { client: self.client.clone(), generation: self.generation }
    }

    /// Whether this client is to be used with these files on disk.
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
    /// Held while a client is created, so that concurrent calls create one client.
    making: tokio::sync::Mutex<()>,
}

/// A client, and its number among the endpoint's clients.
pub(crate) struct Handle {
    pub(crate) client: Client,
    generation: u64,
}

impl Endpoint {
    pub(crate) fn new(url: String) -> Self {
        Self { url, slot: Mutex::default(), making: tokio::sync::Mutex::default() }
    }

    /// A client that has answered one read. The read settles whether a connection exists, so that a write that fails later
    /// was really sent.
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
            // In the middle of a rotation the files may not match. The previous client still has the previous files and
            // reconnects by itself.
            Err(failure) => return self.stale(files, &failure).ok_or_else(|| failure.of_a_read()),
        };
        let mut slot = self.lock();
        slot.generation += 1;
        let generation = slot.generation;
        slot.connected =
            Some(Connected { client: made.clone(), files, generation, rejected: None, suspect: false });
        Ok(Handle { client: made, generation })
    }

    /// Marks a client as failed, so that the next call makes another one.
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

    /// The client of other files, if there is one, where these do not work.
    fn stale(&self, files: Fingerprint, failure: &Failure) -> Option<Handle> {
        let mut slot = self.lock();
        let connected = slot.connected.as_mut().filter(|connected| connected.files != files)?;
        warn!(endpoint = %self.url, ?failure, "changed TLS files do not work yet; the previous ones stay in use");
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
        // Otherwise a watch on a member of a minority stays open and silent.
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

/// Three `stat` calls take a few microseconds, which is cheap enough for every call and needs no watcher.
fn fingerprint(tls: &TlsConfig) -> Fingerprint {
    let stat = |path| {
        let meta = fs::metadata(path).ok()?;
        Some((meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec()))
    };
    tls.files().map(stat).collect()
}
