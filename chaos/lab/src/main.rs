//! A fleet on one machine.

fn main() {}
