//! The protocols one by one over the in-memory store: what is written, what is refused, and in which words.

mod bench;
mod guards;
mod identities;
mod machines;
mod services;
