//! The in-memory store: [`MemState`] behind a lock, shared by any number of clients.
//!
//! It serves tests and simulations, and is the store of a single node (`store = "memory"`), which then
//! calls [`MemStore::run_clock`]. Without that, time is what [`MemStore::advance`] says.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use kvstore_schema::{Key, LeaseId, ListPage, Prefix, Revision, StoreIdentity, Txn, TxnResponse};
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval, sleep},
};

use crate::{
    MemState, MemberHealth, MemberStatus, Reach, Store, StoreError, Watch, WriteFate, WriteFates,
    mem_watch::{self, WatchStart},
};

/// How often the real clock looks for leases that ran out: etcd's own pace.
const CLOCK_TICK: Duration = Duration::from_millis(500);

/// How many past changes are kept under the real clock; enough for every watcher that is not stuck.
const HISTORY_KEPT: usize = 10_000;

/// How long a call waits for an answer unless the client says otherwise; as in the etcd client.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// The state, and how often its past was thrown away.
#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) state: MemState,
    /// Raised by a wipe and by a restore: watches of an earlier history must end.
    pub(crate) history: u64,
}

#[derive(Debug)]
pub(crate) struct Shared {
    inner: Mutex<Inner>,
    /// Told of every call that may have changed something.
    pub(crate) changed: watch::Sender<()>,
}

impl Shared {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Inner> {
        // A test that panicked while it held the lock has left the state whole: no call stops half-way.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut Inner) -> T) -> T {
        let result = change(&mut self.lock());
        self.changed.send_replace(());
        result
    }
}

/// The server's side: hands out clients, and does what operators and accidents do to an etcd.
#[derive(Debug, Clone)]
pub struct MemStore {
    shared: Arc<Shared>,
}

impl MemStore {
    /// An empty store.
    pub fn new(identity: StoreIdentity) -> Self {
        Self::with_state(MemState::new(identity))
    }

    /// A store with this in it.
    pub fn with_state(state: MemState) -> Self {
        let inner = Inner { state, history: 0 };
        Self { shared: Arc::new(Shared { inner: Mutex::new(inner), changed: watch::Sender::new(()) }) }
    }

    /// A new way to the store, with faults of its own.
    pub fn client(&self) -> MemClient {
        MemClient {
            shared: self.shared.clone(),
            reach: Arc::new(watch::Sender::new(Reach::Up)),
            broken: Arc::new(watch::Sender::new(())),
            fates: Arc::default(),
            call_timeout: CALL_TIMEOUT,
        }
    }

    /// A copy of everything: what a backup holds.
    pub fn snapshot(&self) -> MemState {
        self.shared.lock().state.clone()
    }

    /// Puts a backup back: the revision goes backwards, every watch ends.
    pub fn restore(&self, snapshot: MemState) {
        self.shared.change(|inner| {
            inner.state.restore(snapshot);
            inner.history += 1;
        });
    }

    /// Everything is gone; a new, empty store answers in the old one's place.
    pub fn wipe(&self) {
        self.shared.change(|inner| {
            inner.state = MemState::new(StoreIdentity(inner.state.identity().0.wrapping_add(1)));
            inner.history += 1;
        });
    }

    /// Forgets what was before a revision.
    ///
    /// # Errors
    /// As [`MemState::compact`].
    pub fn compact(&self, at: Revision) -> Result<(), StoreError> {
        self.shared.change(|inner| inner.state.compact(at))
    }

    /// Lets time pass for leases.
    pub fn advance(&self, by: Duration) {
        self.shared.change(|inner| inner.state.advance(by));
    }

    /// Lets leases run out in tokio's time, and keeps the history short. Never returns: spawn it, once.
    pub async fn run_clock(self) {
        let mut last = Instant::now();
        let mut ticks = interval(CLOCK_TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let now = ticks.tick().await;
            self.advance(now.duration_since(last));
            last = now;
            self.trim_history();
        }
    }

    fn trim_history(&self) {
        let mut inner = self.shared.lock();
        let newest = inner.state.revision();
        if inner.state.history_len() > 2 * HISTORY_KEPT {
            let at = inner.state.revision_before(HISTORY_KEPT);
            inner.state.compact(at).unwrap_or_else(|error| {
                unreachable!("{at} is a kept revision not after {newest}: {error}");
            });
        }
    }
}

