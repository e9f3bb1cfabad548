//! Classification of errors: what an error of etcd or of the connection means to the caller.
//!
//! A write has certainly not been applied only if the server refused it before proposing it, or if no connection was
//! established. Every other error is ambiguous: a put that had "failed" with a time-out was found applied.

use std::error::Error as _;

use kvstore_store::StoreError;
use tonic::{Code, ConnectError, Status};

/// Why one attempt on one member failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// Certainly not applied; another member may apply it.
    #[error("{0}")]
    Retry(String),
    /// Perhaps applied. A read may be repeated on another member, a write may not.
    #[error("{0}")]
    Ambiguous(String),
    /// Another member would give the same error.
    #[error("{0}")]
    Fatal(StoreError),
    /// The lease of the request does not exist.
    #[error("the lease is gone")]
    LeaseGone,
    /// The requested revision is compacted.
    #[error("the revision is compacted")]
    Compacted,
}

impl Failure {
    /// The same failure of a read, which applies nothing. (With TLS 1.3 a refused client certificate shows only as a
    /// connection that closes under the first request.)
    pub(crate) fn of_a_read(self) -> Self {
        match self {
            Self::Ambiguous(reason) => Self::Retry(reason),
            other => other,
        }
    }
}

impl From<etcd_client::Error> for Failure {
    fn from(error: etcd_client::Error) -> Self {
        use etcd_client::Error;
        match error {
            Error::GRpcStatus(status) => of_status(&status),
            // The client library's own text, for a TTL of zero; any other text means a broken stream.
            Error::LeaseKeepAliveError(text) if text == "lease not found" => Self::LeaseGone,
            Error::TransportError(error) => Self::Retry(format!("set up the connection: {error}")),
            Error::InvalidArgs(text) => Self::Fatal(StoreError::Refused(text)),
            Error::InvalidUri(error) => Self::Fatal(StoreError::Refused(error.to_string())),
            other => Self::Ambiguous(other.to_string()),
        }
    }
}

fn of_status(status: &Status) -> Failure {
    let text = status.message();
    let reason = || match status.source() {
        // Tonic's own text is only "transport error"; the cause says more.
        Some(source) => format!("{text} ({})", innermost(source)),
        None => text.to_owned(),
    };
    if never_connected(status) {
        return Failure::Retry(reason());
    }
    match status.code() {
        Code::OutOfRange if text.contains("has been compacted") => Failure::Compacted,
        Code::OutOfRange if text.contains("future revision") => {
            Failure::Fatal(StoreError::Replaced(text.to_owned()))
        }
        Code::NotFound if text.contains("requested lease not found") => Failure::LeaseGone,
        // The server checks for a leader before it handles the request.
        Code::Unavailable if text == "etcdserver: no leader" => Failure::Retry(reason()),
        // Too many requests in flight, or no space: both are checked before the proposal, and both are temporary.
        Code::ResourceExhausted if text.starts_with("etcdserver:") => Failure::Retry(reason()),
        // The token is from before a restart of the member or a change of users; the next attempt makes a new client,
        // with a new token.
        Code::Unauthenticated => Failure::Retry(reason()),
        Code::InvalidArgument if text.contains("revision of auth store is old") => Failure::Retry(reason()),
        Code::InvalidArgument | Code::PermissionDenied | Code::FailedPrecondition | Code::Unimplemented => {
            Failure::Fatal(StoreError::Refused(reason()))
        }
        _ => Failure::Ambiguous(reason()),
    }
}

/// Whether no connection was established: refused, no route, unknown name, failed TLS handshake.
fn never_connected(status: &Status) -> bool {
    let mut source = status.source();
    while let Some(error) = source {
        if error.is::<ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}

fn innermost<'a>(mut error: &'a (dyn std::error::Error + 'static)) -> &'a (dyn std::error::Error + 'static) {
    while let Some(source) = error.source() {
        error = source;
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(code: Code, text: &str, expected: &str) {
        let failure = format!("{:?}", of_status(&Status::new(code, text)));
        assert!(failure.starts_with(expected), "{failure}");
    }

    #[test]
    fn status_is_classified_by_code_and_text() {
        check(Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted", "Compacted");
        check(Code::OutOfRange, "etcdserver: mvcc: required revision is a future revision", "Fatal(Replaced");
        check(Code::OutOfRange, "Error, decoded message length too large", "Ambiguous");
        check(Code::NotFound, "etcdserver: requested lease not found", "LeaseGone");
        check(Code::Unavailable, "etcdserver: no leader", "Retry");
        check(Code::Unavailable, "etcdserver: request timed out", "Ambiguous");
        check(Code::Unavailable, "etcdserver: leader changed", "Ambiguous");
        check(Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded", "Retry");
        check(Code::ResourceExhausted, "grpc: received message larger than max", "Ambiguous");
        check(Code::Unauthenticated, "etcdserver: invalid auth token", "Retry");
        check(Code::PermissionDenied, "etcdserver: permission denied", "Fatal(Refused");
        check(Code::InvalidArgument, "etcdserver: too many operations in txn request", "Fatal(Refused");
        check(Code::DeadlineExceeded, "context deadline exceeded", "Ambiguous");
        check(Code::Unknown, "anything new", "Ambiguous");
    }
}
