//! One member as we reach it: its client, made when needed and made anew when it failed or when the
//! certificates on disk have changed.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::PathBuf,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use etcd_client::{Certificate, Client, ConnectOptions, Identity, TlsOptions};
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

struct Connected {
    client: Client,
    files: Fingerprint,
    generation: u64,
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
}

/// A client, and which of the endpoint's clients it is.
pub(crate) struct Handle {
    pub(crate) client: Client,
    generation: u64,
}

impl Endpoint {
    pub(crate) fn new(url: String) -> Self {
        Self { url, slot: Mutex::default() }
    }

    /// A client that has answered once. It is an idempotent question which settles whether there is a
    /// connection, so that a write that fails later was really sent.
    pub(crate) async fn client(&self, config: &EtcdConfig) -> Result<Handle, Failure> {
        let files = config.tls.as_ref().map(fingerprint).unwrap_or_default();
        if let Some(handle) = self.current(&files) {
            return Ok(handle);
        }
        let made = match make(&self.url, config).await {
            Ok(client) => client,
            // In the middle of a rotation the files may not fit together: the old client still works.
            Err(failure) => return self.stale(&failure).ok_or(failure),
        };
        let mut slot = self.lock();
        slot.generation += 1;
        let generation = slot.generation;
        slot.connected = Some(Connected { client: made.clone(), files, generation });
        Ok(Handle { client: made, generation })
    }

    /// Forgets a client that failed; one that was made since stays.
    pub(crate) fn discard(&self, handle: &Handle) {
        let mut slot = self.lock();
        if slot.connected.as_ref().is_some_and(|connected| connected.generation == handle.generation) {
            slot.connected = None;
        }
    }

    fn current(&self, files: &Fingerprint) -> Option<Handle> {
        let slot = self.lock();
        let connected = slot.connected.as_ref().filter(|connected| connected.files == *files)?;
        Some(Handle { client: connected.client.clone(), generation: connected.generation })
    }

    fn stale(&self, failure: &Failure) -> Option<Handle> {
        let slot = self.lock();
        let connected = slot.connected.as_ref()?;
        warn!(endpoint = %self.url, ?failure, "changed TLS files do not work yet, keeping the connection");
        Some(Handle { client: connected.client.clone(), generation: connected.generation })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Slot> {
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
