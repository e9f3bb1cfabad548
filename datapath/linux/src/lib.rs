//! The only crate that names aya and rtnetlink.
