//! The store: the choice of the member, attempts and deadlines.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use etcd_client::{Client, GetOptions};
use kvstore_schema::{Key, KvOp, LeaseId, ListPage, Prefix, Revision, Txn, TxnResponse};
use kvstore_store::{MemberHealth, MemberStatus, Store, StoreError, Watch};
use tokio::{
    task::JoinSet,
    time::{Instant, timeout, timeout_at},
};
use tracing::debug;

use crate::{
    classify::Failure,
    config::{ConfigErrors, EtcdConfig},
    convert,
    endpoint::Endpoint,
    watch,
};

/// The deadline of one attempt on one member, and at most a third of the call's, so that a frozen member of three leaves
/// time for the others.
const ATTEMPT: Duration = Duration::from_millis(1500);

/// The longest response. tonic's default of 4 MB is less than a page of large records, and less than a message to a watch
/// that is far behind (up to 1,000 revisions).
pub(crate) const DECODE_LIMIT_BYTES: usize = 256 << 20;

/// A store over the members of one etcd cluster. Clones share their connections.
#[derive(Clone)]
pub struct EtcdStore {
    inner: Arc<Inner>,
}

struct Inner {
    config: EtcdConfig,
    endpoints: Vec<Arc<Endpoint>>,
    /// The member to try first: the one after the last that failed.
    current: AtomicUsize,
}

impl std::fmt::Debug for EtcdStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EtcdStore").field("config", &self.inner.config).finish_non_exhaustive()
    }
}

impl EtcdStore {
    /// A store with this configuration. No member is contacted yet; calls fail with [`StoreError::Unavailable`] until one
    /// answers.
    ///
    /// # Errors
    /// All mistakes of the configuration.
    pub fn connect(config: EtcdConfig) -> Result<Self, ConfigErrors> {
        config.validate()?;
        let endpoints = config.endpoints.iter().map(|url| Arc::new(Endpoint::new(url.clone()))).collect();
        Ok(Self { inner: Arc::new(Inner { config, endpoints, current: AtomicUsize::new(0) }) })
    }

    /// Tries each member once, until one answers or the deadline has passed.
    async fn read<T, F: Future<Output = Result<T, Failure>>>(
        &self,
        ask: impl Fn(Client) -> F,
    ) -> Result<T, StoreError> {
        self.call(ask, false).await
    }

    /// As [`Self::read`], but stops after the first member that may have applied the write.
    async fn write<T, F: Future<Output = Result<T, Failure>>>(
        &self,
        ask: impl Fn(Client) -> F,
    ) -> Result<T, StoreError> {
        self.call(ask, true).await
    }

    async fn call<T, F: Future<Output = Result<T, Failure>>>(
        &self,
        ask: impl Fn(Client) -> F,
        once: bool,
    ) -> Result<T, StoreError> {
        let deadline = Instant::now() + self.inner.config.call_timeout;
        let count = self.inner.endpoints.len();
        let first = self.inner.current.load(Ordering::Relaxed);
        let mut reasons = Vec::new();
        for index in (first..first + count).map(|index| index % count) {
            let endpoint = &self.inner.endpoints[index];
            let (reason, may_be_done) = match self.attempt(endpoint, deadline, &ask).await {
                Ok(answer) => return Ok(answer),
                Err(Failure::Fatal(error)) => return Err(error),
                Err(Failure::Retry(reason)) => (reason, false),
                Err(Failure::Ambiguous(reason)) => (reason, true),
                // Only a broken server says this to a call without a lease and a revision.
                Err(failure @ (Failure::LeaseGone | Failure::Compacted)) => (format!("{failure:?}"), true),
            };
            debug!(endpoint = %endpoint.url, reason, "attempt on member failed");
            // Only the first of several concurrent failures moves on, so that no member is skipped.
            let next = (index + 1) % count;
            let _ = self.inner.current.compare_exchange(index, next, Ordering::Relaxed, Ordering::Relaxed);
            reasons.push(format!("{}: {reason}", endpoint.url));
            if may_be_done && once {
                return Err(StoreError::Ambiguous(reasons.join("; ")));
            }
            if Instant::now() >= deadline {
                break;
            }
        }
        Err(StoreError::Unavailable(reasons.join("; ")))
    }

