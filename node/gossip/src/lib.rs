//! The only crate that names chitchat: typed facts over an authenticated transport.
