//! A simulated fleet: stories with a fixed course, and random histories.

mod endpoints;
mod kernel;
mod nodes;
mod random;
mod snapshot;
mod store;
