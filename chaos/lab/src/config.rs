//! The configuration of one agent of a lab.

use anyhow::Result;

use crate::{Lab, cgroup, spec::underlay_address};

impl Lab {
    /// Renders a node's configuration.
    ///
    /// # Errors
    /// When cgroup2 is not mounted.
    pub(crate) fn render_config(&self, node: &str) -> Result<String> {
        let spec = self.spec();
        let folder = self.name().folder().join(node);
        let store = if spec.etcd == 0 { "memory" } else { "etcd" };
        // The first two nodes are every node's seeds; the others are found through etcd and gossip.
        let seeds: Vec<String> = spec
            .node_names()
            .filter(|name| name != node)
            .take(2)
            .map(|name| format!("{}:7950", underlay_address(&name)))
            .collect();
        let values = |list: &[String]| toml::Value::from(list.to_vec()).to_string();
        let text = |value: &dyn std::fmt::Display| toml::Value::from(value.to_string()).to_string();
        let etcd = if spec.etcd == 0 {
            String::new()
        } else {
            format!("[etcd]\nendpoints = {}\n\n", values(&spec.etcd_endpoints()))
        };
        let cgroup = cgroup::lab_folder(self.name())?.join(node);
        Ok(format!(
            "# Written by warren-lab.\n\
         store = {store}\n\n\
         [node]\n\
         name = {name}\n\
         machine_id = {machine}\n\
         state_dir = {state}\n\
         run_dir = {run}\n\n\
         [fleet]\n\
         name = {fleet}\n\
         pools = {pools}\n\
         block_prefix_v4 = {block}\n\n\
         {etcd}\
         [gossip]\n\
         port = 7950\n\
         key_file = {key}\n\
         seeds = {seeds}\n\n\
         [datapath]\n\
         pin_root = {pins}\n\
         underlay_interface = \"eth0\"\n\
         cgroup = {cgroup}\n\n\
         [log]\n\
         level = \"info\"\n",
            store = text(&store),
            name = text(&node),
            machine = text(&format!("{}-{node}", self.name().as_str())),
            state = text(&folder.join("state").display()),
            run = text(&folder.display()),
            fleet = text(&self.name().as_str()),
            pools = values(&spec.pools),
            block = spec.block_prefix_v4,
            key = text(&self.key_path().display()),
            seeds = values(&seeds),
            cgroup = text(&cgroup.display()),
            pins = text(&self.pin_path(node).display()),
        ))
    }
}
