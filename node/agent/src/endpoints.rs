//! This node's endpoints on disk: their names, labels and attachments, which the kernel does not tell.
//!
//! `<state_dir>/endpoints/<number>`, a file for each (`sealed.rs`), written before its endpoint is attached and gone
//! after it is. Nobody is told that an endpoint is there, or gone, before its file says so: an agent that is killed in
//! any moment is followed by one that knows the names of all that is in the kernel, with or without a store. Files are
//! not synced: a machine that loses power loses its endpoints too.
//!
//! Written by a thread of its own, in the order of the orders; the loop that owns the node never waits for the disk. A
//! disk that takes nothing does not keep endpoints from coming and going: it is an error in the log.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, Sender, channel},
};

use datapath_plan::EndpointId;
use node_core::SavedEndpoint;
use tracing::{error, info, warn};

use crate::sealed::{Form, SealError};

/// The largest has a path of 4 kB and 64 labels of some hundred bytes each.
pub const FORM: Form = Form { magic: *b"WRNENDP\n", version: 2, max_payload_bytes: 64 << 10 };

/// Where the endpoints of a node are kept. The thread ends when this is dropped, with everything done.
pub struct EndpointKeeper {
    orders: Sender<Order>,
}

enum Order {
    Keep(EndpointId, Option<Box<SavedEndpoint>>),
    Call(Box<dyn FnOnce() + Send>),
}

impl EndpointKeeper {
    /// A way to the files, and what writes them: to be run on a thread of its own.
    pub fn new(folder: PathBuf) -> (Self, impl FnOnce() + Send) {
        // Not bounded: each endpoint has two orders at most between two calls about it, and calls wait for theirs.
        let (orders, inbox) = channel();
        (Self { orders }, move || Files { folder, unwritten: BTreeMap::new() }.run(&inbox))
    }

    /// Has an endpoint's file written, or with `None` removed, soon. Returns at once.
    pub fn keep(&self, id: EndpointId, saved: Option<Box<SavedEndpoint>>) {
        self.order(Order::Keep(id, saved));
    }

    /// Has this called when everything that was ordered before is done.
    pub fn then(&self, call: impl FnOnce() + Send + 'static) {
        self.order(Order::Call(Box::new(call)));
    }

    fn order(&self, order: Order) {
        if self.orders.send(order).is_err() {
            error!("the thread that keeps the endpoints is gone: a bug");
        }
    }
}

/// The files. One per agent, owned by the thread.
struct Files {
    folder: PathBuf,
    /// What the disk has not taken yet.
    unwritten: BTreeMap<EndpointId, Option<Box<SavedEndpoint>>>,
}

impl Files {
    fn run(mut self, inbox: &Receiver<Order>) {
        while let Ok(order) = inbox.recv() {
            match order {
                Order::Call(call) => call(),
                Order::Keep(id, saved) => {
                    self.unwritten.insert(id, saved);
                    self.write();
                }
            }
        }
    }

    /// Writes what is not written, as far as it can be.
    fn write(&mut self) {
        let Self { folder, unwritten } = self;
        let mut failed = None;
        unwritten.retain(|id, saved| match write(folder, *id, saved.as_deref()) {
            Ok(()) => false,
            Err(error) => {
                failed = Some((*id, error));
                true
            }
        });
        if let Some((endpoint, error)) = failed {
            error!(
                folder = %folder.display(), %endpoint, %error, unwritten = unwritten.len(),
                "what is known of an endpoint is not kept; tried again with the next change"
            );
        }
    }
}

fn write(folder: &Path, id: EndpointId, saved: Option<&SavedEndpoint>) -> Result<(), SealError> {
    let path = folder.join(id.to_string());
    match saved {
        Some(saved) => match FORM.write(&path, saved, false) {
            Err(SealError::File(error)) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(folder)?;
                FORM.write(&path, saved, false)
            }
            result => result,
        },
        None => match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        },
    }
}

