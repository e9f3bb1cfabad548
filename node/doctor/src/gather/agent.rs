//! What the agent says of itself.

use std::time::Duration;

use node_api::{BaseRow, Client, ClientError, DiffQuery, StateDiff, Status};

use super::device;

/// The longest that one answer may take: the status asks every etcd member with a deadline of 5 s by default,
/// and an agent that needs three times that is no agent to wait for.
const ANSWER_LIMIT: Duration = Duration::from_secs(15);

/// The agent, as far as it answers.
#[derive(Debug)]
pub(crate) enum Agent {
    /// Nobody listens.
    Absent(String),
    /// Somebody listens, but not for us.
    Forbidden(String),
    /// It listens, and does not answer as it should.
    Broken(String),
    /// It answers.
    Answers(Box<Answers>),
}

/// Its answers.
#[derive(Debug)]
pub(crate) struct Answers {
    pub(crate) status: Status,
    /// What it wants of its devices; `None` until the node has a pod CIDR.
    pub(crate) base: Result<Option<BaseRow>, String>,
    pub(crate) diff: Result<StateDiff, String>,
    /// MTU of the underlay's device now; the agent tells that of its start.
    pub(crate) underlay_mtu_bytes: Option<u32>,
}

/// Asks for all that the checks need; changes nothing.
pub(crate) async fn agent(client: &Client) -> Agent {
    let status = match tokio::time::timeout(ANSWER_LIMIT, client.status()).await {
        Err(_) => return Agent::Broken(silence()),
        Ok(Err(error @ ClientError::Connect { .. })) => return Agent::Absent(error.to_string()),
        Ok(Err(error @ ClientError::Permission { .. })) => return Agent::Forbidden(error.to_string()),
        Ok(Err(error)) => return Agent::Broken(error.to_string()),
        Ok(Ok(status)) => status,
    };
    let base = within_limit(client.state()).await.map(|state| state.base);
    let diff = within_limit(client.state_diff(&DiffQuery { repair: false })).await;
    let underlay_mtu_bytes = device::mtu_bytes(&status.underlay.interface);
    Agent::Answers(Box::new(Answers { status, base, diff, underlay_mtu_bytes }))
}

async fn within_limit<T>(answer: impl Future<Output = Result<T, ClientError>>) -> Result<T, String> {
    match tokio::time::timeout(ANSWER_LIMIT, answer).await {
        Err(_) => Err(silence()),
        Ok(answer) => answer.map_err(|error| error.to_string()),
    }
}

fn silence() -> String {
    format!("the agent gave no answer within {} s", ANSWER_LIMIT.as_secs())
}
