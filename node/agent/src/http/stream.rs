//! Streaming events, one per line.

use std::sync::Arc;

use axum::{
    body::{Body, Bytes},
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};
use futures::stream;
use node_api::{EventFilter, FlowEvent, ObserveLine, ObserveQuery};
use tokio::sync::broadcast::{Receiver, error::RecvError};
use tokio_util::sync::CancellationToken;

use super::{
    App,
    error::{Failure, Params},
};

/// Remembered events, and with `follow` those to come, one JSON object a line.
#[utoipa::path(get, path = "/v1/observe", params(ObserveQuery),
    responses((status = 200, body = ObserveLine, content_type = "application/x-ndjson")))]
pub async fn observe(
    State(app): State<App>,
    Params(query): Params<ObserveQuery>,
) -> Result<Response, Failure> {
    if let Some(reason) = &query.reason
        && node_observe::advice_for_key(reason).is_none()
    {
        return Err(Failure::invalid(format!(
            "{reason:?} is no drop reason; `warren drops` shows those there are"
        )));
    }
    let (follow, last) = (query.follow, query.last);
    let filter = EventFilter::from(query);
    let (recent, live) = app.hub.subscribe();
    let mut past: Vec<Arc<FlowEvent>> = recent.into_iter().filter(|event| filter.matches(event)).collect();
    let shown = last.unwrap_or(if follow { 0 } else { usize::MAX });
    past.drain(..past.len().saturating_sub(shown));
    let first =
        past.iter().flat_map(|event| line(&ObserveLine::Event((**event).clone()))).collect::<Vec<u8>>();
    let lines = Lines { first: Some(first), live: follow.then_some(live), filter, stop: app.stop };
    let body = Body::from_stream(stream::unfold(lines, |mut lines| async {
        let bytes = lines.next().await?;
        Some((Ok::<_, std::convert::Infallible>(Bytes::from(bytes)), lines))
    }));
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response())
}

struct Lines {
    first: Option<Vec<u8>>,
    live: Option<Receiver<Arc<FlowEvent>>>,
    filter: EventFilter,
    stop: CancellationToken,
}

impl Lines {
    async fn next(&mut self) -> Option<Vec<u8>> {
        if let Some(first) = self.first.take().filter(|first| !first.is_empty()) {
            return Some(first);
        }
        let live = self.live.as_mut()?;
        loop {
            let received = tokio::select! {
                () = self.stop.cancelled() => return None,
                received = live.recv() => received,
            };
            match received {
                Ok(event) if self.filter.matches(&event) => {
                    return Some(line(&ObserveLine::Event((*event).clone())));
                }
                Ok(_) => {}
                Err(RecvError::Lagged(events)) => return Some(line(&ObserveLine::Lagged { events })),
                Err(RecvError::Closed) => return None,
            }
        }
    }
}

fn line(line: &ObserveLine) -> Vec<u8> {
    let mut bytes = serde_json::to_vec(line).expect("events are plain data with text keys");
    bytes.push(b'\n');
    bytes
}
