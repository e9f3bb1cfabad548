//! P3 and liveness of the ownership protocols, over many seeds; and that the checker would notice.
//!
//! `WARREN_SEED=n` runs one seed, for a failure seen elsewhere.

mod world;

use world::{Seen, World, bug};

/// Enough for every kind of event to happen several times in a run.
const STEPS: usize = 600;
const SEEDS: u64 = 300;
/// Within this many runs each planted bug has to be found (the rarest takes 441).
const SEEDS_PER_BUG: u64 = 3_000;

fn add(sum: Seen, run: Seen) -> Seen {
    Seen {
        crashes: sum.crashes + run.crashes,
        removals: sum.removals + run.removals,
        ambiguous: sum.ambiguous + run.ambiguous,
        late: sum.late + run.late,
        conflicts: sum.conflicts + run.conflicts,
        collected: sum.collected + run.collected,
        foundings: sum.foundings + run.foundings,
        settled: sum.settled + run.settled,
    }
}

#[test]
fn ownership_holds_under_crashes_ambiguity_and_late_writes() {
    let only: Option<u64> =
        std::env::var("WARREN_SEED").ok().map(|seed| seed.parse().expect("WARREN_SEED is a number"));
    let seeds = only.map_or(0..=SEEDS, |seed| seed..=seed);
    let mut sum = Seen::default();
    for seed in seeds {
        match World::new(seed, None).run(STEPS) {
            Ok(run) => sum = add(sum, run),
            Err(violation) => panic!("WARREN_SEED={seed}: {violation}"),
        }
    }
    println!("{sum:?}");
    let kinds = [
        sum.crashes,
        sum.removals,
        sum.ambiguous,
        sum.late,
        sum.conflicts,
        sum.collected,
        sum.foundings,
        sum.settled,
    ];
    assert!(
        only.is_some() || kinds.iter().all(|count| *count > 0),
        "a kind of trouble never happened: {sum:?}"
    );
}

#[test]
fn planted_bugs_are_found() {
    for bug in bug::ALL {
        let found =
            (0..SEEDS_PER_BUG).find_map(|seed| Some((seed, World::new(seed, Some(bug)).run(STEPS).err()?)));
        let (seed, violation) =
            found.unwrap_or_else(|| panic!("{bug:?} was not found in {SEEDS_PER_BUG} runs"));
        println!("{bug:?}: seed {seed}: {violation}");
    }
}
