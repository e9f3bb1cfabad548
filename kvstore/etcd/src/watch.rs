//! One watch: when it has something to say, when it is silent, and when it is over.

use std::time::Duration;

use etcd_client::{Client, GetOptions, WatchOptions, WatchResponse, WatchStream};
use kvstore_schema::{Prefix, Revision, StoreIdentity};
use kvstore_store::{GIVE_UP_AFTER, PROGRESS_AFTER, StoreError, WATCH_BUFFER, Watch, WatchEvent};
use tokio::{sync::mpsc, time::timeout};

use crate::{classify::Failure, convert, store::DECODE_LIMIT_BYTES};

struct Pump {
    stream: WatchStream,
    store: StoreIdentity,
    /// Everything up to here has been delivered, or was there before the watch.
    delivered: Revision,
    out: mpsc::Sender<WatchEvent>,
}

/// Creates a watch on one member.
pub(crate) async fn start(client: Client, prefix: Prefix, from: Revision) -> Result<Watch, Failure> {
    // etcd waits in silence on a start revision in the future, as after a restore from a backup. The
    // question is linearizable: a member that merely lags behind does not look like one that went back.
    let mut kv = client.kv_client();
    let newest = kv.get(prefix.as_bytes(), Some(GetOptions::new().with_keys_only())).await?;
    let (store, newest) = convert::header(newest.header());
    let (out, events) = mpsc::channel(WATCH_BUFFER);
    if from > newest.next() {
        let reason = StoreError::Replaced(format!("watch from revision {from}, the store is at {newest}"));
        out.try_send(WatchEvent::Ended(reason)).expect("a new channel has room");
        return Ok(Watch { store, events });
    }
    let options = WatchOptions::new().with_range(prefix.range_end()).with_start_revision(from.0);
    // No `with_fragment`: it is quadratic in the server. A revision is one message of 1.5 MiB at the most.
    let mut watcher = client.watch_client().max_decoding_message_size(DECODE_LIMIT_BYTES);
    let stream = watcher.watch(prefix.as_bytes(), Some(options)).await?;
    tokio::spawn(Pump { stream, store, delivered: Revision(from.0 - 1), out }.run());
    Ok(Watch { store, events })
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

    /// The next message; `None` for silence.
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
            return Err(StoreError::Replaced(format!("{store:?} answers, it was {:?}", self.store)));
        }
        if let Some(last) = response.events().iter().filter_map(etcd_client::Event::kv).next_back() {
            // Not the header's revision: it may be ahead of changes which are still on their way.
            self.delivered = Revision(last.mod_revision());
            let events: Vec<_> = response.events().iter().filter_map(convert::event).collect();
            let changes = WatchEvent::Changes { events, revision: self.delivered };
            return Ok((!is_empty(&changes)).then_some(changes));
        }
        if newest < self.delivered {
            let delivered = self.delivered;
            return Err(StoreError::Replaced(format!("at revision {newest}, it was at {delivered}")));
        }
        // An answer to our question. Before 3.4.25 and 3.5.8 it may overtake changes (etcd#15220), so it
        // proves that the watch lives and nothing else.
        let alive = WatchEvent::Progress { revision: self.delivered };
        Ok((!response.created()).then_some(alive))
    }

    /// etcd answers a compacted start with `created`, then this, and leaves the stream open.
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

fn is_empty(event: &WatchEvent) -> bool {
    matches!(event, WatchEvent::Changes { events, .. } if events.is_empty())
}
