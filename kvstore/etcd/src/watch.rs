//! One watch: its changes, its position in the history, and why it ends.
//!
//! The position moves on with changes, and with progress notifications while nothing under the prefix changes. A
//! broken watch is resumed from its position, so a position that stays behind would be compacted away.

use std::time::Duration;

use etcd_client::{Client, GetOptions, WatchOptions, WatchResponse, WatchStream};
use kvstore_schema::{Prefix, Revision, StoreIdentity};
use kvstore_store::{GIVE_UP_AFTER, PROGRESS_AFTER, StoreError, WATCH_BUFFER, Watch, WatchEvent};
use tokio::{sync::mpsc, time::timeout};

use crate::{classify::Failure, convert, store::DECODE_LIMIT_BYTES};

/// The watch id of the answer to a progress request: it concerns all watches of the stream. A notification that the
/// server sends on its own bears the id of its watch.
const ALL_WATCHES: i64 = -1;

struct Pump {
    stream: WatchStream,
    store: StoreIdentity,
    /// All changes up to this revision have been delivered, or precede the watch.
    delivered: Revision,
    /// The member sends the answer to a progress request after all changes up to the answer's revision.
    ordered_progress: bool,
    out: mpsc::Sender<WatchEvent>,
}

/// Creates a watch on one member.
pub(crate) async fn start(client: Client, prefix: Prefix, from: Revision) -> Result<Watch, Failure> {
    // etcd accepts a start revision in the future and stays silent; such a revision comes from before a restore
    // from a backup. The read is linearizable, so a member that lags behind does not look like a restored one.
    let mut kv = client.kv_client();
    let newest = kv.get(prefix.as_bytes(), Some(GetOptions::new().with_keys_only())).await?;
    let (store, newest) = convert::header(newest.header());
    let (out, events) = mpsc::channel(WATCH_BUFFER);
    if from > newest.next() {
        let reason = StoreError::Replaced(format!("watch from revision {from}, the store is at {newest}"));
        out.try_send(WatchEvent::Ended(reason)).expect("a new channel has room");
        return Ok(Watch { store, events });
    }
    let status = client.maintenance_client().status().await?;
    let ordered_progress = has_ordered_progress(status.version());
    // Since 3.4.37, 3.5.22 and 3.6.2 etcd reports no progress to a watch that starts in the future (etcd#20229), so the
    // watch of an idle store starts at the newest revision, and that revision's changes are left out.
    // No `with_fragment`: its cost in the server is quadratic. A revision is one message of at most 1.5 MiB.
    let options = WatchOptions::new()
        .with_range(prefix.range_end())
        .with_start_revision(from.min(newest).0)
        .with_progress_notify();
    let mut watcher = client.watch_client().max_decoding_message_size(DECODE_LIMIT_BYTES);
    let stream = watcher.watch(prefix.as_bytes(), Some(options)).await?;
    tokio::spawn(Pump { stream, store, delivered: Revision(from.0 - 1), ordered_progress, out }.run());
    Ok(Watch { store, events })
}

impl Pump {
    async fn run(mut self) {
        let out = self.out.clone();
        let reason = tokio::select! {
            () = out.closed() => return,
            reason = self.deliver() => reason,
        };
        // The receiver may have been dropped meanwhile.
        let _ = out.send(WatchEvent::Ended(reason)).await;
    }

    async fn deliver(&mut self) -> StoreError {
        let mut patience = PROGRESS_AFTER;
        loop {
            let response = match self.message(patience).await {
                Err(reason) => return reason,
                Ok(Some(response)) => response,
                Ok(None) if patience == PROGRESS_AFTER => {
                    if let Err(error) = self.stream.request_progress().await {
                        return StoreError::Unavailable(format!("ask for progress: {error}"));
                    }
                    patience = GIVE_UP_AFTER;
                    continue;
                }
                Ok(None) => {
                    let silence = PROGRESS_AFTER + GIVE_UP_AFTER;
                    return StoreError::Unavailable(format!("watch silent for {silence:?}"));
                }
            };
            patience = PROGRESS_AFTER;
            match self.event(&response) {
                Err(reason) => return reason,
                Ok(None) => {}
                Ok(Some(event)) => {
                    if self.out.send(event).await.is_err() {
                        return StoreError::Unavailable("the receiver is gone".to_owned());
                    }
                }
            }
        }
    }