    async fn attempt<T, F: Future<Output = Result<T, Failure>>>(
        &self,
        endpoint: &Endpoint,
        deadline: Instant,
        ask: impl Fn(Client) -> F,
    ) -> Result<T, Failure> {
        let share = self.inner.config.call_timeout / self.inner.endpoints.len().clamp(1, 3) as u32;
        let end = || deadline.min(Instant::now() + ATTEMPT.min(share));
        let Ok(client) = timeout_at(end(), endpoint.client(&self.inner.config)).await else {
            return Err(Failure::Retry("no connection in time".to_owned()));
        };
        let handle = client?;
        let answer = match timeout_at(end(), ask(handle.client.clone())).await {
            Ok(answer) => answer,
            Err(_) => Err(Failure::Ambiguous("no answer in time".to_owned())),
        };
        if matches!(answer, Err(Failure::Retry(_) | Failure::Ambiguous(_))) {
            endpoint.discard(&handle);
        }
        answer
    }
}

#[async_trait]
impl Store for EtcdStore {
    async fn list_page(
        &self,
        prefix: &Prefix,
        at: Option<Revision>,
        after: Option<&Key>,
        limit: usize,
    ) -> Result<ListPage, StoreError> {
        let mut start = match after {
            Some(key) if key.as_bytes() >= prefix.as_bytes() => after_key(key.as_bytes()),
            _ => prefix.as_bytes().to_vec(),
        };
        let mut at = at;
        loop {
            let (page, last) = self.read(|client| raw_page(client, prefix, start.clone(), at, limit)).await?;
            // A page with only keys that are not UTF-8 has no last key to continue from.
            if !page.entries.is_empty() || !page.more {
                return Ok(page);
            }
            (start, at) = (after_key(&last), Some(page.revision));
        }
    }

    async fn watch(&self, prefix: &Prefix, from: Revision) -> Result<Watch, StoreError> {
        self.read(|client| watch::start(client, prefix.clone(), from)).await
    }

    async fn txn(&self, txn: Txn) -> Result<TxnResponse, StoreError> {
        // A transaction of Warren has at most one lease, whichever branch ran.
        let lease = txn.then.iter().chain(&txn.otherwise).find_map(|op| match op {
            KvOp::Put { lease, .. } => *lease,
            KvOp::Delete(_) | KvOp::Get(_) => None,
        });
        let request = convert::txn(&txn);
        let ask = |client: Client| {
            let request = request.clone();
            async move {
                let mut kv = client.kv_client().max_decoding_message_size(DECODE_LIMIT_BYTES);
                let response = kv.txn(request).await.map_err(|error| lease_failure(error.into(), lease))?;
                convert::txn_response(&response)
                    .ok_or_else(|| Failure::Ambiguous("a response to another request".to_owned()))
            }
        };
        let reads = |ops: &[KvOp]| ops.iter().all(|op| matches!(op, KvOp::Get(_)));
        if reads(&txn.then) && reads(&txn.otherwise) { self.read(ask).await } else { self.write(ask).await }
    }