/// One client's way to the store. Clones share its faults.
#[derive(Debug, Clone)]
pub struct MemClient {
    pub(crate) shared: Arc<Shared>,
    pub(crate) reach: Arc<watch::Sender<Reach>>,
    /// Told when the running watches shall break.
    pub(crate) broken: Arc<watch::Sender<()>>,
    fates: Arc<Mutex<WriteFates>>,
    call_timeout: Duration,
}

impl MemClient {
    /// How long its calls wait for an answer.
    #[must_use]
    pub fn with_call_timeout(mut self, call_timeout: Duration) -> Self {
        self.call_timeout = call_timeout;
        self
    }

    /// Sets whether the store is reached from now on.
    pub fn set_reach(&self, reach: Reach) {
        self.reach.send_replace(reach);
    }

    /// Sets what becomes of its writes from now on.
    pub fn set_write_fates(&self, fates: WriteFates) {
        *self.fates.lock().unwrap_or_else(PoisonError::into_inner) = fates;
    }

    /// Ends its running watches with [`StoreError::Unavailable`], as a broken connection does.
    pub fn break_watches(&self) {
        self.broken.send_replace(());
    }

    async fn read<T>(&self, read: impl FnOnce(&MemState) -> Result<T, StoreError>) -> Result<T, StoreError> {
        self.reached(StoreError::Unavailable).await?;
        read(&self.shared.lock().state)
    }

    async fn write<T>(
        &self,
        write: impl FnOnce(&mut MemState) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.reached(StoreError::Ambiguous).await?;
        let fate = self.fates.lock().unwrap_or_else(PoisonError::into_inner).draw();
        if fate == WriteFate::LostUnanswered {
            return Err(StoreError::Ambiguous("no answer (injected, not carried out)".to_owned()));
        }
        let answer = self.shared.change(|inner| write(&mut inner.state));
        if fate == WriteFate::AppliedUnanswered {
            return Err(StoreError::Ambiguous("no answer (injected, carried out)".to_owned()));
        }
        answer
    }

    /// A write that does nothing more when it is repeated, hence never ambiguous.
    async fn repeatable<T>(
        &self,
        write: impl FnOnce(&mut MemState) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.reached(StoreError::Unavailable).await?;
        self.shared.change(|inner| write(&mut inner.state))
    }

    /// Waits as a call to an unreached store does, and fails with `timed_out` when nothing answers.
    async fn reached(&self, timed_out: fn(String) -> StoreError) -> Result<(), StoreError> {
        let reach = *self.reach.borrow();
        match reach {
            Reach::Up => Ok(()),
            Reach::Refused => Err(StoreError::Unavailable("connection refused (injected)".to_owned())),
            Reach::BlackHole => {
                sleep(self.call_timeout).await;
                Err(timed_out(format!("no answer in {:?} (injected)", self.call_timeout)))
            }
        }
    }
}

#[async_trait]
impl Store for MemClient {
    async fn list_page(
        &self,
        prefix: &Prefix,
        at: Option<Revision>,
        after: Option<&Key>,
        limit: usize,
    ) -> Result<ListPage, StoreError> {
        self.read(|state| state.list(prefix, at, after, limit)).await
    }

    async fn watch(&self, prefix: &Prefix, from: Revision) -> Result<Watch, StoreError> {
        self.reached(StoreError::Unavailable).await?;
        Ok(mem_watch::start(self, WatchStart { prefix: prefix.clone(), from }))
    }

    async fn txn(&self, txn: Txn) -> Result<TxnResponse, StoreError> {
        self.write(|state| state.txn(&txn)).await
    }

    async fn lease_grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.write(|state| Ok(state.lease_grant(ttl))).await
    }

    async fn lease_keep_alive(&self, lease: LeaseId) -> Result<Duration, StoreError> {
        self.repeatable(|state| state.lease_keep_alive(lease)).await
    }

    async fn lease_revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.repeatable(|state| {
            state.lease_revoke(lease);
            Ok(())
        })
        .await
    }

    async fn members(&self) -> Vec<MemberStatus> {
        let health = self.read(|state| {
            Ok(MemberHealth {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                leader: true,
                revision: state.revision(),
                db_bytes: state.bytes(),
            })
        });
        let health = health.await.map_err(|error| error.to_string());
        vec![MemberStatus { endpoint: "memory".to_owned(), health }]
    }
}
