//! The datapath against the real kernel; each test has its own namespaces and pins.

mod apply;
mod cgroup;
mod cleanup;
mod collect;
mod dump;
mod hooks;
mod masquerade;
mod nodeport;
mod open;
mod reject;
mod repair;
mod routing;
mod services;
mod sockets;
mod stage;
mod traffic;
mod underlay;
mod watch;
mod xdp;
