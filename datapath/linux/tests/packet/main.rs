//! Packet tests: a packet and maps in; the verdict, the bytes out, the events, and exactly which map entries
//! and counters changed (BPF_PROG_TEST_RUN, kernel documentation `bpf/bpf_prog_run.rst`).
//!
//! Each test has maps of its own, pinned nowhere: they run side by side and leave nothing behind.

mod check;
mod direct;
mod flow_life;
mod frame;
mod from_endpoint;
mod from_host;
mod from_overlay;
mod icmp;
#[expect(dead_code, reason = "benches measure by it as well")]
mod kernel;
mod load;
mod masquerade;
mod namespace;
mod outside;
mod routing;
mod service;
mod stack;
mod to_endpoint;
mod world;
mod xdp;
