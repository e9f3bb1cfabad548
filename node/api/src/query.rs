//! Parameters after the `?`. Unknown ones are refused.

use node_observe::{EventFilter, EventKind, PartyFilter, Protocol, Verdict};
use serde::{Deserialize, Serialize};
use utoipa::IntoParams;

/// Of listings that may be long.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct LimitQuery {
    /// The most rows to answer; all without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
}

/// Of `POST /v1/state/diff`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct DiffQuery {
    /// Repair what differs; without it nothing is changed.
    pub repair: bool,
}

/// Of `DELETE /v1/services/{name}`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct RevisionQuery {
    /// Only if this revision of it is in etcd; whatever is there if it is not said.
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
            /// Port of either side.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub port: Option<u16>,
        }
    };
}

filtered_query! {
    /// Of `GET /v1/flows`.
    FlowQuery {
        /// The most flows to answer.
        #[serde(skip_serializing_if = "Option::is_none")]
        limit: Option<usize>,
    }
}

filtered_query! {
    /// Of `GET /v1/observe`.
    ObserveQuery {
        /// Go on with events as they happen; without it the answer ends with what is remembered.
        follow: bool,
        /// How many of the remembered events to begin with: all without `follow`, none with it, by default.
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
