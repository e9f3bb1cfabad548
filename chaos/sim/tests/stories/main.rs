//! A simulated fleet: stories with a fixed course, and random histories.

mod calls;
mod endpoints;
mod kernel;
mod nodes;
mod random;
mod reserve;
mod snapshot;
mod store;
