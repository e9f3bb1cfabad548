//! Fleets of real agents with real etcd and real traffic: the requirements of issue 2.
//!
//! Each test creates its own labs, named after its process, and takes them down, also when it fails. Without root,
//! BPF or etcd a test prints `skipped: reason`.

mod audit;
mod doctor;
mod etcd_outage;
mod faults;
mod fleet_claims;
mod health;
mod invalid_input;
mod lab;
mod leaks;
mod load;
mod modes;
mod probes;
mod restart;
mod scenarios;
mod servers;
mod services;
mod services_external;
mod services_http;
mod services_restart;
mod services_scale;
mod services_xdp;
mod sockets;
mod spoofing;
mod start;
mod support;
mod traffic;
mod upgrade;
