//! `check()`: runs a program on a packet and compares everything it did with everything it should have done.

use std::collections::BTreeMap;

use datapath_abi::{Direction, Event, FlowEntry, FlowKey, V4, counter_slot};
use datapath_linux::object::Program;

use crate::{
    expected::Expected,
    kernel::{Kernel, Packet, kernel_or_skip},
    world,
};

/// The effects of a run.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    code: u32,
    bytes: Vec<u8>,
    /// Flow entries that changed; `None` for one that was removed.
    flows: BTreeMap<FlowKey<V4>, Option<FlowEntry>>,
    /// Increments: packets and bytes, by slot.
    counters: BTreeMap<u32, (u64, u64)>,
    events: Vec<Event>,
}

/// A kernel with populated maps; without BPF the test ends here, with the reason printed.
#[macro_export]
macro_rules! populated_kernel {
    () => {
        match $crate::check::populated_kernel() {
            Some(kernel) => kernel,
            None => return,
        }
    };
}

pub fn populated_kernel() -> Option<Kernel> {
    let mut kernel = kernel_or_skip()?;
    world::populate_maps(&mut kernel);
    Some(kernel)
}

pub fn direction_of(program: Program) -> Direction {
    match program {
        Program::FromEndpoint | Program::FromHost | Program::ToNetdev => Direction::Egress,
        Program::ToEndpoint | Program::FromTunnel | Program::FromNetdev => Direction::Ingress,
    }
}

/// Runs the program and asserts that exactly the expected effects happened: no other byte, entry, counter or event.
#[track_caller]
pub fn check(kernel: &mut Kernel, program: Program, packet: &(impl Packet + ?Sized), expected: Expected) {
    let before = kernel.snapshot();
    let ran = kernel.run(program, packet, expected.tunnel);
    let after = kernel.snapshot();

    assert_eq!(before.written, after.written, "programs do not write maps that user space owns");
    let mut flows = BTreeMap::new();
    for key in before.flows.keys().chain(after.flows.keys()) {
        if before.flows.get(key) != after.flows.get(key) {
            flows.insert(*key, after.flows.get(key).copied());
        }
    }
    let counters = after.counters_since(&before);
    let actual = Outcome { code: ran.code, bytes: ran.bytes, flows, counters, events: kernel.events() };
    let expected = expected.outcome(direction_of(program));
    assert_eq!(actual, expected, "\n left: what happened\nright: what should have happened");
}

impl Expected {
    fn outcome(self, direction: Direction) -> Outcome {
        let outer_src_v4 = self.tunnel.map_or_else(Default::default, |tunnel| tunnel.underlay);
        let with_origin = |event| Event { direction: direction as u8, outer_src_v4, ..event };
        Outcome {
            code: self.verdict,
            counters: self
                .counted
                .map(|(reason, bytes)| (counter_slot(reason, direction), (1, bytes)))
                .into_iter()
                .collect(),
            bytes: self.bytes,
            flows: self.flows,
            events: self.events.into_iter().map(with_origin).collect(),
        }
    }
}
