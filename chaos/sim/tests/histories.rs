//! Random histories of fleets, and the proof that the checkers find planted bugs.

use std::{ops::Range, time::Duration};

use chaos_sim::{ALL, Course, Log, Sim, added, run};
use node_recorder::{Replay, read};

/// One seed from the environment, or the default range.
fn seeds(usual: Range<u64>) -> Range<u64> {
    let number = |name| std::env::var(name).ok().and_then(|text: String| text.parse().ok());
    match (number("WARREN_SEED"), number("WARREN_SIM_SEEDS")) {
        (Some(seed), _) => seed..seed + 1,
        (None, Some(count)) => 0..count,
        (None, None) => usual,
    }
}

/// `WARREN_SEED=n` runs one seed alone, `WARREN_SIM_SEEDS=n` the first n.
#[test]
fn history_converges() {
    let mut courses: Vec<Course> = Vec::new();
    for seed in seeds(0..60) {
        match run(seed, None) {
            Ok(course) => courses.push(course),
            Err(failure) => {
                panic!(
                    "{failure}\nagain: WARREN_SEED={seed} cargo test -p chaos-sim --test histories any_history"
                )
            }
        }
    }
    let slowest = courses.iter().map(|course| course.converged_after).max().unwrap_or_default();
    let lasted: Duration = courses.iter().map(|course| course.lasted).sum();
    let nodes: usize = courses.iter().map(|course| course.nodes).sum();
    println!("{} histories of {nodes} nodes, {lasted:?} in all; converged within {slowest:?}", courses.len());
}

/// A history with endpoints and restarts: its log replays to the last command, and a flipped bit is found.
#[test]
fn log_replays_and_a_flipped_bit_is_found() {
    let mut sim = Sim::new(2, 1);
    sim.agent(1).log = Some(Log::new(1));
    sim.restart(1);
    sim.settle();
    for endpoint in ["a", "b", "c"] {
        added(sim.add(1, endpoint, "app=a"));
        added(sim.add(2, endpoint, "app=b"));
        sim.restart(1);
        sim.advance(Duration::from_secs(100));
    }
    let log = sim.agents[0].log.clone().expect("kept");
    let events = log.replay().expect("as in life");
    assert!(events > 50, "{events}");
    let segments = log.segments();
    assert!(segments.len() >= 4, "one for each life");
    let replay = |bytes: &[u8]| {
        let mut replay = Replay::default();
        let segment = read(bytes).map_err(|error| error.to_string())?;
        segment.entries.into_iter().for_each(|entry| drop(replay.tell(entry)));
        // With checkpoints: the log may end between the first checkpoint and the event after it.
        Ok::<_, String>((replay.events + replay.checkpoints, segment.damaged_at, replay.difference))
    };
    let bytes = &segments[1];
    let (whole, undamaged, same) = replay(bytes).expect("a segment");
    assert_eq!((undamaged, same), (None, None));
    for index in (0..bytes.len()).step_by(97) {
        let mut flipped = bytes.clone();
        flipped[index] ^= 1 << (index % 8);
        match replay(&flipped) {
            // In the header only the text of the version may differ: no record depends on it.
            Ok((events, damaged, difference)) => {
                assert_eq!(difference, None);
                assert!(
                    damaged.is_some_and(|at| at <= index) && events < whole || index < 14,
                    "byte {index}"
                );
            }
            Err(error) => assert!(index < 9, "{error}"),
        }
        // A crash leaves the records that were complete before it.
        let (events, damaged, difference) = replay(&bytes[..index.max(14)]).expect("a begin");
        assert!(events < whole && difference.is_none() && (damaged.is_some() || events > 0 || index < 14));
    }
}

#[test]
fn planted_bugs_are_found() {
    let mut missed = Vec::new();
    for bug in ALL {
        match seeds(0..60).find_map(|seed| run(seed, Some(bug)).err()) {
            Some(failure) => println!("{bug:?}: seed {}, {}", failure.seed, failure.violation),
            None => missed.push(bug),
        }
    }
    assert!(missed.is_empty(), "not found: {missed:?}");
}
