//! The log of an agent replays to the same commands, across restarts and kills.

use std::{fs, path::PathBuf};

use node_recorder::{Replay, read};

use crate::stage::Stage;

fn segments(stage: &Stage) -> Vec<PathBuf> {
    let folder = fs::read_dir(stage.path("state/recorder")).unwrap();
    let mut files: Vec<PathBuf> = folder.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn recorded_run_replays_to_the_same_commands() {
    let Some(mut stage) = Stage::new() else { return };
    let agent = stage.start_ready();
    stage.add_endpoint("a");
    let (b, _) = stage.add_endpoint("b");
    agent.stop();
    let agent = stage.start_ready();
    assert!(stage.ask(stage.client().endpoint_delete(&b.name)).existed);
    // The events up to the kill are on disk.
    drop(agent);
    let agent = stage.start_ready();
    stage.add_endpoint("c");
    agent.stop();

    let mut replay = Replay::default();
    let files = segments(&stage);
    assert_eq!(files.len(), 3, "one for each start");
    for file in files {
        let segment = read(&fs::read(&file).unwrap()).unwrap();
        assert_eq!(segment.damaged_at, None, "{}", file.display());
        segment.entries.into_iter().for_each(|entry| drop(replay.tell(entry)));
    }
    assert_eq!((replay.difference, replay.lost, replay.skipped, replay.checkpoints), (None, 0, 0, 3));
    assert!(replay.events > 30, "{}", replay.events);
    println!("{} events replayed", replay.events);
}
