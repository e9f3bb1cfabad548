//! The part of fuzzing in every test run: the replay of known inputs, and a bounded number of mutations.
//!
//! A failure names the input; as a file in `corpora/<target>/` it stays a test for ever. Other mutations than last
//! time: `WARREN_FUZZ_SEED=n`; more of them: `WARREN_FUZZ_FACTOR=n`.

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

use chaos_fuzz::{TARGETS, Target, corpus, mutate::mutate};
use fastrand::Rng;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn run(target: &Target, input: &[u8], origin: &str) {
    if catch_unwind(AssertUnwindSafe(|| (target.run)(input))).is_err() {
        let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzz-{}", target.name));
        fs::write(&kept, input).expect("keep the input");
        panic!("{} fails on {origin}, kept as {}", target.name, kept.display());
    }
}

/// Replays the known inputs, then mutates them.
fn short(name: &str) {
    let target = chaos_fuzz::find(name).expect("the target is there");
    let seeds = (target.seeds)();
    assert!(!seeds.is_empty(), "{name} has no real input to begin with");
    let found = corpus::read(target).expect("read the corpus");
    for (index, seed) in seeds.iter().enumerate() {
        run(target, seed, &format!("seed {index}"));
    }
    for (file, input) in &found {
        run(target, input, file);
    }
    let inputs: Vec<Vec<u8>> = seeds.into_iter().chain(found.into_iter().map(|(_, input)| input)).collect();
    let seed = setting("WARREN_FUZZ_SEED", 1);
    let mut rng = Rng::with_seed(seed);
    for round in 0..u64::from(target.rounds) * setting("WARREN_FUZZ_FACTOR", 1) {
        let input = mutate(&mut rng, &inputs, target.words);
        run(target, &input, &format!("mutation {round} of seed {seed}"));
    }
}

macro_rules! targets {
    ($($test:ident)*) => {
        $(#[test]
        fn $test() {
            short(&stringify!($test).replace('_', "-"));
        })*

        #[test]
        fn targets_are_all_listed() {
            let here = [$(stringify!($test).replace('_', "-")),*];
            let all: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
            assert_eq!(all, here);
        }
    };
}

targets! {
    api config endpoint_file event facts gossip handle kernel_values key_file label manifest netlink
    packet record_key record_value
    snapshot sockets store_file
}

/// The engine finds each of these planted bugs by mutation alone.
#[test]
fn planted_bugs_are_found() {
    let finds = |bug: fn(&[u8]) -> bool, inputs: &[&[u8]], words: &[&str]| {
        let inputs: Vec<Vec<u8>> = inputs.iter().map(|input| input.to_vec()).collect();
        let mut rng = Rng::with_seed(1);
        (0..20_000).any(|_| bug(&mutate(&mut rng, &inputs, words)))
    };
    assert!(finds(|bytes| bytes.len() == 3, &[b"four"], &[]), "a length that is too short");
    assert!(finds(|bytes| bytes.starts_with(b"abX"), &[b"abcd"], &[]), "one other byte");
    assert!(finds(|bytes| bytes.len() > 12, &[b"four"], &[]), "a length that is too long");
    assert!(!finds(|bytes| bytes.len() > 1 << 16, &[b"four"], &[]), "inputs stay short");
    assert!(finds(|bytes| bytes == b"{\"v\":2}", &[b"{\"v\":1}"], &[]), "another version");
    assert!(
        finds(|bytes| String::from_utf8_lossy(bytes).contains("10.0.0.0/33"), &[b"10.0.0.0/8"], &["/33"]),
        "a word in its place"
    );
}