/// What the former agent kept, by number. A file that cannot be used is moved to `<number>.bad`, with a warning: its
/// endpoint is known by its device until the store tells its name.
pub fn load(folder: &Path) -> Vec<SavedEndpoint> {
    let files = match fs::read_dir(folder) {
        Ok(files) => files,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            warn!(folder = %folder.display(), %error, "kept endpoints cannot be read");
            return Vec::new();
        }
    };
    let mut kept = BTreeMap::new();
    for path in files.flatten().map(|file| file.path()) {
        // Others are halves of former writes, and those set aside.
        let Some(number) = path.file_name().and_then(|name| name.to_str()?.parse().ok()) else { continue };
        match FORM.read::<SavedEndpoint>(&path) {
            Ok(saved) if saved.id == EndpointId(number) => drop(kept.insert(number, saved)),
            Ok(saved) => set_aside(&path, &format!("it is of endpoint {}", saved.id)),
            Err(error) => set_aside(&path, &error.to_string()),
        }
    }
    info!(endpoints = kept.len(), "kept endpoints read");
    kept.into_values().collect()
}

fn set_aside(path: &Path, error: &str) {
    let aside = path.with_extension("bad");
    let moved = fs::rename(path, &aside).is_ok();
    warn!(path = %path.display(), error, aside = %aside.display(), moved, "kept endpoint not used");
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, thread};

    use datapath_plan::{Attachment, Mac};

    use super::*;

    fn saved(id: u32) -> SavedEndpoint {
        SavedEndpoint {
            id: EndpointId(id),
            name: format!("web-{id}").parse().unwrap(),
            labels: "app=web".parse().unwrap(),
            attachment: Some(Attachment::Netns {
                path: "/run/netns/web".into(),
                interface: "eth0".to_owned(),
            }),
            address: [10, 0, 0, 2].into(),
            mac: Mac([2, 0, 0, 0, 0, 1]),
            host_mac: Mac([2, 0, 0, 0, 0, 2]),
            ready: true,
            terminating: false,
        }
    }

    fn keep(keeper: &EndpointKeeper, id: u32) {
        keeper.keep(EndpointId(id), Some(Box::new(saved(id))));
    }

    /// What another agent would find when everything ordered so far is done.
    fn found(keeper: &EndpointKeeper, folder: &Path) -> Vec<SavedEndpoint> {
        let (tell, told) = mpsc::channel();
        let folder = folder.to_owned();
        keeper.then(move || tell.send(load(&folder)).unwrap());
        told.recv().unwrap()
    }

    #[test]
    fn what_is_answered_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("endpoints");
        assert_eq!(load(&path), [], "the first start");
        let (keeper, run) = EndpointKeeper::new(path.clone());
        let thread = thread::spawn(run);
        for id in [2, 10, 1] {
            keep(&keeper, id);
        }
        assert_eq!(found(&keeper, &path), [saved(1), saved(2), saved(10)]);
        keeper.keep(EndpointId(2), None);
        keeper.keep(EndpointId(7), None);
        assert_eq!(found(&keeper, &path), [saved(1), saved(10)]);
        assert_eq!(fs::read_dir(&path).unwrap().count(), 2, "nothing is left beside them");
        drop(keeper);
        thread.join().unwrap();
    }

    #[test]
    fn a_disk_that_takes_nothing_for_a_while_is_answered_and_has_all_later() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("endpoints");
        // A file where the folder should be.
        fs::write(&path, "").unwrap();
        let (keeper, run) = EndpointKeeper::new(path.clone());
        let thread = thread::spawn(run);
        keep(&keeper, 1);
        keep(&keeper, 2);
        assert_eq!(found(&keeper, &path), []);
        fs::remove_file(&path).unwrap();
        keep(&keeper, 3);
        assert_eq!(found(&keeper, &path), [saved(1), saved(2), saved(3)]);
        drop(keeper);
        thread.join().unwrap();
    }

    #[test]
    fn a_file_that_cannot_be_used_is_moved_aside_and_its_neighbours_count() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        FORM.write(&path.join("1"), &saved(1), false).unwrap();
        FORM.write(&path.join("2"), &saved(1), false).unwrap();
        fs::write(path.join("3"), "").unwrap();
        fs::write(path.join("4.new"), "half").unwrap();
        assert_eq!(load(path), [saved(1)]);
        for aside in ["2.bad", "3.bad"] {
            assert!(path.join(aside).exists(), "{aside}");
        }
    }
}
