//! Kinds of objects that manifests describe, and the types of their requests.
//!
//! To add a kind, implement [`Kind`] for the type of its spec, and add a line to `registry.rs`. Manifests, the client, and
//! `warren apply`, `get`, `diff` and `delete` follow.

mod registry;
mod service;

use std::fmt;

use identity::ObjectName;
pub use registry::{KindName, Object, Spec, Written};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use utoipa::ToSchema;

/// A kind of objects, implemented by the type of their spec.
///
/// The agent serves each object at `/v1/COLLECTION/NAME`: `PUT` writes it, `GET` reads it, `DELETE` deletes it.
pub trait Kind: Serialize + DeserializeOwned {
    /// The kind in commands and messages: `service`.
    const WORD: &'static str;
    /// The kind's collection in the paths of the API: `services`.
    const COLLECTION: &'static str;
    /// The headings of a listing's columns.
    const COLUMNS: &'static [&'static str];
    /// The body of `PUT`.
    type Put: Serialize;
    /// The answer to `PUT`.
    type Written: DeserializeOwned;
    /// The answer to `GET`.
    type Object: DeserializeOwned;

    /// All mistakes that the types allow, each with its path: `spec.ports[0].port: 0 is none`.
    fn mistakes(&self) -> Vec<String>;

    /// The spec with all defaults filled in and all lists in order: specs of equal meaning are equal.
    #[must_use]
    fn normalise(self) -> Self;

    /// The request to write the spec, whatever revision is in etcd.
    fn put(self) -> Self::Put;

    /// The name and the spec of an object.
    fn name_and_spec(object: Self::Object) -> (ObjectName, Self);

    /// One line about what was written: `service web created: virtual IP 10.201.0.5`.
    fn describe(written: &Self::Written) -> String;

    /// The rows of an object in a listing, one cell for each of `COLUMNS`.
    fn rows(object: &Self::Object) -> Vec<Vec<String>>;
}

/// The effect of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The object did not exist before.
    Created,
    /// The object's spec differs from the one before.
    Changed,
    /// The object had this spec already.
    Unchanged,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Created => "created",
            Self::Changed => "changed",
            Self::Unchanged => "unchanged",
        })
    }
}

/// The answer to a deletion: afterwards the object does not exist.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Deleted {
    /// Whether the object existed before.
    pub existed: bool,
}
