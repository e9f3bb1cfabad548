//! The log of events on disk: `<state_dir>/recorder/`, a ring of the segments that `node-recorder` defines.
//!
//! A thread of its own writes it, and the loop that owns the node never waits for that thread. Frames that find the queue
//! full are lost, and the log says how many; a replay is possible again from the next checkpoint. A failing disk never
//! keeps the agent from working.

use std::{
    collections::VecDeque,
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc::{Receiver, SyncSender, TryRecvError, sync_channel},
    },
    time::{Duration, Instant},
};

use node_core::{Command, Event, Node, Now};
use node_recorder::{Sink, begins_segment, header};
use tracing::{error, warn};

/// The queue to the disk, in frames and in bytes: a disk that stalls for a few seconds loses nothing.
const QUEUE_FRAMES: usize = 4_096;
const QUEUE_BYTES: usize = 16 << 20;
/// The pause before a checkpoint is tried after a loss: encoding that of a large fleet stops the loop.
const CHECKPOINT_PAUSE: Duration = Duration::from_secs(10);
/// The ring holds at least so many segments, while checkpoints are small.
const SEGMENTS: u64 = 8;

/// Records a node on disk.
pub struct Recorder {
    inner: node_recorder::Recorder<Queue>,
}

impl Recorder {
    /// A recorder and its writer, which runs on a thread of its own until the recorder is dropped.
    pub fn new(folder: PathBuf, max_bytes: u64) -> (Self, impl FnOnce() + Send) {
        let (frames, inbox) = sync_channel(QUEUE_FRAMES);
        let state = Arc::new(State::default());
        let queue = Queue { frames, state: state.clone(), refused_at: None };
        let inner = node_recorder::Recorder::new(queue, (max_bytes / SEGMENTS).max(1));
        let ring = Ring { folder, max_bytes, segments: VecDeque::new(), file: None, next: 0, state };
        (Self { inner }, move || ring.run(&inbox))
    }

    /// Begins the log of a node with a checkpoint.
    pub fn begin(&mut self, node: &Node) {
        self.inner.checkpoint(node);
    }

    /// Records an event that the node is about to handle.
    pub fn before(&mut self, now: Now, event: &Event, node: &Node) {
        self.inner.before(now, event, node);
    }

    /// Records the commands that the node returned.
    pub fn after(&mut self, commands: &[Command], node: &Node) {
        if self.inner.after(commands, node) && !self.inner.sink().state.off.load(Ordering::Relaxed) {
            warn!("recorder's disk is too slow; events are lost until the next checkpoint");
        }
    }
}

/// State that recorder and writer share.
#[derive(Default)]
struct State {
    /// Bytes in the queue.
    waiting: AtomicUsize,
    /// Writing has been given up.
    off: AtomicBool,
}

/// The queue to the writer.
struct Queue {
    frames: SyncSender<Vec<u8>>,
    state: Arc<State>,
    refused_at: Option<Instant>,
}

impl Sink for Queue {
    fn take(&mut self, frame: Vec<u8>) -> bool {
        let length = frame.len();
        let waiting = self.state.waiting.fetch_add(length, Ordering::Relaxed);
        let taken = !self.state.off.load(Ordering::Relaxed)
            && waiting + length <= QUEUE_BYTES
            && self.frames.try_send(frame).is_ok();
        if !taken {
            self.state.waiting.fetch_sub(length, Ordering::Relaxed);
            self.refused_at = Some(Instant::now());
        }
        taken
    }

    fn has_room(&self) -> bool {
        !self.state.off.load(Ordering::Relaxed)
            && self.refused_at.is_none_or(|at| at.elapsed() >= CHECKPOINT_PAUSE)
    }
}

/// The segment files. One per agent, owned by the writer.
struct Ring {
    folder: PathBuf,
    max_bytes: u64,
    /// All segments with their sizes, oldest first; the last one is being written.
    segments: VecDeque<(PathBuf, u64)>,
    file: Option<BufWriter<File>>,
    next: u64,
    state: Arc<State>,
}

