//! The datapath against the real kernel, each test in namespaces and with pins of its own.

mod applying;
mod cgroup;
mod cleaning;
mod collecting;
mod damage;
mod hooks;
mod opening;
mod outside;
mod reading;
mod routing;
mod services;
mod sockets;
mod stage;
mod traffic;
mod underlay;
mod watching;
mod world;
mod xdp;
