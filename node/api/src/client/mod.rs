//! The client: a method for each request of the API.

mod transport;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use hyper::Method;
use identity::{EndpointName, NodeName, ObjectName, ServiceName};
use ipnetwork::IpNetwork;
pub use transport::Lines;
use transport::{encode, undecodable, with_query};

use crate::{
    ApiError, CidrReleased, CounterRow, Deleted, DiffQuery, Endpoint, EndpointAdd, EndpointAdded,
    EndpointDrained, FlowQuery, FlowRow, HookUser, Identity, IpEntry, KindName, LimitQuery, Listing,
    Manifest, MapDump, MapSummary, Node, NodeRemoved, Object, ObserveQuery, RevisionQuery, Service, State,
    StateDiff, Status, Version, Written,
};

/// Why a request was not answered as expected.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No process listens on the socket.
    #[error("the agent does not answer on {}; is warrend running on this node?", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The error of connect(2).
        source: std::io::Error,
    },
    /// The caller is neither root nor in the socket's group.
    #[error("no permission for {}: run as root or join its group (warren)", path.display())]
    Permission {
        /// The socket.
        path: PathBuf,
    },
    /// The connection broke.
    #[error("the connection to the agent broke: {0}")]
    Broken(#[from] hyper::Error),
    /// The agent rejected the request.
    #[error("{0}")]
    Refused(ApiError),
    /// The answer is of another version than this client, or damaged.
    #[error("the agent's answer does not decode ({0}); is it of another version?")]
    Undecodable(String),
    /// The agent did not answer in time. The request may still be carried out.
    #[error("the agent did not answer on {} within {timeout:?}; see its log, or wait longer with --timeout", path.display())]
    Timeout {
        /// The socket.
        path: PathBuf,
        /// The time that the client waited.
        timeout: Duration,
    },
}

/// A client of one agent. It holds no connection, so that making and cloning it is cheap.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
    /// How long to wait for an answer; `None` for ever.
    timeout: Option<Duration>,
}

