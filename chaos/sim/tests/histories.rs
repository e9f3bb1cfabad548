//! Random histories of fleets, and the proof that their checkers find what they are for.

use std::{ops::Range, time::Duration};

use chaos_sim::{ALL, Course, run};

/// One seed from the environment, or these.
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
fn any_history_converges() {
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