    /// The next message, or `None` when none arrived within `patience`.
    async fn message(&mut self, patience: Duration) -> Result<Option<WatchResponse>, StoreError> {
        match timeout(patience, self.stream.message()).await {
            Err(_) => Ok(None),
            Ok(Ok(Some(response))) => Ok(Some(response)),
            Ok(Ok(None)) => Err(StoreError::Unavailable("the member closed the watch".to_owned())),
            Ok(Err(error)) => Err(StoreError::Unavailable(Failure::from(error).to_string())),
        }
    }

    fn event(&mut self, response: &WatchResponse) -> Result<Option<WatchEvent>, StoreError> {
        if response.canceled() {
            return Err(self.canceled(response));
        }
        let (store, newest) = convert::header(response.header());
        if store != self.store {
            return Err(StoreError::Replaced(format!(
                "{store:?} answered, but the watch began on {:?}",
                self.store
            )));
        }
        let before = self.delivered.0;
        let is_new = |event: &&etcd_client::Event| event.kv().is_some_and(|kv| kv.mod_revision() > before);
        let changes: Vec<_> = response.events().iter().filter(is_new).collect();
        if let Some(last) = changes.last().and_then(|event| event.kv()) {
            // The header's revision may be ahead of changes that are still on their way.
            let revision = Revision(last.mod_revision());
            self.delivered = revision;
            let events: Vec<_> = changes.into_iter().filter_map(convert::event).collect();
            return Ok((!events.is_empty()).then_some(WatchEvent::Changes { events, revision }));
        }
        if newest < self.delivered {
            let delivered = self.delivered;
            return Err(StoreError::Replaced(format!("revision went back from {delivered} to {newest}")));
        }
        if response.created() || !response.events().is_empty() {
            return Ok(None);
        }
        if response.watch_id() != ALL_WATCHES || self.ordered_progress {
            self.delivered = newest;
        }
        Ok(Some(WatchEvent::Progress { revision: self.delivered }))
    }

    /// Why the server canceled the watch. After a compacted start revision etcd answers with `created` first and
    /// leaves the stream open.
    fn canceled(&self, response: &WatchResponse) -> StoreError {
        if response.compact_revision() > 0 {
            let oldest = Some(Revision(response.compact_revision()));
            return StoreError::Compacted { requested: self.delivered.next(), oldest };
        }
        let reason = response.cancel_reason();
        if reason.contains("permission denied") {
            return StoreError::Refused(reason.to_owned());
        }
        StoreError::Unavailable(format!("watch canceled: {reason}"))
    }
}

/// Whether the answer to a progress request follows all changes up to its revision. Older servers may send it before
/// them (etcd#15220) or lose changes beside it (etcd#17507); Kubernetes draws the same line (kubernetes#123192). The
/// notifications that a server sends on its own are ordered in all versions, but come every 10 min only.
fn has_ordered_progress(version: &str) -> bool {
    let mut numbers = version.split(['.', '-', '+']).map_while(|number| number.parse::<u32>().ok());
    let mut next = || numbers.next().unwrap_or_default();
    match (next(), next(), next()) {
        (3, 4, patch) => patch >= 31,
        (3, 5, patch) => patch >= 13,
        (major, minor, _) => (major, minor) >= (3, 6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_answers_are_trusted_from_fixed_versions_on() {
        for (version, expected) in [
            ("3.4.23", false),
            ("3.4.31", true),
            ("3.5.12", false),
            ("3.5.13-rc.1", true),
            ("3.6.0", true),
            ("4.0.0", true),
            ("3.3.99", false),
            ("", false),
        ] {
            assert_eq!(has_ordered_progress(version), expected, "{version}");
        }
    }
}
