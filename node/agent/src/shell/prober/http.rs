//! An HTTP/1.1 GET, of whose response only the status counts.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::words;

/// The most that is read of a response. Some servers log an error for a client that closes early, but a page for health
/// checks is not longer than this.
const MAX_ANSWER_BYTES: usize = 64 * 1024;
/// How long the body is read after the status is known.
const REST_WITHIN: Duration = Duration::from_millis(200);
/// The length of `HTTP/1.1 200`.
const STATUS_BYTES: usize = 12;

/// Requests a page. The status must be 200 to 399.
///
/// # Errors
/// Another status, no HTTP, or no response; in a few words.
pub(super) async fn get(mut stream: TcpStream, path: &str, host: Option<&str>) -> Result<(), String> {
    let host = match host {
        Some(host) => host.to_owned(),
        None => stream.peer_addr().map_err(|error| words(&error))?.to_string(),
    };
    let version = env!("CARGO_PKG_VERSION");
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: warren-health/{version}\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.map_err(|error| words(&error))?;
    let mut answer = Vec::with_capacity(1_024);
    let mut limited = stream.take(MAX_ANSWER_BYTES as u64);
    while answer.len() < STATUS_BYTES {
        if limited.read_buf(&mut answer).await.map_err(|error| words(&error))? == 0 {
            return Err("no HTTP answer".to_owned());
        }
    }
    let status = status(&answer).ok_or("no HTTP answer")?;
    if !(200..400).contains(&status) {
        return Err(format!("status {status}"));
    }
    // Closing before the end would be an error in the server's log. An error in the body does not matter.
    let mut rest = vec![0; 8 * 1024];
    let rest = async { while limited.read(&mut rest).await.is_ok_and(|count| count > 0) {} };
    drop(tokio::time::timeout(REST_WITHIN, rest).await);
    Ok(())
}

fn status(answer: &[u8]) -> Option<u16> {
    let text = std::str::from_utf8(answer.get(..STATUS_BYTES)?).ok()?;
    let digits = text.strip_prefix("HTTP/1.1 ").or_else(|| text.strip_prefix("HTTP/1.0 "))?;
    digits.parse().ok().filter(|status| (100..600).contains(status))
}
