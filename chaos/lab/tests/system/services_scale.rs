//! Many services: applied, applied again, deleted; how long that takes, and that nothing is left behind.
//!
//! `WARREN_SCALE_SERVICES=10000` (`make test-scale`) creates as many; every run creates a few hundred.

use std::{
    collections::BTreeMap,
    fmt::Write,
    fs,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use chaos_lab::{ask, wait};

use crate::support::{SOON, TestLab, use_scale_programs};

/// Services of an ordinary run.
const SERVICES: usize = 200;
/// The kernel's map of frontends.
const FRONTENDS: &str = "WARREN_FRONT_V4";
/// The promised time to apply 10,000 services, from the file to the kernel.
const PROMISED: Duration = Duration::from_secs(10);

/// Services of one port and two backends outside the fleet.
fn manifests(count: usize, port: u16) -> String {
    let mut text = String::new();
    for index in 0..count {
        let (high, low) = (index / 250, index % 250 + 1);
        writeln!(
            text,
            "apiVersion: warren/v1\nkind: Service\nmetadata: {{name: s{index}}}\nspec:\n  ports: [{{port: {port}}}]\n  \
             backends: [{{address: 192.168.{high}.{low}}}, {{address: 172.16.{high}.{low}}}]\n---"
        )
        .unwrap();
    }
    text
}

/// Entries of the kernel's service maps, once the agent is idle.
fn in_kernel(lab: &TestLab) -> Result<BTreeMap<String, u64>> {
    let status = ask(lab.api("n1").status())?;
    ensure!(status.apply.pending == 0, "{} are pending", status.apply.pending);
    let maps = ask(lab.api("n1").maps())?.items.into_iter();
    Ok(maps.filter_map(|map| Some((map.name, map.entries?))).collect())
}

#[test]
fn services_are_applied_in_bulk() {
    let scale = std::env::var("WARREN_SCALE_SERVICES").ok().and_then(|text| text.parse().ok());
    let wanted: usize = scale.unwrap_or(SERVICES);
    let Some(lab) = TestLab::up_with("svc-many", 1, 1, use_scale_programs) else { return };
    let before = wait::until("the kernel at rest", SOON, || in_kernel(&lab)).unwrap();
    let file = lab.name().folder().join("services.yaml");
    let path = file.to_str().unwrap();
    let run = |what: &str, text: String, arguments: &[&str], word: &str, frontends: usize| {
        fs::write(&file, text).unwrap();
        let start = Instant::now();
        let (code, stdout, stderr) = lab.warren("n1", arguments);
        let answered = start.elapsed();
        assert_eq!((code, stderr.as_str()), (0, ""), "{arguments:?}");
        assert_eq!(stdout.lines().filter(|line| line.contains(word)).count(), wanted, "{word}");
        let expected = (frontends as u64) + before[FRONTENDS];
        wait::until("the kernel to follow", SOON, || {
            let found = in_kernel(&lab)?[FRONTENDS];
            ensure!(found == expected, "{found} frontends");
            Ok(())
        })
        .unwrap();
        let took = start.elapsed();
        println!("{wanted} services {what}: answered after {answered:?}, in the kernel after {took:?}");
        took
    };
    let made = run("made", manifests(wanted, 80), &["apply", "-f", path], "created", wanted);
    assert!(scale.is_none() || made < PROMISED, "{made:?}");
    run("applied again", manifests(wanted, 80), &["apply", "-f", path], "unchanged", wanted);
    run("changed", manifests(wanted, 81), &["apply", "-f", path], "changed", wanted);
    run("deleted", manifests(wanted, 81), &["delete", "-f", path], "deleted", 0);
    // The next plan removes what was replaced.
    lab.endpoint("n1", "next", "app=next");
    wait::until("the kernel as before", SOON, || {
        let after = in_kernel(&lab)?;
        for name in before.keys().filter(|name| name.contains("FRONT") || name.contains("SLOTS")) {
            ensure!(before[name] == after[name], "{name}: {} before, {} after", before[name], after[name]);
        }
        Ok(())
    })
    .unwrap();
}
