//! Query parameters. Unknown ones are rejected.

use node_observe::{EventFilter, EventKind, PartyFilter, Protocol, Verdict};
use serde::{Deserialize, Serialize};
use utoipa::IntoParams;

/// Parameters of listings that may be long.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct LimitQuery {
    /// The maximum number of rows; if not set, all rows are answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
}

/// Parameters of `POST /v1/state/diff`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct DiffQuery {
    /// Whether to repair the differences. Otherwise nothing is changed.
    pub repair: bool,
}

/// Parameters of the deletion of an object that is written as a manifest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct RevisionQuery {
    /// If set, the deletion succeeds only if the object has this revision in etcd.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<i64>,
}

macro_rules! filtered_query {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
        #[serde(default, deny_unknown_fields)]
        #[into_params(parameter_in = Query)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: $type,)*
            /// The sender: an address, a prefix, `identity:N`, a reserved identity's name, `KEY=VALUE` or an
            /// endpoint's name.
            #[serde(skip_serializing_if = "Option::is_none")]
            #[param(value_type = Option<String>)]
            pub from: Option<PartyFilter>,
            /// The receiver.
            #[serde(skip_serializing_if = "Option::is_none")]
            #[param(value_type = Option<String>)]
            pub to: Option<PartyFilter>,
            /// IP protocol.
            #[serde(skip_serializing_if = "Option::is_none")]
            #[param(value_type = Option<String>)]
            pub protocol: Option<Protocol>,
            /// The port of either side.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub port: Option<u16>,
        }
    };
}

filtered_query! {
    /// Parameters of `GET /v1/flows`.
    FlowQuery {
        /// The maximum number of flows.
        #[serde(skip_serializing_if = "Option::is_none")]
        limit: Option<usize>,
    }
}

filtered_query! {
    /// Parameters of `GET /v1/observe`.
    ObserveQuery {
        /// Whether to continue with events as they happen. Otherwise the answer ends with the remembered events.
        follow: bool,
        /// How many remembered events to begin with. Default: none with `follow`, otherwise all.
        #[serde(skip_serializing_if = "Option::is_none")]
        last: Option<usize>,
        /// Forwarded or dropped.
        #[serde(skip_serializing_if = "Option::is_none")]
        #[param(value_type = Option<String>)]
        verdict: Option<Verdict>,
        /// `flow-new`, `flow-end` or `drop`.
        #[serde(skip_serializing_if = "Option::is_none")]
        #[param(value_type = Option<String>)]
        kind: Option<EventKind>,
        /// The key of a drop reason.
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    }
}

impl From<FlowQuery> for EventFilter {
    fn from(query: FlowQuery) -> Self {
        Self { from: query.from, to: query.to, protocol: query.protocol, port: query.port, ..Self::default() }
    }
}

impl From<ObserveQuery> for EventFilter {
    fn from(query: ObserveQuery) -> Self {
        Self {
            from: query.from,
            to: query.to,
            verdict: query.verdict,
            kind: query.kind,
            reason: query.reason,
            protocol: query.protocol,
            port: query.port,
        }
    }
}
