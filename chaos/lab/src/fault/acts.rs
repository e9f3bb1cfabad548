//! What happens to a node once and cannot be undone.

use std::fs;

use anyhow::{Context, Result};

use crate::{Lab, namespace};

impl Lab {
    /// Reboots a node: agent, programs, maps, devices, routes and the workloads' namespaces are gone, the state
    /// directory stays. The agent is started again; the workloads' owners have to add their endpoints again.
    ///
    /// # Errors
    /// When a part of the node cannot be removed or created again.
    pub fn reboot(&self, node: &str) -> Result<()> {
        self.check_node(node)?;
        self.kill(node)?;
        let pins = self.pin_path(node);
        if pins.exists() {
            fs::remove_dir_all(&pins).with_context(|| format!("remove {}", pins.display()))?;
        }
        let inside = self.name().machine_namespace(node);
        for endpoint in namespace::list(&format!("{inside}."))? {
            namespace::delete(&endpoint)?;
        }
        // Deleted explicitly, as a namespace in use is deleted later.
        namespace::ip(["-n", &self.name().underlay_namespace(), "link", "delete", node])?;
        namespace::delete(&inside)?;
        self.add_machine(node)?;
        self.inflict_again(node)?;
        self.start_machines(&[node.to_owned()])
    }
}
