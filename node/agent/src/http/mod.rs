//! The HTTP servers: the API on a unix socket, metrics and health on loopback.

mod change;
mod convert;
mod error;
mod flows;
mod listen;
mod metrics;
mod read;
mod status;
mod stream;

use std::sync::Arc;

use axum::{Router, extract::DefaultBodyLimit};
use datapath_linux::{Datapath, DatapathError, FlowTable};
use kvstore_store::Store;
use node_api::{ApiError, ErrorKind};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use utoipa::OpenApi;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    config::StoreKind,
    metrics::Metrics,
    shell::{Clock, Core, EventHub, GossipLink, Kernel, LeaseKeeper, Stopping, UnderlayState},
};
use error::Failure;

pub use listen::{SOCKET_NAME, bind_metrics, bind_socket, serve_api, serve_metrics};

/// Concurrent requests that read the kernel. A dump of a full map takes some 0.2 s (100,000 entries: 38 ms).
const MAX_KERNEL_READS: usize = 4;

/// The state of request handlers. Cheap to clone.
#[derive(Clone)]
pub struct App {
    pub core: Core,
    pub kernel: Kernel,
    pub flows: Arc<FlowTable>,
    pub hub: EventHub,
    pub store: Arc<dyn Store>,
    pub store_kind: StoreKind,
    pub lease: LeaseKeeper,
    pub gossip: Option<GossipLink>,
    pub metrics: Arc<Metrics>,
    pub underlay: watch::Receiver<UnderlayState>,
    pub clock: Clock,
    /// Ends streams, so that they do not delay a clean stop.
    pub stop: CancellationToken,
    pub kernel_reads: KernelReads,
}

/// Permits for requests that read the kernel.
#[derive(Clone)]
pub struct KernelReads(Arc<Semaphore>);

impl Default for KernelReads {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MAX_KERNEL_READS)))
    }
}

impl App {
    /// Reads the kernel on its thread, after what was requested before.
    async fn kernel_read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&mut Datapath) -> Result<T, DatapathError> + Send + 'static,
    ) -> Result<T, Failure> {
        let _permit = self.kernel_reads.0.acquire().await.expect("the semaphore is never closed");
        Ok(self.kernel.query(read).await??)
    }

    /// Reads the flow table, beside the kernel's thread.
    async fn flow_read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&FlowTable) -> Result<T, DatapathError> + Send + 'static,
    ) -> Result<T, Failure> {
        let _permit = self.kernel_reads.0.acquire().await.expect("the semaphore is never closed");
        let flows = self.flows.clone();
        let read = tokio::task::spawn_blocking(move || read(&flows));
        Ok(read.await.map_err(|_| Stopping)??)
    }
}

#[derive(OpenApi)]
#[openapi(info(
    title = "Warren agent",
    description = "The local API of a Warren node, on the unix socket /run/warren/warren.sock."
))]
struct Description;

/// All routes, each with its description.
fn api() -> OpenApiRouter<App> {
    OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(read::version))
        .routes(routes!(read::openapi))
        .routes(routes!(status::status))
        .routes(routes!(read::nodes))
        .routes(routes!(change::node_remove))
        .routes(routes!(read::identities))
        .routes(routes!(read::ips))
        .routes(routes!(read::endpoints, change::endpoint_add))
        .routes(routes!(read::endpoint, change::endpoint_delete))
        .routes(routes!(change::endpoint_drain))
        .routes(routes!(change::cidr_release))
        .routes(routes!(read::services))
        .routes(routes!(read::service, change::service_put, change::service_delete))
        .routes(routes!(read::maps))
        .routes(routes!(read::map_dump))
        .routes(routes!(read::hooks))
        .routes(routes!(read::state))
        .routes(routes!(change::state_diff))
        .routes(routes!(flows::flows))
        .routes(routes!(stream::observe))
        .routes(routes!(read::drops))
}

/// The description of the API.
pub fn openapi() -> utoipa::openapi::OpenApi {
    api().to_openapi()
}

fn router(app: App) -> Router {
    let (router, _) = api().split_for_parts();
    router
        .fallback(async || {
            Failure(
                ApiError::new(ErrorKind::NotFound, "no such path")
                    .hint("`warrend openapi` describes all paths"),
            )
        })
        .method_not_allowed_fallback(async || {
            Failure(ApiError::new(ErrorKind::MethodNotAllowed, "the path does not take this method"))
        })
        .layer(DefaultBodyLimit::max(node_api::MAX_BODY_BYTES))
        .with_state(app)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn openapi_has_every_request_of_the_client() {
        let description = serde_json::to_value(openapi()).unwrap();
        let expected = [
            ("get", "/v1/version"),
            ("get", "/v1/openapi.json"),
            ("get", "/v1/status"),
            ("get", "/v1/nodes"),
            ("delete", "/v1/nodes/{name}"),
            ("get", "/v1/identities"),
            ("get", "/v1/ips"),
            ("get", "/v1/endpoints"),
            ("post", "/v1/endpoints"),
            ("get", "/v1/endpoints/{name}"),
            ("delete", "/v1/endpoints/{name}"),
            ("post", "/v1/endpoints/{name}/drain"),
            ("delete", "/v1/cidrs/{cidr}"),
            ("get", "/v1/services"),
            ("get", "/v1/services/{name}"),
            ("put", "/v1/services/{name}"),
            ("delete", "/v1/services/{name}"),
            ("get", "/v1/maps"),
            ("get", "/v1/maps/{name}"),
            ("get", "/v1/hooks"),
            ("get", "/v1/state"),
            ("post", "/v1/state/diff"),
            ("get", "/v1/flows"),
            ("get", "/v1/observe"),
            ("get", "/v1/drops"),
        ];
        for (method, path) in expected {
            let operation = &description["paths"][path][method];
            assert!(operation["responses"]["200"].is_object(), "{method} {path}");
            assert!(operation["summary"].is_string(), "{method} {path} has no text");
        }
        for kind in node_api::KindName::ALL {
            let path = format!("/v1/{}", kind.collection());
            assert!(expected.contains(&("get", &path)), "no list of {kind:?}");
            for method in ["get", "put", "delete"] {
                assert!(expected.contains(&(method, &format!("{path}/{{name}}"))), "no {method} of {kind:?}");
            }
        }
        let described: usize = description["paths"]
            .as_object()
            .unwrap()
            .values()
            .map(|path| path.as_object().unwrap().len())
            .sum();
        assert_eq!(described, expected.len());
    }
}
