//! What the repository's rules are checked against: its crates, its files, its table of allowed imports.
//!
//! The rules themselves are the tests of this crate. It never changes a file, and nothing depends on it.
//! It panics where the repository cannot be read: only tests call it, and that is their failure.

mod crates;
mod files;
mod source;
mod table;

pub use crates::{Dependency, DependencyKind, Package, dependency_tree, workspace};
pub use files::{extension, files, read, root};
pub use source::shipped_code;
pub use table::{Kind, Row, import_table};
