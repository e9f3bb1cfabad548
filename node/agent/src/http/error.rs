//! Failures as the JSON body of the API, with their HTTP status.

use axum::{
    Json,
    extract::{
        FromRequest, FromRequestParts, Query, Request,
        rejection::{JsonRejection, QueryRejection},
    },
    http::{StatusCode, request::Parts},
    response::{IntoResponse, Response},
};
use datapath_linux::DatapathError;
use node_api::{ApiError, ErrorKind};
use node_core::{CallError, CallErrorKind};
use serde::de::DeserializeOwned;

use crate::shell::{KernelGone, Stopping};

/// An [`ApiError`] as a response.
#[derive(Debug)]
pub struct Failure(pub ApiError);

impl Failure {
    /// The request is invalid.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self(ApiError::new(ErrorKind::Invalid, message))
    }

    /// The requested object does not exist.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self(ApiError::new(ErrorKind::NotFound, message))
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.kind.status()).expect("kinds have valid statuses");
        (status, Json(self.0)).into_response()
    }
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        let kind = match error.kind {
            CallErrorKind::Invalid => ErrorKind::Invalid,
            CallErrorKind::NotFound => ErrorKind::NotFound,
            CallErrorKind::Conflict => ErrorKind::Conflict,
            CallErrorKind::Exhausted => ErrorKind::Exhausted,
            CallErrorKind::Unavailable => ErrorKind::Unavailable,
        };
        Self(ApiError::new(kind, error.text))
    }
}

impl From<Stopping> for Failure {
    fn from(stopping: Stopping) -> Self {
        Self(ApiError::new(ErrorKind::Unavailable, stopping.to_string()))
    }
}

impl From<KernelGone> for Failure {
    fn from(gone: KernelGone) -> Self {
        Self(ApiError::new(ErrorKind::Unavailable, gone.to_string()))
    }
}

impl From<DatapathError> for Failure {
    fn from(error: DatapathError) -> Self {
        let kind = match error {
            DatapathError::Unsupported(_) => ErrorKind::NotFound,
            _ => ErrorKind::Internal,
        };
        Self(ApiError::new(kind, chain(&error)))
    }
}

/// An error with its causes: `open map x: permission denied`.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

impl From<JsonRejection> for Failure {
    fn from(rejection: JsonRejection) -> Self {
        let text = rejection.body_text();
        if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
            let limit = format!("at most {} bytes are taken", node_api::MAX_BODY_BYTES);
            return Self(ApiError::new(ErrorKind::TooLarge, text).hint(limit));
        }
        let hint = "the body is described by `warrend openapi`";
        Self(ApiError::new(ErrorKind::Invalid, text).hint(hint))
    }
}

impl From<QueryRejection> for Failure {
    fn from(rejection: QueryRejection) -> Self {
        Self::invalid(rejection.body_text())
    }
}

/// A JSON body.
pub struct Body<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, state: &S) -> Result<Self, Failure> {
        let Json(value) = Json::<T>::from_request(request, state).await?;
        Ok(Self(value))
    }
}

/// Query parameters.
pub struct Params<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Params<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let Query(value) = Query::<T>::from_request_parts(parts, state).await?;
        Ok(Self(value))
    }
}
