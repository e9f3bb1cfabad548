//! Fleets of real agents, on real etcd and real traffic: what issue 2 says that a fleet must show.
//!
//! Each test makes labs of its own, named after its process, and takes them down also when it fails. Without
//! root, BPF or etcd a test prints `skipped: why`.

mod away;
mod doctor;
mod drift;
mod faults;
mod fleet_claims;
mod forgery;
mod health;
mod lab_itself;
mod leaks;
mod load;
mod mistakes;
mod modes;
mod probes;
mod restart;
mod scenarios;
mod servers;
mod services;
mod services_http;
mod services_outside;
mod services_restart;
mod services_scale;
mod services_xdp;
mod sockets;
mod start;
mod support;
mod traffic;
mod upgrade;