impl Ring {
    fn run(mut self, inbox: &Receiver<Vec<u8>>) {
        if let Err(error) = self.open() {
            self.give_up(&error);
        }
        loop {
            let frame = match inbox.try_recv() {
                Ok(frame) => frame,
                Err(TryRecvError::Disconnected) => break,
                Err(TryRecvError::Empty) => {
                    // The queue is empty: written frames must survive the process.
                    self.flush();
                    let Ok(frame) = inbox.recv() else { break };
                    frame
                }
            };
            self.state.waiting.fetch_sub(frame.len(), Ordering::Relaxed);
            if !self.state.off.load(Ordering::Relaxed)
                && let Err(error) = self.write(&frame)
            {
                self.give_up(&error);
            }
        }
        self.flush();
    }

    fn flush(&mut self) {
        let flushed = self.file.as_mut().map_or(Ok(()), BufWriter::flush);
        if let Err(error) = flushed {
            self.give_up(&error);
        }
    }

    /// Takes over the segments of previous agents.
    fn open(&mut self) -> io::Result<()> {
        fs::create_dir_all(&self.folder)?;
        self.segments = segments(&self.folder)?.into();
        let last = self.segments.back().and_then(|(path, _)| number(path));
        self.next = last.map_or(0, |last| last + 1);
        Ok(())
    }

    fn write(&mut self, frame: &[u8]) -> io::Result<()> {
        if begins_segment(frame) {
            self.flush();
            let path = self.folder.join(format!("{:010}.log", self.next));
            self.next += 1;
            let mut file = BufWriter::with_capacity(1 << 16, File::create_new(&path)?);
            let header = header(env!("CARGO_PKG_VERSION"));
            file.write_all(&header)?;
            self.file = Some(file);
            self.segments.push_back((path, header.len() as u64));
        }
        let (Some(file), Some((_, size))) = (&mut self.file, self.segments.back_mut()) else { return Ok(()) };
        file.write_all(frame)?;
        *size += frame.len() as u64;
        while self.segments.iter().map(|(_, size)| size).sum::<u64>() > self.max_bytes {
            if self.segments.len() == 1 {
                return Err(io::Error::other(format!(
                    "one checkpoint and its events do not fit in recorder.max_bytes ({}): raise it",
                    self.max_bytes
                )));
            }
            let (oldest, _) = self.segments.pop_front().expect("there are two");
            fs::remove_file(oldest)?;
        }
        Ok(())
    }

    fn give_up(&mut self, error: &io::Error) {
        self.state.off.store(true, Ordering::Relaxed);
        self.file = None;
        error!(folder = %self.folder.display(), %error, "recorder has stopped until the next start");
    }
}

/// The segments of a folder with their sizes, oldest first.
fn segments(folder: &Path) -> io::Result<Vec<(PathBuf, u64)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if number(&entry.path()).is_some() {
            found.push((entry.path(), entry.metadata()?.len()));
        }
    }
    found.sort();
    Ok(found)
}

