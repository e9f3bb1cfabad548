//! Writing endpoint files: a bounded number of writers, so that the loop that owns the node never waits for the disk and
//! one slow write delays no other.
//!
//! Each file is written in the order of the requests for it, and only its newest content. A disk error is logged and
//! keeps no endpoint from coming or going.

use std::{
    collections::{BTreeMap, VecDeque},
    path::PathBuf,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};

use datapath_plan::EndpointId;
use identity::EndpointName;
use node_core::SavedEndpoint;
use tracing::error;

use super::write;

/// Files that are written at the same time. The disk may hold up one or two of them.
const WRITERS: usize = 4;

/// Requests writes, and calls back when they are done. The writers end when this is dropped, after the last write.
pub struct EndpointKeeper {
    shared: Arc<Shared>,
}

/// One of the writers, to be run on a thread of its own.
pub struct Writer {
    shared: Arc<Shared>,
}

struct Shared {
    folder: PathBuf,
    state: Mutex<State>,
    /// Notified when a writer may find something to do, and at the end.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// The names of endpoints that have a file, or are to have one.
    names: BTreeMap<EndpointId, EndpointName>,
    /// Files whose newest content is not on disk.
    files: BTreeMap<EndpointId, File>,
    /// Files to be written, in order. Those that somebody waits for are in `urgent` too, which goes first.
    queue: VecDeque<EndpointId>,
    urgent: VecDeque<EndpointId>,
    closed: bool,
}

#[derive(Default)]
struct File {
    /// What the file is to hold (`Some(None)`: it is to be removed); `None` while just that is being written.
    content: Option<Option<Box<SavedEndpoint>>>,
    writing: bool,
    /// The last write failed, and the file is in no queue.
    failed: bool,
    /// Calls for when the file is written.
    waiting: Vec<Arc<Ticket>>,
}

/// A call that is made when the last file that it waits for lets its ticket go.
struct Ticket(Option<Box<dyn FnOnce() + Send + Sync>>);

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(call) = self.0.take() {
            call();
        }
    }
}

impl EndpointKeeper {
    /// A keeper, and its writers. `former`: the endpoints that have a file already.
    pub fn new(folder: PathBuf, former: &[SavedEndpoint]) -> (Self, Vec<Writer>) {
        let names = former.iter().map(|saved| (saved.id, saved.name.clone())).collect();
        let state = Mutex::new(State { names, ..State::default() });
        let shared = Arc::new(Shared { folder, state, changed: Condvar::new() });
        let writers = (0..WRITERS).map(|_| Writer { shared: shared.clone() }).collect();
        (Self { shared }, writers)
    }

    /// Requests that an endpoint's file be written, or with `None` removed. Returns at once.
    pub fn keep(&self, id: EndpointId, saved: Option<Box<SavedEndpoint>>) {
        let mut state = self.shared.lock();
        if let Some(saved) = &saved {
            state.names.insert(id, saved.name.clone());
        }
        state.files.entry(id).or_default().content = Some(saved);
        // The disk may take now what it refused before.
        let State { files, queue, .. } = &mut *state;
        for (failed, file) in files.iter_mut().filter(|(_, file)| file.failed) {
            file.failed = false;
            queue.push_back(*failed);
        }
        queue.push_back(id);
        drop(state);
        self.shared.changed.notify_all();
    }

    /// Makes a call when the files of these endpoints, as requested so far, are written. A file that cannot be written
    /// is not waited for.
    pub fn when_written(
        &self,
        ids: impl IntoIterator<Item = EndpointId>,
        call: impl FnOnce() + Send + Sync + 'static,
    ) {
        let ticket = Arc::new(Ticket(Some(Box::new(call))));
        let mut state = self.shared.lock();
        let State { files, urgent, .. } = &mut *state;
        for id in ids {
            if let Some(file) = files.get_mut(&id).filter(|file| !file.failed) {
                file.waiting.push(ticket.clone());
                urgent.push_back(id);
            }
        }
        // Without files to wait for, the call is made here: outside the lock.
        drop(state);
    }

    /// [`Self::when_written`] for all endpoints of a name: a deleted one may be followed by another.
    pub fn when_named_written(&self, name: &EndpointName, call: impl FnOnce() + Send + Sync + 'static) {
        let state = self.shared.lock();
        let is_named = |id: &EndpointId| state.names.get(id) == Some(name);
        let ids: Vec<EndpointId> = state.files.keys().copied().filter(is_named).collect();
        drop(state);
        self.when_written(ids, call);
    }
}

impl Drop for EndpointKeeper {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.changed.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics half-way through a change of the state.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Writer {
    /// Writes until the keeper is dropped and all files are written.
    pub fn run(self) {
        let mut state = self.shared.lock();
        loop {
            if let Some((id, content)) = state.next() {
                drop(state);
                let result = write(&self.shared.folder, id, content.as_deref());
                if let Err(error) = &result {
                    error!(
                        folder = %self.shared.folder.display(), endpoint = %id, %error,
                        "endpoint file not written; tried again with the next change"
                    );
                }
                let done = self.shared.lock().written(id, content, result.is_ok());
                // The file may be in a queue again.
                self.shared.changed.notify_all();
                // Makes the calls, outside the lock.
                drop(done);
                state = self.shared.lock();
            } else if state.closed {
                return;
            } else {
                state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }
}

impl State {
    /// The next file to write, and its content.
    fn next(&mut self) -> Option<(EndpointId, Option<Box<SavedEndpoint>>)> {
        while let Some(id) = self.urgent.pop_front().or_else(|| self.queue.pop_front()) {
            // Not one that another writer is at: that one puts the file back into the queue.
            let Some(file) = self.files.get_mut(&id).filter(|file| !file.writing) else { continue };
            if let Some(content) = file.content.take() {
                file.writing = true;
                return Some((id, content));
            }
        }
        None
    }

    /// Takes in the result of a write, and returns the calls that waited for it.
    fn written(
        &mut self,
        id: EndpointId,
        content: Option<Box<SavedEndpoint>>,
        success: bool,
    ) -> Vec<Arc<Ticket>> {
        let file = self.files.get_mut(&id).expect("a file is there while it is being written");
        file.writing = false;
        if file.content.is_some() {
            // There is newer content, and calls wait for that.
            self.urgent.push_back(id);
            return Vec::new();
        }
        let waiting = std::mem::take(&mut file.waiting);
        if !success {
            file.content = Some(content);
            file.failed = true;
            return waiting;
        }
        self.files.remove(&id);
        if content.is_none() {
            self.names.remove(&id);
        }
        waiting
    }
}
