//! Following the fleet's prefix in the store: a listing at a revision, then a watch from the next revision on.
//!
//! A broken watch is resumed from its position. The prefix is listed again only after compaction or when the store was
//! replaced, and then after a pause with jitter: all agents of a fleet meet either at the same moment.

use std::{sync::Arc, time::Duration};

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use kvstore_schema::{Prefix, Revision, StoreIdentity};
use kvstore_store::{Store, StoreError, Watch, WatchEvent, list_all};
use node_core::{Event, KvUpdate};
use tokio::time::sleep;
use tracing::{info, warn};

use super::{Core, RETRIES, Stopping};
use crate::metrics::Metrics;

/// Pauses before another listing: 0.5 to 1 s, doubling up to 15 to 30 s. The listing of a large fleet takes etcd a
/// quarter of a second, and a thousand agents may need one at once.
const RELISTS: ExponentialBuilder = ExponentialBuilder::new()
    .with_min_delay(Duration::from_millis(500))
    .with_max_delay(Duration::from_secs(15))
    .with_jitter()
    .without_max_times();

/// Why a watch ended, as far as it matters for what follows.
enum Ended {
    /// The watch can be resumed from its position.
    Broken(StoreError),
    /// The position is of no use any more.
    Stale(StoreError),
}

/// Follows a prefix until the node ends, whatever the store does.
///
/// # Errors
/// [`Stopping`] when the node has ended.
pub async fn follow(
    store: Arc<dyn Store>,
    prefix: Prefix,
    core: Core,
    metrics: Arc<Metrics>,
) -> Result<(), Stopping> {
    let contact = Contact::NotYet;
    let (retries, relists) = (RETRIES.build(), RELISTS.build());
    let mut follower = Follower { store, prefix, core, metrics, contact, retries, relists };
    loop {
        let (revision, identity) = follower.list().await?;
        let error = follower.watch(revision.next(), identity).await?;
        let pause = follower.relists.next().expect("attempts are not limited");
        info!(%error, ?pause, "store will be listed again");
        sleep(pause).await;
    }
}

/// Whether the store answers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Contact {
    /// The store has not answered since the agent's start, and the node does not know yet.
    NotYet,
    /// The store has not answered since the agent's start, and the node has been told.
    Never,
    Established,
    Lost,
}

struct Follower {
    store: Arc<dyn Store>,
    prefix: Prefix,
    core: Core,
    metrics: Arc<Metrics>,
    contact: Contact,
    retries: ExponentialBackoff,
    relists: ExponentialBackoff,
}

impl Follower {
    async fn list(&mut self) -> Result<(Revision, StoreIdentity), Stopping> {
        loop {
            match list_all(&*self.store, &self.prefix).await {
                Ok(page) => {
                    self.metrics.kv_resyncs.inc();
                    self.established();
                    info!(revision = page.revision.0, keys = page.entries.len(), "store listed");
                    let listed = (page.revision, page.store);
                    self.core.event(Event::Kv(KvUpdate::Listed(page))).await?;
                    return Ok(listed);
                }
                Err(error) => self.failed(&error).await?,
            }
        }
    }

    /// Watches, and resumes the watch, until the prefix must be listed again. Returns why it must.
    async fn watch(&mut self, mut from: Revision, listed: StoreIdentity) -> Result<StoreError, Stopping> {
        loop {
            let ended = match self.store.watch(&self.prefix, from).await {
                Err(error) => ended(error),
                Ok(watch) if watch.store != listed => {
                    Ended::Stale(StoreError::Replaced(format!("store {:x} answers", watch.store.0)))
                }
                Ok(mut watch) => {
                    if self.contact == Contact::Lost {
                        // Without this event the node would believe the store lost until the next change.
                        let revision = Revision(from.0 - 1);
                        self.changed(Vec::new(), revision).await?;
                        info!(revision = revision.0, "store watch resumed");
                    }
                    self.established();
                    self.read(&mut watch, &mut from).await?
                }
            };
            match ended {
                Ended::Broken(error) => self.failed(&error).await?,
                Ended::Stale(error) => return Ok(error),
            }
        }
    }

    async fn read(&mut self, watch: &mut Watch, from: &mut Revision) -> Result<Ended, Stopping> {
        loop {
            let (events, revision) = match watch.events.recv().await {
                Some(WatchEvent::Changes { events, revision }) => (events, revision),
                Some(WatchEvent::Progress { revision }) => (Vec::new(), revision),
                Some(WatchEvent::Ended(error)) => return Ok(ended(error)),
                None => return Ok(Ended::Broken(StoreError::Unavailable("the watch ended".to_owned()))),
            };
            self.relists = RELISTS.build();
            *from = revision.next().max(*from);
            self.changed(events, revision).await?;
        }
    }

    async fn changed(
        &self,
        events: Vec<kvstore_schema::KvEvent>,
        revision: Revision,
    ) -> Result<(), Stopping> {
        self.core.event(Event::Kv(KvUpdate::Changed { events, revision })).await
    }

    fn established(&mut self) {
        self.contact = Contact::Established;
        self.retries = RETRIES.build();
    }

    /// Tells the node once for each outage, then waits.
    async fn failed(&mut self, error: &StoreError) -> Result<(), Stopping> {
        let before = self.contact;
        match before {
            Contact::NotYet => {
                self.contact = Contact::Never;
                warn!(%error, "store not yet reachable; what the kernel has stays at work");
            }
            Contact::Established => {
                self.contact = Contact::Lost;
                warn!(%error, "store lost; what the kernel has stays at work");
            }
            Contact::Never | Contact::Lost => {}
        }
        if self.contact != before {
            self.core.event(Event::Kv(KvUpdate::Lost(error.to_string()))).await?;
        }
        sleep(self.retries.next().expect("attempts are not limited")).await;
        Ok(())
    }
}

fn ended(error: StoreError) -> Ended {
    match error {
        StoreError::Compacted { .. } | StoreError::Replaced(_) => Ended::Stale(error),
        StoreError::Unavailable(_)
        | StoreError::Ambiguous(_)
        | StoreError::LeaseGone(_)
        | StoreError::Refused(_) => Ended::Broken(error),
    }
}

#[cfg(test)]
mod tests;
