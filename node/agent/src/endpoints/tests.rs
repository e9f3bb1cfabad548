//! What another agent finds on disk, and who waits for which file.

use std::{
    sync::mpsc,
    thread::{self, JoinHandle},
};

use datapath_plan::{Attachment, Mac};

use super::*;

fn saved(id: u32) -> SavedEndpoint {
    SavedEndpoint {
        id: EndpointId(id),
        name: format!("web-{id}").parse().unwrap(),
        labels: "app=web".parse().unwrap(),
        attachment: Some(Attachment::Netns { path: "/run/netns/web".into(), interface: "eth0".to_owned() }),
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

fn start(folder: &Path) -> (EndpointKeeper, Vec<JoinHandle<()>>) {
    let (keeper, writers) = EndpointKeeper::new(folder.to_owned(), &[]);
    (keeper, writers.into_iter().map(|writer| thread::spawn(|| writer.run())).collect())
}

fn stop(keeper: EndpointKeeper, writers: Vec<JoinHandle<()>>) {
    drop(keeper);
    writers.into_iter().for_each(|writer| writer.join().unwrap());
}

/// What another agent would find when all files are written.
fn found(keeper: &EndpointKeeper, folder: &Path) -> Vec<SavedEndpoint> {
    let (tell, told) = mpsc::channel();
    let folder = folder.to_owned();
    keeper.when_written((1..=20).map(EndpointId), move || tell.send(load(&folder)).unwrap());
    told.recv().unwrap()
}

#[test]
fn endpoint_files_are_there_when_calls_are_answered() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("endpoints");
    assert_eq!(load(&path), [], "the first start");
    let (keeper, writers) = start(&path);
    for id in [2, 10, 1] {
        keep(&keeper, id);
    }
    assert_eq!(found(&keeper, &path), [saved(1), saved(2), saved(10)]);
    keeper.keep(EndpointId(2), None);
    keeper.keep(EndpointId(7), None);
    assert_eq!(found(&keeper, &path), [saved(1), saved(10)]);
    assert_eq!(fs::read_dir(&path).unwrap().count(), 2, "nothing is left beside them");
    stop(keeper, writers);
}

#[test]
fn endpoint_files_have_the_newest_content_whatever_the_order_of_writers() {
    let folder = tempfile::tempdir().unwrap();
    let (keeper, writers) = start(folder.path());
    for round in 0..50 {
        for id in 1..=20 {
            keeper.keep(EndpointId(id), Some(Box::new(SavedEndpoint { ready: round % 2 == 0, ..saved(id) })));
            if id % 3 == 0 {
                keeper.keep(EndpointId(id), None);
            }
        }
    }
    let expected: Vec<_> =
        (1..=20).filter(|id| id % 3 != 0).map(|id| SavedEndpoint { ready: false, ..saved(id) }).collect();
    assert_eq!(found(&keeper, folder.path()), expected);
    stop(keeper, writers);
}

#[test]
fn endpoint_answer_waits_for_its_own_file_only() {
    let folder = tempfile::tempdir().unwrap();
    let (keeper, writers) = start(folder.path());
    // Opening a FIFO for writing blocks until somebody reads: a disk that holds up one file.
    let held = folder.path().join("7.new");
    nix::unistd::mkfifo(&held, nix::sys::stat::Mode::S_IRWXU).unwrap();
    keep(&keeper, 7);
    keep(&keeper, 8);
    let (tell, told) = mpsc::channel();
    for id in [7, 8] {
        let tell = tell.clone();
        keeper.when_named_written(&saved(id).name, move || tell.send(id).unwrap());
    }
    assert_eq!(told.recv(), Ok(8));
    assert_eq!(load(folder.path()), [saved(8)]);
    assert_eq!(told.try_recv(), Err(mpsc::TryRecvError::Empty), "the file of 7 is not written");
    fs::read(&held).unwrap();
    assert_eq!(told.recv(), Ok(7));
    stop(keeper, writers);
}

#[test]
fn endpoint_deletion_is_answered_when_the_file_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    FORM.write(&folder.path().join("1"), &saved(1), false).unwrap();
    let (keeper, writers) = EndpointKeeper::new(folder.path().to_owned(), &[saved(1)]);
    keeper.keep(EndpointId(1), None);
    let (tell, told) = mpsc::channel();
    keeper.when_named_written(&saved(1).name, move || tell.send(()).unwrap());
    assert_eq!(told.try_recv(), Err(mpsc::TryRecvError::Empty), "nobody writes yet");
    let writers = writers.into_iter().map(|writer| thread::spawn(|| writer.run())).collect();
    told.recv().unwrap();
    assert_eq!(load(folder.path()), []);
    stop(keeper, writers);
}

#[test]
fn endpoint_files_that_the_disk_refused_are_written_later() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("endpoints");
    // A file where the folder should be.
    fs::write(&path, "").unwrap();
    let (keeper, writers) = start(&path);
    keep(&keeper, 1);
    keep(&keeper, 2);
    assert_eq!(found(&keeper, &path), [], "answered all the same");
    fs::remove_file(&path).unwrap();
    keep(&keeper, 3);
    assert_eq!(found(&keeper, &path), [saved(1), saved(2), saved(3)]);
    stop(keeper, writers);
}

#[test]
fn endpoint_file_that_cannot_be_used_is_moved_aside_and_its_neighbours_count() {
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