fn number(path: &Path) -> Option<u64> {
    (path.extension()? == "log").then(|| path.file_stem()?.to_str()?.parse().ok())?
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use datapath_plan::{IpcacheValue, NodeIndex, Observed};
    use identity::Identity;
    use ipnetwork::IpNetwork;
    use node_recorder::{Entry, Replay, read};

    use super::*;

    fn node() -> Node {
        Node::new(chaos_sim::config(1))
    }

    /// Records a run of `events` events in a folder.
    fn live(folder: &Path, max_bytes: u64, events: u64) {
        let (mut recorder, write) = Recorder::new(folder.to_owned(), max_bytes);
        let writer = std::thread::spawn(write);
        let mut node = node();
        recorder.begin(&node);
        for number in 0..events {
            let now = Now { monotonic: Duration::from_millis(number), wall: Duration::from_secs(number) };
            let started = Event::Started { snapshot: None, endpoints: Vec::new() };
            let event = if number == 0 { started } else { Event::Woke };
            recorder.before(now, &event, &node);
            let commands = node.handle(now, event);
            recorder.after(&commands, &node);
        }
        drop(recorder);
        writer.join().unwrap();
    }

    fn replayed(folder: &Path) -> Replay {
        let mut replay = Replay::default();
        for (path, _) in segments(folder).unwrap() {
            let segment = read(&fs::read(path).unwrap()).unwrap();
            assert_eq!(segment.damaged_at, None);
            assert!(matches!(segment.entries[0], Entry::Checkpoint { .. }));
            segment.entries.into_iter().for_each(|entry| drop(replay.tell(entry)));
        }
        assert_eq!(replay.difference, None);
        replay
    }

    #[test]
    fn recorder_appends_to_the_segments_of_previous_runs() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("recorder");
        live(&path, 1 << 20, 10);
        live(&path, 1 << 20, 20);
        let replay = replayed(&path);
        assert_eq!((replay.events, replay.checkpoints, replay.lost), (30, 2, 0));
    }

    #[test]
    fn recorder_keeps_the_size_of_the_ring_and_the_rest_replays() {
        let folder = tempfile::tempdir().unwrap();
        live(folder.path(), 16 << 10, 2_000);
        let sizes: u64 = segments(folder.path()).unwrap().iter().map(|(_, size)| size).sum();
        assert!((1..=16 << 10).contains(&sizes), "{sizes}");
        let replay = replayed(folder.path());
        assert!(replay.checkpoints > 2 && replay.events > 100 && replay.events < 2_000, "{}", replay.events);
    }

    #[derive(Default)]
    struct Memory(Vec<u8>);

    impl Sink for Memory {
        fn take(&mut self, frame: Vec<u8>) -> bool {
            self.0.extend(frame);
            true
        }

        fn has_room(&self) -> bool {
            true
        }
    }

    #[test]
    fn recorder_takes_a_few_bytes_for_an_audit_that_finds_nothing_new() {
        let mut observed = Observed { broken: vec!["base".to_owned()], ..Observed::default() };
        for number in 0..10_000_u32 {
            let address = IpNetwork::from(IpAddr::from((10 << 24 | number).to_be_bytes()));
            let value = IpcacheValue { identity: Identity::UNKNOWN, node: NodeIndex(7) };
            observed.tables.ipcache.insert(address, value);
        }
        let audit = || Event::Observed(Ok(observed.clone()));
        let mut changed = observed.clone();
        changed.tables.ipcache.pop_first();

        let mut recorder = node_recorder::Recorder::new(Memory(header("test")), u64::MAX);
        let mut node = node();
        recorder.checkpoint(&node);
        let started = Event::Started { snapshot: None, endpoints: Vec::new() };
        let mut sizes = Vec::new();
        for (number, event) in (0..).zip([started, audit(), audit(), Event::Observed(Ok(changed)), audit()]) {
            let now =
                Now { monotonic: Duration::from_secs(60 * number), wall: Duration::from_secs(60 * number) };
            let before = recorder.sink().0.len();
            recorder.before(now, &event, &node);
            let commands = node.handle(now, event);
            recorder.after(&commands, &node);
            sizes.push(recorder.sink().0.len() - before);
        }
        assert!(sizes[1] > 50_000, "the first one is recorded whole: {sizes:?}");
        assert!(sizes[2..].iter().all(|size| *size < 100), "{sizes:?}");
        recorder.checkpoint(&node);
        let mut replay = Replay::default();
        let segment = read(&recorder.sink().0).unwrap();
        segment.entries.into_iter().for_each(|entry| drop(replay.tell(entry)));
        assert_eq!((replay.difference, replay.events, replay.checkpoints), (None, 5, 2));
    }

    #[test]
    fn recorder_without_a_disk_holds_nothing_up() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("recorder");
        fs::write(&file, "in the way").unwrap();
        live(&file, 1 << 20, 100);
        assert_eq!(fs::read(&file).unwrap(), b"in the way");
    }
}