    async fn lease_grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        let seconds = (ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0)).clamp(1, u64::from(u32::MAX));
        self.write(|client| async move {
            let granted = client.lease_client().grant(seconds.cast_signed(), None).await?;
            Ok(LeaseId(granted.id()))
        })
        .await
    }

    async fn lease_keep_alive(&self, lease: LeaseId) -> Result<Duration, StoreError> {
        self.read(|client| async move {
            keep_alive(client, lease).await.map_err(|failure| lease_failure(failure, Some(lease)))
        })
        .await
    }

    async fn lease_revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.read(|client| async move {
            match client.lease_client().revoke(lease.0).await.map_err(Failure::from) {
                Ok(_) | Err(Failure::LeaseGone) => Ok(()),
                Err(failure) => Err(failure),
            }
        })
        .await
    }

    async fn members(&self) -> Vec<MemberStatus> {
        let mut asked = JoinSet::new();
        for (index, endpoint) in self.inner.endpoints.iter().enumerate() {
            let (endpoint, config) = (endpoint.clone(), self.inner.config.clone());
            asked.spawn(async move {
                let health = match timeout(ATTEMPT, health(&endpoint, &config)).await {
                    Ok(answer) => answer.map_err(|failure| failure.to_string()),
                    Err(_) => Err(format!("no answer in {ATTEMPT:?}")),
                };
                (index, MemberStatus { endpoint: endpoint.url.clone(), health })
            });
        }
        let mut members = asked.join_all().await;
        members.sort_by_key(|(index, _)| *index);
        members.into_iter().map(|(_, member)| member).collect()
    }
}

/// The first key after another.
fn after_key(key: &[u8]) -> Vec<u8> {
    [key, &[0]].concat()
}

/// One page, and the last key of it, also where that is not UTF-8.
async fn raw_page(
    client: Client,
    prefix: &Prefix,
    start: Vec<u8>,
    at: Option<Revision>,
    limit: usize,
) -> Result<(ListPage, Vec<u8>), Failure> {
    let limit = i64::try_from(limit.max(1)).unwrap_or(i64::MAX);
    let mut options = GetOptions::new().with_range(prefix.range_end()).with_limit(limit);
    if let Some(at) = at {
        options = options.with_revision(at.0);
    }
    let mut kv = client.kv_client().max_decoding_message_size(DECODE_LIMIT_BYTES);
    let response = kv.get(start, Some(options)).await.map_err(|error| compacted(error.into(), at))?;
    let (store, newest) = convert::header(response.header());
    let entries = response.kvs().iter().filter_map(convert::key_value).collect();
    let last = response.kvs().last().map(|kv| kv.key().to_vec()).unwrap_or_default();
    Ok((ListPage { entries, revision: at.unwrap_or(newest), store, more: response.more() }, last))
}

/// Renews a lease. The client library consumes the first response with its TTL, so a second request asks again.
async fn keep_alive(client: Client, lease: LeaseId) -> Result<Duration, Failure> {
    let (mut keeper, mut answers) = client.lease_client().keep_alive(lease.0).await?;
    keeper.keep_alive().await?;
    match answers.message().await? {
        Some(answer) if answer.ttl() > 0 => Ok(Duration::from_secs(answer.ttl().unsigned_abs())),
        // etcd answers with a TTL of zero where the lease is gone, and with no error.
        Some(_) => Err(Failure::LeaseGone),
        None => Err(Failure::Ambiguous("the stream ended".to_owned())),
    }
}

async fn health(endpoint: &Endpoint, config: &EtcdConfig) -> Result<MemberHealth, Failure> {
    let handle = endpoint.client(config).await?;
    let status = handle.client.maintenance_client().status().await.map_err(|error| {
        endpoint.discard(&handle);
        Failure::from(error)
    })?;
    Ok(MemberHealth {
        version: status.version().to_owned(),
        leader: status.header().is_some_and(|header| header.member_id() == status.leader()),
        revision: convert::header(status.header()).1,
        db_bytes: status.db_size().unsigned_abs(),
    })
}

fn lease_failure(failure: Failure, lease: Option<LeaseId>) -> Failure {
    match (failure, lease) {
        (Failure::LeaseGone, Some(lease)) => Failure::Fatal(StoreError::LeaseGone(lease)),
        (failure, _) => failure,
    }
}

fn compacted(failure: Failure, at: Option<Revision>) -> Failure {
    match (failure, at) {
        (Failure::Compacted, Some(requested)) => {
            Failure::Fatal(StoreError::Compacted { requested, oldest: None })
        }
        (failure, _) => failure,
    }
}