impl Client {
    /// A client of the agent that listens on a socket. It waits for answers without a limit.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into(), timeout: None }
    }

    /// Limits the time to wait for an answer. For a stream the limit concerns its begin only.
    #[must_use]
    pub fn with_timeout(self, timeout: Duration) -> Self {
        Self { timeout: Some(timeout), ..self }
    }

    /// The socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// `GET /v1/version`
    ///
    /// # Errors
    /// [`ClientError`], as for every method here.
    pub async fn version(&self) -> Result<Version, ClientError> {
        self.get("/v1/version").await
    }

    /// `GET /v1/status`
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn status(&self) -> Result<Status, ClientError> {
        self.get("/v1/status").await
    }

    /// `GET /v1/openapi.json`
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn openapi(&self) -> Result<serde_json::Value, ClientError> {
        self.get("/v1/openapi.json").await
    }

    /// `GET /v1/nodes`
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn nodes(&self) -> Result<Listing<Node>, ClientError> {
        self.get("/v1/nodes").await
    }

    /// `DELETE /v1/nodes/{name}`: removes a node that the operator knows not to come back.
    ///
    /// # Errors
    /// [`ClientError`]; a conflict while the node is alive.
    pub async fn node_remove(&self, name: &NodeName) -> Result<NodeRemoved, ClientError> {
        self.delete(&format!("/v1/nodes/{name}"), &()).await
    }

    /// `GET /v1/identities`
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn identities(&self) -> Result<Listing<Identity>, ClientError> {
        self.get("/v1/identities").await
    }

    /// `GET /v1/ips`
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn ips(&self, query: &LimitQuery) -> Result<Listing<IpEntry>, ClientError> {
        self.get(&with_query("/v1/ips", query)).await
    }

    /// `GET /v1/endpoints`
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn endpoints(&self) -> Result<Listing<Endpoint>, ClientError> {
        self.get("/v1/endpoints").await
    }

    /// `GET /v1/endpoints/{name}`
    ///
    /// # Errors
    /// [`ClientError`]; not found.
    pub async fn endpoint(&self, name: &EndpointName) -> Result<Endpoint, ClientError> {
        self.get(&format!("/v1/endpoints/{name}")).await
    }

    /// `POST /v1/endpoints`: answers when the endpoint is attached. Repeating it is safe.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn endpoint_add(&self, request: &EndpointAdd) -> Result<EndpointAdded, ClientError> {
        self.call(Method::POST, "/v1/endpoints", Some(request)).await
    }

    /// `POST /v1/endpoints/{name}/drain`: from now on services do not choose the endpoint for new flows. Repeating it is safe.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn endpoint_drain(&self, name: &EndpointName) -> Result<EndpointDrained, ClientError> {
        self.call(Method::POST, &format!("/v1/endpoints/{name}/drain"), None::<&()>).await
    }

    /// `DELETE /v1/endpoints/{name}`: answers when the endpoint is detached. Repeating it is safe.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn endpoint_delete(&self, name: &EndpointName) -> Result<Deleted, ClientError> {
        self.delete(&format!("/v1/endpoints/{name}"), &()).await
    }

    /// `DELETE /v1/cidrs/{cidr}`, with `-` for `/`: releases an unused block of this node.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn cidr_release(&self, cidr: IpNetwork) -> Result<CidrReleased, ClientError> {
        self.delete(&format!("/v1/cidrs/{}-{}", cidr.network(), cidr.prefix()), &()).await
    }

    /// `GET /v1/services`
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn services(&self) -> Result<Listing<Service>, ClientError> {
        self.get("/v1/services").await
    }

    /// `GET /v1/services/{name}`
    ///
    /// # Errors
    /// [`ClientError`]; not found.
    pub async fn service(&self, name: &ServiceName) -> Result<Service, ClientError> {
        self.get(&format!("/v1/services/{name}")).await
    }

    /// `GET /v1/COLLECTION`, of a kind.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn objects(&self, kind: KindName) -> Result<Listing<Object>, ClientError> {
        let Listing { items, total } = self.get(&format!("/v1/{}", kind.collection())).await?;
        let items: Vec<serde_json::Value> = items;
        let items: serde_json::Result<_> = items.into_iter().map(|item| kind.object(item)).collect();
        Ok(Listing { items: items.map_err(undecodable)?, total })
    }

    /// `GET /v1/COLLECTION/NAME`
    ///
    /// # Errors
    /// [`ClientError`]; not found.
    pub async fn object(&self, kind: KindName, name: &ObjectName) -> Result<Object, ClientError> {
        kind.object(self.get(&object_path(kind, name)).await?).map_err(undecodable)
    }

    /// `PUT /v1/COLLECTION/NAME`: answers when the object is in etcd. Repeating it is safe.
    ///
    /// # Errors
    /// [`ClientError`]; a conflict, for example when an address belongs to another object.
    pub async fn object_put(&self, Manifest { name, spec }: Manifest) -> Result<Written, ClientError> {
        let kind = spec.kind();
        let answer = self.call(Method::PUT, &object_path(kind, &name), Some(&spec.put())).await?;
        kind.written(answer).map_err(undecodable)
    }

    /// `DELETE /v1/COLLECTION/NAME`: answers when the object is gone from etcd. Repeating it is safe.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn object_delete(
        &self,
        kind: KindName,
        name: &ObjectName,
        query: &RevisionQuery,
    ) -> Result<Deleted, ClientError> {
        self.delete(&object_path(kind, name), query).await
    }

    /// `GET /v1/maps`
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn maps(&self) -> Result<Listing<MapSummary>, ClientError> {
        self.get("/v1/maps").await
    }

    /// `GET /v1/maps/{name}`
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn map_dump(&self, name: &str, query: &LimitQuery) -> Result<MapDump, ClientError> {
        self.get(&with_query(&format!("/v1/maps/{}", encode(name)), query)).await
    }

    /// `GET /v1/hooks`
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn hooks(&self) -> Result<Listing<HookUser>, ClientError> {
        self.get("/v1/hooks").await
    }

    /// `GET /v1/state`
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn state(&self) -> Result<State, ClientError> {
        self.get("/v1/state").await
    }

    /// `POST /v1/state/diff`: compares the desired state with the kernel's, read now. Repairs only if requested.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn state_diff(&self, query: &DiffQuery) -> Result<StateDiff, ClientError> {
        self.call(Method::POST, &with_query("/v1/state/diff", query), None::<&()>).await
    }

    /// `GET /v1/flows`
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn flows(&self, query: &FlowQuery) -> Result<Listing<FlowRow>, ClientError> {
        self.get(&with_query("/v1/flows", query)).await
    }

    /// `GET /v1/drops`: all packet counters, including `forwarded`.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn drops(&self) -> Result<Listing<CounterRow>, ClientError> {
        self.get("/v1/drops").await
    }

    /// `GET /v1/observe`: a stream of events.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn observe(&self, query: &ObserveQuery) -> Result<Lines, ClientError> {
        let path = with_query("/v1/observe", query);
        let body = self.in_time(self.send(Method::GET, &path, None::<&()>)).await?;
        Ok(Lines::new(body))
    }
}

fn object_path(kind: KindName, name: &ObjectName) -> String {
    format!("/v1/{}/{name}", kind.collection())
}
