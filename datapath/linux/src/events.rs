//! The programs' reports, from the ring buffer to a bounded channel.

use std::{
    fmt, io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use aya::{
    Ebpf,
    maps::{MapData, RingBuf},
};
use datapath_abi::{Event, map_name};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::mpsc,
    task::JoinHandle,
    time::sleep,
};

use crate::error::DatapathError;

/// Events that wait for a slow reader: some 360 kB. Further events are dropped and counted, as the ring itself does.
const QUEUE: usize = 4_096;

/// How long events gather before they are read. The kernel wakes the reader for an event that finds the ring read to its
/// end, within the packet that it is about: read at once, each new flow would pay for that (14 us, as much as all else
/// that its first packet costs). The ring has room for 8,000 events in this time.
const GATHER: Duration = Duration::from_millis(10);

/// The ring before it is read.
pub(crate) struct Ring(RingBuf<MapData>);

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(map_name::EVENTS)
    }
}

/// A stream of events. Dropping it ends the reading.
#[derive(Debug)]
pub struct Events {
    receiver: mpsc::Receiver<Event>,
    lost: Arc<AtomicU64>,
    reader: JoinHandle<()>,
}

impl Ring {
    pub(crate) fn take(ebpf: &mut Ebpf) -> Result<Self, DatapathError> {
        let map = ebpf.take_map(map_name::EVENTS).ok_or_else(|| layout("is not in the object"))?;
        RingBuf::try_from(map).map(Self).map_err(|error| layout(&error.to_string()))
    }

    pub(crate) fn watch(self) -> Result<Events, DatapathError> {
        // SAFETY: the ring keeps one descriptor open for as long as it lives, and `AsyncFd` owns the ring.
        let ready = unsafe { AsyncFd::register_with_interest(self.0, Interest::READABLE) }
            .map_err(|error| fail(error.into()))?;
        let (sender, receiver) = mpsc::channel(QUEUE);
        let lost = Arc::new(AtomicU64::new(0));
        let reader = tokio::spawn(read(ready, sender, Arc::clone(&lost)));
        Ok(Events { receiver, lost, reader })
    }
}

impl Events {
    /// Waits for the next event. `None` if the ring can no longer be read. Cancel-safe.
    pub async fn next(&mut self) -> Option<Event> {
        self.receiver.recv().await
    }

    /// The number of events that were lost because the reader was too slow, or that could not be decoded.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

async fn read(mut ready: AsyncFd<RingBuf<MapData>>, sender: mpsc::Sender<Event>, lost: Arc<AtomicU64>) {
    loop {
        let mut guard = match ready.readable_mut().await {
            Ok(guard) => guard,
            Err(error) => {
                tracing::error!(%error, "the event ring cannot be watched any more");
                return;
            }
        };
        // The kernel wakes the reader only for an event that finds the ring empty.
        sleep(GATHER).await;
        let ring = guard.get_inner_mut();
        while let Some(item) = ring.next() {
            match decode(&item).map(|event| sender.try_send(event)) {
                Some(Ok(())) => {}
                Some(Err(mpsc::error::TrySendError::Closed(_))) => return,
                Some(Err(mpsc::error::TrySendError::Full(_))) | None => {
                    lost.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        guard.clear_ready();
    }
}

pub(crate) fn decode(bytes: &[u8]) -> Option<Event> {
    if bytes.len() < size_of::<Event>() {
        return None;
    }
    // SAFETY: there are enough bytes, and every bit pattern is an `Event` (`AbiBytes`); they need not be aligned.
    Some(unsafe { bytes.as_ptr().cast::<Event>().read_unaligned() })
}

fn fail(source: io::Error) -> DatapathError {
    DatapathError::Map { map: map_name::EVENTS, operation: "watch", source }
}

fn layout(text: &str) -> DatapathError {
    DatapathError::Layout { map: map_name::EVENTS.into(), text: text.into() }
}
