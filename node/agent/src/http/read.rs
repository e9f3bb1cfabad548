//! Requests that only read.

use axum::{
    Json,
    extract::{Path, State},
    http::header,
    response::IntoResponse,
};
use identity::EndpointName;
use node_api::{
    ApiError, CounterRow, Endpoint, HookUser, Identity, IpEntry, LimitQuery, Listing, MapDump, MapSummary,
    Node, Service, State as WireState, Version,
};

use super::{
    App,
    change::service_name,
    convert,
    error::{Failure, Params},
};

type Answer<T> = Result<Json<T>, Failure>;

/// Versions of the agent, the API and the layouts in the kernel.
#[utoipa::path(get, path = "/v1/version", responses((status = 200, body = Version)))]
pub async fn version() -> Json<Version> {
    Json(Version {
        agent: env!("CARGO_PKG_VERSION").to_owned(),
        api: node_api::API_VERSION.to_owned(),
        abi: datapath_abi::ABI_VERSION,
    })
}

/// This description.
#[utoipa::path(get, path = "/v1/openapi.json", responses((status = 200, body = serde_json::Value)))]
pub async fn openapi() -> Json<utoipa::openapi::OpenApi> {
    Json(super::openapi())
}

/// Nodes of the fleet.
#[utoipa::path(get, path = "/v1/nodes", responses((status = 200, body = Listing<Node>)))]
pub async fn nodes(State(app): State<App>) -> Answer<Listing<Node>> {
    let nodes = app.core.read(node_core::Node::nodes).await?;
    Ok(Json(Listing::new(nodes.into_iter().map(convert::node).collect(), None)))
}

/// Identities: the reserved ones and those of the fleet.
#[utoipa::path(get, path = "/v1/identities", responses((status = 200, body = Listing<Identity>)))]
pub async fn identities(State(app): State<App>) -> Answer<Listing<Identity>> {
    let identities = app.core.read(node_core::Node::identities).await?;
    Ok(Json(Listing::new(identities.into_iter().map(convert::identity).collect(), None)))
}

/// Addresses and prefixes with their identities and nodes: what the ipcache should hold.
#[utoipa::path(get, path = "/v1/ips", params(LimitQuery), responses((status = 200, body = Listing<IpEntry>)))]
pub async fn ips(State(app): State<App>, Params(query): Params<LimitQuery>) -> Answer<Listing<IpEntry>> {
    let entries = app.core.read(node_core::Node::ipcache).await?;
    Ok(Json(Listing::new(entries.into_iter().map(convert::ip).collect(), query.limit)))
}

/// Endpoints of this node.
#[utoipa::path(get, path = "/v1/endpoints", responses((status = 200, body = Listing<Endpoint>)))]
pub async fn endpoints(State(app): State<App>) -> Answer<Listing<Endpoint>> {
    let endpoints = app.core.read(node_core::Node::endpoints).await?;
    Ok(Json(Listing::new(endpoints.into_iter().map(convert::endpoint).collect(), None)))
}

/// One endpoint of this node.
#[utoipa::path(get, path = "/v1/endpoints/{name}", params(("name" = String, Path)),
    responses((status = 200, body = Endpoint), (status = 404, body = ApiError)))]
pub async fn endpoint(State(app): State<App>, Path(name): Path<String>) -> Answer<Endpoint> {
    let name = EndpointName::new(&name).map_err(|error| Failure::invalid(error.to_string()))?;
    let wanted = name.clone();
    match app.core.read(move |node| node.endpoint(&wanted)).await? {
        Some(endpoint) => Ok(Json(convert::endpoint(endpoint))),
        None => Err(Failure::not_found(format!("no endpoint {name} on this node"))),
    }
}

/// Services of the fleet.
#[utoipa::path(get, path = "/v1/services", responses((status = 200, body = Listing<Service>)))]
pub async fn services(State(app): State<App>) -> Answer<Listing<Service>> {
    let services = app.core.read(node_core::Node::services).await?;
    Ok(Json(Listing::new(services.into_iter().map(convert::service).collect(), None)))
}

/// One service of the fleet.
#[utoipa::path(get, path = "/v1/services/{name}", params(("name" = String, Path)),
    responses((status = 200, body = Service), (status = 404, body = ApiError)))]
pub async fn service(State(app): State<App>, Path(name): Path<String>) -> Answer<Service> {
    let name = service_name(&name)?;
    let wanted = name.clone();
    match app.core.read(move |node| node.service(&wanted)).await? {
        Some(service) => Ok(Json(convert::service(service))),
        None => Err(Failure::not_found(format!("there is no service {name}"))),
    }
}

/// Maps in the kernel with their fill.
#[utoipa::path(get, path = "/v1/maps", responses((status = 200, body = Listing<MapSummary>)))]
pub async fn maps(State(app): State<App>) -> Answer<Listing<MapSummary>> {
    let maps = app.kernel_read(|datapath| datapath.map_list()).await?;
    Ok(Json(Listing::new(maps.into_iter().map(convert::map).collect(), None)))
}

/// A map's entries, decoded.
#[utoipa::path(get, path = "/v1/maps/{name}", params(("name" = String, Path), LimitQuery),
    responses((status = 200, body = MapDump), (status = 404, body = ApiError)))]
pub async fn map_dump(
    State(app): State<App>,
    Path(name): Path<String>,
    Params(query): Params<LimitQuery>,
) -> Answer<MapDump> {
    let map = name.clone();
    let rows = app.kernel_read(move |datapath| datapath.map_dump(&map)).await?;
    let Listing { items, total } = Listing::new(rows, query.limit);
    Ok(Json(MapDump { name, rows: items.into_iter().map(convert::map_row).collect(), total }))
}

/// Programs and filters at the hooks of our devices and of the underlay's, ours and those of others, in the order in
/// which they run.
#[utoipa::path(get, path = "/v1/hooks", responses((status = 200, body = Listing<HookUser>)))]
pub async fn hooks(State(app): State<App>) -> Answer<Listing<HookUser>> {
    let underlay = app.underlay.borrow().underlay.interface.clone();
    let users = app.kernel.hook_users(vec![underlay]).await?;
    Ok(Json(Listing::new(users.into_iter().map(convert::hook_user).collect(), None)))
}

/// What the agent wants of the kernel: every table.
#[utoipa::path(get, path = "/v1/state", responses((status = 200, body = WireState)))]
pub async fn state(State(app): State<App>) -> Result<impl IntoResponse, Failure> {
    let tables = app.core.read(|node| node.wanted().clone()).await?;
    Ok(([(header::CONTENT_TYPE, "application/json")], convert::state(&tables)))
}

/// Packets forwarded and dropped, by reason and direction, since the maps were made.
#[utoipa::path(get, path = "/v1/drops", responses((status = 200, body = Listing<CounterRow>)))]
pub async fn drops(State(app): State<App>) -> Answer<Listing<CounterRow>> {
    let counters = app.kernel_read(|datapath| datapath.counters()).await?;
    Ok(Json(Listing::new(convert::counters(&counters), None)))
}
