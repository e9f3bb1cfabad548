//! Packet tests: a packet and maps in; the verdict, the bytes out, the events, and exactly which map entries
//! and counters changed (BPF_PROG_TEST_RUN, kernel documentation `bpf/bpf_prog_run.rst`).
//!
//! Each test has its own maps, pinned nowhere: tests run in parallel and leave nothing behind.

mod check;
mod clock;
mod dsr;
mod expected;
mod flow;
mod frame;
mod from_endpoint;
mod from_host;
mod from_tunnel;
mod icmp;
#[expect(dead_code, reason = "the benches use the rest")]
mod kernel;
mod masquerade;
mod namespace;
mod nodeport;
mod routing;
mod service;
mod stack_depth;
mod to_endpoint;
mod verifier;
mod wire;
mod world;
mod xdp;
