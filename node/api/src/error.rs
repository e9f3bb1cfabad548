//! The body of every answer that is no success.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What kind of error: decides the HTTP status and the command line's exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorKind {
    /// The request makes no sense as it is.
    Invalid,
    /// There is no such thing, or no such path.
    NotFound,
    /// The path does not take this method.
    MethodNotAllowed,
    /// Something else is in the way.
    Conflict,
    /// The body is longer than [`crate::MAX_BODY_BYTES`].
    TooLarge,
    /// Something is used up: addresses, blocks, a table.
    Exhausted,
    /// The store or the kernel does not answer now; trying again later may help.
    Unavailable,
    /// A bug of ours.
    Internal,
}

impl ErrorKind {
    /// The HTTP status.
    pub const fn status(self) -> u16 {
        match self {
            Self::Invalid => 400,
            Self::NotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::Conflict => 409,
            Self::TooLarge => 413,
            Self::Exhausted => 507,
            Self::Unavailable => 503,
            Self::Internal => 500,
        }
    }
}

/// Why a request failed, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ApiError {
    /// What kind.
    pub kind: ErrorKind,
    /// What went wrong, for people.
    pub message: String,
    /// What to do, where `message` does not say it already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl ApiError {
    /// An error without a hint.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), hint: None }
    }

    /// Adds what to do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(f, " ({hint})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for ApiError {}
