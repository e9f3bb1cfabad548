//! Requests and answers: one HTTP/1.1 connection over the unix socket for each request.

use http_body_util::{BodyExt, Full};
use hyper::{
    Method, Request,
    body::{Bytes, Incoming},
    header,
};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::net::UnixStream;

use super::{Client, ClientError};
use crate::ObserveLine;

/// The maximum length of a line of a stream: twice that of an event with 64 of the longest labels on both sides.
const MAX_LINE_BYTES: usize = 128 * 1024;

impl Client {
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.call(Method::GET, path, None::<&()>).await
    }

    pub(super) async fn delete<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &impl Serialize,
    ) -> Result<T, ClientError> {
        self.call(Method::DELETE, &with_query(path, query), None::<&()>).await
    }

    pub(super) async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, ClientError> {
        let answer = async { Ok(self.send(method, path, body).await?.collect().await?.to_bytes()) };
        decode(&self.in_time(answer).await?)
    }

    pub(super) async fn in_time<T>(
        &self,
        answer: impl Future<Output = Result<T, ClientError>>,
    ) -> Result<T, ClientError> {
        let Some(timeout) = self.timeout else { return answer.await };
        let expired = |_| ClientError::Timeout { path: self.socket.clone(), timeout };
        tokio::time::timeout(timeout, answer).await.map_err(expired)?
    }

    pub(super) async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<Incoming, ClientError> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|source| match source.kind() {
            std::io::ErrorKind::PermissionDenied => ClientError::Permission { path: self.socket.clone() },
            _ => ClientError::Connect { path: self.socket.clone(), source },
        })?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        // The task ends when the answer was read or dropped. A broken connection is reported where the answer is read.
        tokio::spawn(connection);
        let bytes = match body {
            Some(body) => serde_json::to_vec(body).expect("requests are plain data with text keys"),
            None => Vec::new(),
        };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "warren")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(bytes)))
            .expect("paths are made of checked names and encoded text");
        let response = sender.send_request(request).await?;
        if response.status().is_success() {
            return Ok(response.into_body());
        }
        let status = response.status();
        let bytes = response.into_body().collect().await?.to_bytes();
        Err(match serde_json::from_slice(&bytes) {
            Ok(error) => ClientError::Refused(error),
            Err(_) => ClientError::Undecodable(format!("HTTP status {status}")),
        })
    }
}

/// A stream of [`ObserveLine`]s. Dropping it ends the stream.
#[derive(Debug)]
pub struct Lines {
    body: Incoming,
    buffer: Vec<u8>,
}

impl Lines {
    pub(super) fn new(body: Incoming) -> Self {
        Self { body, buffer: Vec::new() }
    }

    /// The next line; `None` after the agent has ended the stream. Cancel-safe.
    ///
    /// # Errors
    /// [`ClientError::Broken`] if the agent has died, [`ClientError::Undecodable`] for a line of another version.
    pub async fn next(&mut self) -> Result<Option<ObserveLine>, ClientError> {
        loop {
            if let Some(end) = self.buffer.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return decode(&line).map(Some);
            }
            if self.buffer.len() > MAX_LINE_BYTES {
                return Err(ClientError::Undecodable(format!("a line of more than {MAX_LINE_BYTES} bytes")));
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(frame) => {
                    if let Ok(data) = frame?.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
            }
        }
    }
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ClientError> {
    serde_json::from_slice(bytes).map_err(undecodable)
}

pub(super) fn undecodable(error: serde_json::Error) -> ClientError {
    ClientError::Undecodable(error.to_string())
}

/// Percent-encodes all but the unreserved characters of RFC 3986.
pub(super) fn encode(text: &str) -> String {
    use std::fmt::Write;
    text.bytes().fold(String::with_capacity(text.len()), |mut out, byte| {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(byte.into()),
            _ => write!(out, "%{byte:02X}").expect("writing to a String does not fail"),
        }
        out
    })
}

/// Appends the fields of a flat struct as parameters, without those that are `null`.
pub(super) fn with_query(path: &str, query: &impl Serialize) -> String {
    let value = serde_json::to_value(query).expect("parameters are flat plain data");
    let fields = value.as_object().into_iter().flatten();
    let pairs: Vec<String> = fields
        .filter(|(_, value)| !value.is_null())
        .map(|(key, value)| match value {
            serde_json::Value::String(text) => format!("{key}={}", encode(text)),
            other => format!("{key}={}", encode(&other.to_string())),
        })
        .collect();
    if pairs.is_empty() { path.to_owned() } else { format!("{path}?{}", pairs.join("&")) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{LimitQuery, ObserveQuery};

    #[test]
    fn query_is_encoded_without_absent_parameters() {
        let query = ObserveQuery {
            follow: true,
            from: Some("app=web".parse().unwrap()),
            to: Some("10.0.0.0/8".parse().unwrap()),
            ..Default::default()
        };
        assert_eq!(
            with_query("/v1/observe", &query),
            "/v1/observe?follow=true&from=app%3Dweb&to=10.0.0.0%2F8"
        );
        assert_eq!(with_query("/v1/ips", &LimitQuery::default()), "/v1/ips");
    }

    #[tokio::test]
    async fn client_names_the_socket_of_a_missing_agent() {
        let folder = tempfile::tempdir().unwrap();
        let error = Client::new(folder.path().join("none.sock")).status().await.unwrap_err().to_string();
        assert!(error.contains("none.sock") && error.contains("is warrend running"), "{error}");
    }

    #[tokio::test]
    async fn client_gives_up_on_a_silent_agent() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("warren.sock");
        let _silent = tokio::net::UnixListener::bind(&socket).unwrap();
        let client = Client::new(socket).with_timeout(Duration::from_millis(10));
        let error = client.status().await.unwrap_err().to_string();
        assert!(error.contains("warren.sock within 10ms"), "{error}");
        let error = client.observe(&ObserveQuery::default()).await.unwrap_err();
        assert!(matches!(error, ClientError::Timeout { .. }), "{error}");
    }
}
