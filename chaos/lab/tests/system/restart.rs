//! An agent is killed, or asked to end, and started again, under traffic: no packet is lost, no map is new.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
    process::{Child, Stdio},
    sync::{Arc, Mutex},
    thread,
};

use anyhow::ensure;
use chaos_lab::{Endpoint, ask, process, wait};
use nix::sys::signal::Signal;

use crate::support::{SOON, TestLab};

#[test]
fn agents_come_and_go_and_flows_go_on() {
    let Some(lab) = TestLab::up("restart", 2, 1) else { return };
    let from = lab.endpoint("n1", "from", "app=from");
    let to = lab.endpoint("n2", "to", "app=to");
    lab.wait_in_ipcache("n1", [&to]);
    lab.wait_in_ipcache("n2", [&from]);
    let maps = ["n1", "n2"].map(|node| map_ids(&lab, node));

    let pings = Pings::start(&lab, &from, &to);
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        for node in ["n1", "n2"] {
            pings.wait_for_more(20);
            lab.end(node, signal).unwrap();
            pings.wait_for_more(20);
            lab.start_agent(node).unwrap();
            lab.wait_node_ready(node).unwrap();
        }
    }
    pings.wait_for_more(20);
    pings.end_without_loss();

    assert_eq!(["n1", "n2"].map(|node| map_ids(&lab, node)), maps, "maps are adopted, never made again");
    for node in ["n1", "n2"] {
        let (code, text, _) = lab.warren(node, &["state", "diff"]);
        assert_eq!(code, 0, "{node}: {text}");
        let endpoints = ask(lab.api(node).endpoints()).unwrap();
        assert_eq!(endpoints.items.len(), 1, "{node} still has its endpoint");
    }
    // What was adopted can still be changed.
    let late = lab.endpoint("n1", "late", "app=late");
    lab.wait_in_ipcache("n2", [&late]);
    chaos_lab::probe::ping(&late.namespace, to.address, 2).unwrap();
}

/// The kernel's numbers of a node's maps.
fn map_ids(lab: &TestLab, node: &str) -> BTreeMap<String, u32> {
    let maps = ask(lab.api(node).maps()).unwrap();
    assert!(!maps.items.is_empty());
    maps.items.into_iter().map(|map| (map.name, map.id)).collect()
}

/// Pings that go on until they are ended, 10 ms apart.
struct Pings {
    ping: Child,
    answered: Arc<Mutex<Vec<u32>>>,
    reader: thread::JoinHandle<()>,
}

impl Pings {
    fn start(lab: &TestLab, from: &Endpoint, to: &Endpoint) -> Self {
        let target = format!("{}/{}", from.node, from.name);
        let mut command = lab.command(&target, "ping").unwrap();
        command.args(["-n", "-i", "0.01", &to.address.to_string()]);
        let mut ping = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(ping.stdout.take().unwrap());
        let answered = Arc::new(Mutex::new(Vec::new()));
        let reader = thread::spawn({
            let answered = Arc::clone(&answered);
            move || {
                for line in output.lines() {
                    let line = line.unwrap();
                    if let Some((_, rest)) = line.split_once("icmp_seq=") {
                        let digits = rest.split(' ').next().unwrap();
                        assert!(line.contains(" bytes from "), "{line}");
                        answered.lock().unwrap().push(digits.parse().unwrap());
                    }
                }
            }
        });
        Self { ping, answered, reader }
    }

    fn wait_for_more(&self, count: usize) {
        let wanted = self.answered.lock().unwrap().len() + count;
        wait::until(&format!("{count} more pings to be answered"), SOON, || {
            let answered = self.answered.lock().unwrap().len();
            ensure!(answered >= wanted, "{answered} of {wanted}");
            Ok(())
        })
        .unwrap();
    }

    /// Every ping up to the last that was answered must have been answered, once.
    fn end_without_loss(mut self) {
        process::signal(self.ping.id() as i32, Signal::SIGINT).unwrap();
        self.ping.wait().unwrap();
        self.reader.join().unwrap();
        let mut answered = std::mem::take(&mut *self.answered.lock().unwrap());
        answered.sort_unstable();
        let last = *answered.last().unwrap();
        let lost: Vec<u32> = (1..=last).filter(|number| answered.binary_search(number).is_err()).collect();
        assert!(lost.is_empty(), "{lost:?} of {last} pings are lost");
        assert_eq!(answered.len(), last as usize, "answered twice");
    }
}
