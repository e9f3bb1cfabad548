//! Watches of the in-memory store: each one a task that reads the history at its receiver's pace.
//!
//! A slow receiver holds nothing up; when compaction passes it, its watch ends as etcd ends it.

use std::{sync::Arc, time::Duration};

use kvstore_schema::{Prefix, Revision};
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};

use crate::{
    MemClient, Reach, StoreError, Watch, WatchEvent,
    mem::{Inner, Shared},
};

/// Batches that wait for a receiver; a watch that is further behind reads on when there is room.
pub const WATCH_BUFFER: usize = 64;

/// After this much silence a watch asks whether it is still alive.
pub const PROGRESS_AFTER: Duration = Duration::from_secs(2);

/// How long it then waits for the answer before it gives the watch up.
pub const GIVE_UP_AFTER: Duration = Duration::from_secs(3);

/// What a watch is to deliver.
pub(crate) struct WatchStart {
    pub(crate) prefix: Prefix,
    pub(crate) from: Revision,
}

struct Pump {
    shared: Arc<Shared>,
    start: WatchStart,
    history: u64,
    changed: watch::Receiver<()>,
    reach: watch::Receiver<Reach>,
    broken: watch::Receiver<()>,
    out: mpsc::Sender<WatchEvent>,
}

pub(crate) fn start(client: &MemClient, start: WatchStart) -> Watch {
    let (out, events) = mpsc::channel(WATCH_BUFFER);
    // Subscribed before the state is read, so that no change falls between the two.
    let changed = client.shared.changed.subscribe();
    let (reach, broken) = (client.reach.subscribe(), client.broken.subscribe());
    let (store, history) = {
        let inner = client.shared.lock();
        (inner.state.identity(), inner.history)
    };
    let shared = client.shared.clone();
    tokio::spawn(Pump { shared, start, history, changed, reach, broken, out }.run());
    Watch { store, events }
}

impl Pump {
    async fn run(mut self) {
        let out = self.out.clone();
        let reason = tokio::select! {
            () = out.closed() => return,
            reason = self.deliver() => reason,
        };
        // A receiver that is gone needs no farewell.
        let _ = out.send(WatchEvent::Ended(reason)).await;
    }

    /// Delivers until something ends the watch, and says what.
    async fn deliver(&mut self) -> StoreError {
        let mut next = self.start.from;
        loop {
            if let Err(error) = self.wait_reached().await {
                return error;
            }
            match self.read(next) {
                Err(error) => return error,
                Ok((changes, revision)) => {
                    // Also past changes of other prefixes, so that compaction does not end a quiet watch.
                    next = revision.next();
                    if let Some(changes) = changes {
                        if self.out.send(changes).await.is_err() {
                            return receiver_gone();
                        }
                        continue;
                    }
                }
            }
            let woken = tokio::select! {
                woken = self.changed.changed() => woken.is_ok(),
                woken = self.reach.changed() => woken.is_ok(),
                broken = self.broken.changed() => {
                    if broken.is_ok() {
                        return StoreError::Unavailable("watch broken (injected)".to_owned());
                    }
                    false
                }
                () = tokio::time::sleep(PROGRESS_AFTER) => {
                    // Not the newest revision: a change may have come since the read.
                    let revision = Revision(next.0 - 1);
                    if self.out.send(WatchEvent::Progress { revision }).await.is_err() {
                        return receiver_gone();
                    }
                    true
                }
            };
            if !woken {
                return StoreError::Unavailable("the client is gone".to_owned());
            }
        }
    }

    /// Reads the history from a revision on: changes under the prefix, if there are any, and the last revision read.
    fn read(&self, next: Revision) -> Result<(Option<WatchEvent>, Revision), StoreError> {
        let inner = self.shared.lock();
        self.check_history(&inner, next)?;
        let mut events = inner.state.events_since(next)?;
        let revision = inner.state.revision();
        events.retain(|event| self.start.prefix.contains(event.key()));
        Ok(((!events.is_empty()).then_some(WatchEvent::Changes { events, revision }), revision))
    }

    fn check_history(&self, inner: &Inner, next: Revision) -> Result<(), StoreError> {
        let newest = inner.state.revision();
        if inner.history != self.history {
            return Err(StoreError::Replaced(format!("another history, at revision {newest}")));
        }
        if next > newest.next() {
            return Err(StoreError::Replaced(format!(
                "watch from revision {next}, the store is at {newest}"
            )));
        }
        Ok(())
    }

    /// Waits while packets vanish, as long as a client waits before it gives a silent watch up.
    async fn wait_reached(&mut self) -> Result<(), StoreError> {
        let up = self.reach.wait_for(|reach| *reach != Reach::BlackHole);
        match timeout(PROGRESS_AFTER + GIVE_UP_AFTER, up).await {
            Err(_) => Err(StoreError::Unavailable("watch fell silent (injected)".to_owned())),
            Ok(Err(_)) => Err(StoreError::Unavailable("the client is gone".to_owned())),
            Ok(Ok(reach)) if *reach == Reach::Refused => {
                Err(StoreError::Unavailable("connection refused (injected)".to_owned()))
            }
            Ok(Ok(_)) => Ok(()),
        }
    }
}

fn receiver_gone() -> StoreError {
    StoreError::Unavailable("the receiver is gone".to_owned())
}
