//! Requests that change something, each by one call of the node.

use axum::{
    Json,
    extract::{Path, State},
};
use identity::{EndpointName, NodeName, ServiceName};
use ipnetwork::IpNetwork;
use kvstore_schema::Revision;
use node_api::{
    ApiError, CidrReleased, Deleted, DiffQuery, EndpointAdd, EndpointAdded, EndpointDrained, ErrorKind,
    NodeRemoved, RevisionQuery, ServicePut, ServiceWritten, StateDiff,
};
use node_core::{Call, Expected, Reply};

use super::{
    App, convert,
    error::{Body, Failure, Params},
};

type Answer<T> = Result<Json<T>, Failure>;

/// A reply to another kind of call, which is a bug.
fn unexpected(reply: Reply) -> Failure {
    Failure(ApiError::new(ErrorKind::Internal, format!("the node answered another question: {reply:?}")))
}

/// Adds an endpoint; answers when it is attached. The same request again answers the same.
#[utoipa::path(post, path = "/v1/endpoints", request_body = EndpointAdd,
    responses((status = 200, body = EndpointAdded), (status = 400, body = ApiError), (status = 409, body = ApiError),
        (status = 503, body = ApiError), (status = 507, body = ApiError)))]
pub async fn endpoint_add(State(app): State<App>, Body(request): Body<EndpointAdd>) -> Answer<EndpointAdded> {
    match app.core.call(Call::EndpointAdd(convert::endpoint_spec(request))).await? {
        Reply::EndpointAdded { name, id, address, identity, existed } => {
            Ok(Json(EndpointAdded { name, id: id.0, address, identity, existed }))
        }
        other => Err(unexpected(other)),
    }
}

/// Deletes an endpoint; answers when it is gone. One that is not there is no error.
#[utoipa::path(delete, path = "/v1/endpoints/{name}", params(("name" = String, Path)),
    responses((status = 200, body = Deleted), (status = 400, body = ApiError)))]
pub async fn endpoint_delete(State(app): State<App>, Path(name): Path<String>) -> Answer<Deleted> {
    let name = EndpointName::new(&name).map_err(|error| Failure::invalid(error.to_string()))?;
    match app.core.call(Call::EndpointDelete(name)).await? {
        Reply::EndpointDeleted { existed } => Ok(Json(Deleted { existed })),
        other => Err(unexpected(other)),
    }
}

/// Drains an endpoint: as a backend of services it takes no new flows from now on, and those that run go on. The same
/// request again changes nothing.
#[utoipa::path(post, path = "/v1/endpoints/{name}/drain", params(("name" = String, Path)),
    responses((status = 200, body = EndpointDrained), (status = 400, body = ApiError), (status = 404, body = ApiError),
        (status = 409, body = ApiError)))]
pub async fn endpoint_drain(State(app): State<App>, Path(name): Path<String>) -> Answer<EndpointDrained> {
    let name = EndpointName::new(&name).map_err(|error| Failure::invalid(error.to_string()))?;
    match app.core.call(Call::EndpointDrain(name)).await? {
        Reply::EndpointDrained { already } => Ok(Json(EndpointDrained { already })),
        other => Err(unexpected(other)),
    }
}

/// Removes another node's records: an operator's word that it will not come back.
#[utoipa::path(delete, path = "/v1/nodes/{name}", params(("name" = String, Path)),
    responses((status = 200, body = NodeRemoved), (status = 404, body = ApiError), (status = 409, body = ApiError)))]
pub async fn node_remove(State(app): State<App>, Path(name): Path<String>) -> Answer<NodeRemoved> {
    let name = NodeName::new(&name).map_err(|error| Failure::invalid(error.to_string()))?;
    match app.core.call(Call::NodeRemove(name.clone())).await? {
        Reply::NodeRemoved => Ok(Json(NodeRemoved { name })),
        other => Err(unexpected(other)),
    }
}

/// Gives back a pod CIDR of this node that no endpoint uses; its `/` is written `-`.
#[utoipa::path(delete, path = "/v1/cidrs/{cidr}", params(("cidr" = String, Path, example = "10.42.3.0-24")),
    responses((status = 200, body = CidrReleased), (status = 404, body = ApiError), (status = 409, body = ApiError)))]
pub async fn cidr_release(State(app): State<App>, Path(text): Path<String>) -> Answer<CidrReleased> {
    let cidr: IpNetwork = text
        .rsplit_once('-')
        .and_then(|(network, length)| format!("{network}/{length}").parse().ok())
        .filter(|cidr: &IpNetwork| cidr.ip() == cidr.network())
        .ok_or_else(|| Failure::invalid(format!("{text:?} is no CIDR: write it as 10.42.3.0-24")))?;
    match app.core.call(Call::CidrRelease(cidr)).await? {
        Reply::CidrReleased(cidr) => Ok(Json(CidrReleased { cidr })),
        other => Err(unexpected(other)),
    }
}

/// Writes a service into etcd, for the whole fleet. The same request again changes nothing.
#[utoipa::path(put, path = "/v1/services/{name}", params(("name" = String, Path)), request_body = ServicePut,
    responses((status = 200, body = ServiceWritten), (status = 400, body = ApiError), (status = 409, body = ApiError),
        (status = 503, body = ApiError), (status = 507, body = ApiError)))]
pub async fn service_put(
    State(app): State<App>,
    Path(name): Path<String>,
    Body(request): Body<ServicePut>,
) -> Answer<ServiceWritten> {
    let name = service_name(&name)?;
    let expected = expected(request.revision);
    match app.core.call(Call::ServicePut { name: name.clone(), spec: request.spec, expected }).await? {
        Reply::ServiceWritten { outcome, virtual_ip, node_ports, revision } => {
            let outcome = convert::service_outcome(outcome);
            Ok(Json(ServiceWritten { name, outcome, virtual_ip, node_ports, revision: revision.0 }))
        }
        other => Err(unexpected(other)),
    }
}

/// Deletes a service from etcd, for the whole fleet. One that is not there is no error.
#[utoipa::path(delete, path = "/v1/services/{name}", params(("name" = String, Path), RevisionQuery),
    responses((status = 200, body = Deleted), (status = 409, body = ApiError), (status = 503, body = ApiError)))]
pub async fn service_delete(
    State(app): State<App>,
    Path(name): Path<String>,
    Params(query): Params<RevisionQuery>,
) -> Answer<Deleted> {
    let name = service_name(&name)?;
    match app.core.call(Call::ServiceDelete { name, expected: expected(query.revision) }).await? {
        Reply::ServiceDeleted { existed } => Ok(Json(Deleted { existed })),
        other => Err(unexpected(other)),
    }
}

pub(super) fn service_name(text: &str) -> Result<ServiceName, Failure> {
    ServiceName::new(text).map_err(|error| Failure::invalid(error.to_string()))
}

fn expected(revision: Option<i64>) -> Expected {
    revision.map_or(Expected::Any, |revision| Expected::Revision(Revision(revision)))
}

/// Reads the kernel now and compares it with what the agent wants; repairs only if asked to.
#[utoipa::path(post, path = "/v1/state/diff", params(DiffQuery), responses((status = 200, body = StateDiff)))]
pub async fn state_diff(State(app): State<App>, Params(query): Params<DiffQuery>) -> Answer<StateDiff> {
    match app.core.call(Call::Audit { repair: query.repair }).await? {
        Reply::Audited { differences } => Ok(Json(StateDiff { differences, repaired: query.repair })),
        other => Err(unexpected(other)),
    }
}
