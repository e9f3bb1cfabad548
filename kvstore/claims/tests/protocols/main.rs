//! The protocols one by one over the in-memory store: what is written, what is refused, and in which words.

mod bench;
mod blocks;
mod fleets;
mod guards;
mod identities;
mod machines;
mod restores;
mod services;
