//! Endpoints of a lab: a workload is a network namespace that the node's agent attaches.

use std::net::IpAddr;

use anyhow::{Context, Result, bail};
use identity::{EndpointName, Labels};
use node_api::{AttachmentKind, EndpointAdd, EndpointAdded};
use serde::{Deserialize, Serialize};

use crate::{Lab, ask, namespace};

/// An endpoint of a lab.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Its node.
    pub node: String,
    /// Its name on the node.
    pub name: String,
    /// Its network namespace.
    pub namespace: String,
    /// Its address.
    pub address: IpAddr,
    /// Its identity.
    pub identity: u32,
    /// Its labels, as text.
    pub labels: String,
}

impl Lab {
    /// Creates a network namespace and has the node's agent attach it. If the agent refuses, the namespace is deleted
    /// again.
    ///
    /// # Errors
    /// When the node or the name is invalid, or the agent refuses.
    pub fn add_endpoint(&self, node: &str, name: &str, labels: &Labels) -> Result<Endpoint> {
        self.check_node(node)?;
        let endpoint_name = EndpointName::new(name)?;
        let inside = self.name().endpoint_namespace(node, name);
        if namespace::exists(&inside) {
            bail!("node {node} has an endpoint {name} already");
        }
        namespace::create(&inside)?;
        let request = EndpointAdd {
            name: endpoint_name,
            labels: labels.clone(),
            attachment: AttachmentKind::Netns {
                path: namespace::path(&inside),
                interface: "eth0".to_owned(),
            },
            address: None,
        };
        match ask(self.api(node).endpoint_add(&request)) {
            Ok(EndpointAdded { address, identity, .. }) => Ok(Endpoint {
                node: node.to_owned(),
                name: name.to_owned(),
                namespace: inside,
                address,
                identity: identity.get(),
                labels: labels.to_string(),
            }),
            Err(error) => {
                namespace::delete(&inside)?;
                Err(error).with_context(|| format!("add endpoint {name} on {node}"))
            }
        }
    }

    /// Has the node's agent detach an endpoint, and deletes its namespace. Returns whether it existed.
    ///
    /// # Errors
    /// When the agent does not answer.
    pub fn delete_endpoint(&self, node: &str, name: &str) -> Result<bool> {
        self.check_node(node)?;
        let deleted = ask(self.api(node).endpoint_delete(&EndpointName::new(name)?))
            .with_context(|| format!("delete endpoint {name} of {node}"))?;
        let namespace_deleted = namespace::delete(&self.name().endpoint_namespace(node, name))?;
        Ok(deleted.existed || namespace_deleted)
    }

    /// The endpoints that a node's agent has attached.
    ///
    /// # Errors
    /// When the agent does not answer.
    pub fn endpoints_of(&self, node: &str) -> Result<Vec<Endpoint>> {
        let listing = ask(self.api(node).endpoints())?;
        Ok(listing
            .items
            .into_iter()
            .filter_map(|endpoint| {
                Some(Endpoint {
                    node: node.to_owned(),
                    namespace: self.name().endpoint_namespace(node, endpoint.name.as_str()),
                    name: endpoint.name.as_str().to_owned(),
                    address: endpoint.address?,
                    identity: endpoint.identity?.get(),
                    labels: endpoint.labels.to_string(),
                })
            })
            .collect())
    }

    /// The network namespace of a machine (`n1`, `e1`, `underlay`) or of an endpoint (`n1/web`, or `web` if only one
    /// node has it), and the node whose agent a command there would speak to.
    ///
    /// # Errors
    /// When no namespace matches, or more than one.
    pub fn find_namespace(&self, target: &str) -> Result<(String, Option<String>)> {
        let machine = self.name().machine_namespace(target);
        if !target.contains('.') && namespace::exists(&machine) {
            return Ok((machine, self.check_node(target).is_ok().then(|| target.to_owned())));
        }
        if let Some((node, name)) = target.split_once('/') {
            self.check_node(node)?;
            let inside = self.name().endpoint_namespace(node, name);
            if !namespace::exists(&inside) {
                bail!("node {node} has no endpoint {name}");
            }
            return Ok((inside, Some(node.to_owned())));
        }
        let found: Vec<String> = self
            .spec()
            .node_names()
            .filter(|node| namespace::exists(&self.name().endpoint_namespace(node, target)))
            .collect();
        match found.as_slice() {
            [node] => Ok((self.name().endpoint_namespace(node, target), Some(node.clone()))),
            [] => bail!("{target} is neither a machine nor an endpoint of lab {}", self.name().as_str()),
            several => bail!("{target} is an endpoint of {}: name it NODE/{target}", several.join(" and ")),
        }
    }
}
