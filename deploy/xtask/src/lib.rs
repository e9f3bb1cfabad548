//! What the repository's rules are checked against: crates, files, modules, and the table of allowed imports.
//!
//! The rules themselves are the tests of this crate. This crate never changes a file, and no other crate depends on it. It
//! panics if the repository cannot be read: only tests call it, and the panic is their failure.

mod crates;
mod enums;
mod files;
mod modules;
mod table;

pub use crates::{Dependency, DependencyKind, Package, Target, dependency_tree, workspace};
pub use enums::{unmentioned, variants};
pub use files::{extension, files, read, root};
pub use modules::Imports;
pub use table::{Kind, Row, import_table};
