//! The only crate that names aya and rtnetlink.

pub mod object;
