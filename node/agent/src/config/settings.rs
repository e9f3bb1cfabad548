//! The table of settings, which defines the keys of the file, the flags, the environment variables, the help text and the
//! sample file.

use super::{
    Config,
    value::{Input, Value},
};

/// One setting.
pub struct Setting {
    /// `section.name`, or `name` for one outside all sections.
    pub key: &'static str,
    /// Help, in a sentence.
    pub help: &'static str,
    /// The value that the sample file shows where the setting has no default.
    pub example: fn() -> &'static str,
    /// Sets the value.
    pub set: fn(&mut Config, &Input) -> Result<(), String>,
    /// Shows the value; `None` where it is not set.
    pub show: fn(&Config) -> Option<toml::Value>,
}

impl Setting {
    /// `--etcd-ca-file` without the dashes in front.
    pub fn flag(&self) -> String {
        self.key.replace(['.', '_'], "-")
    }

    /// `WARREN_ETCD_CA_FILE`
    pub fn variable(&self) -> String {
        format!("WARREN_{}", self.key.replace('.', "_").to_uppercase())
    }

    /// Section and name; the section is empty for a setting outside all sections.
    pub fn section(&self) -> (&'static str, &'static str) {
        self.key.split_once('.').unwrap_or(("", self.key))
    }
}

fn example<T: Value>(_: fn(&Config) -> &T) -> &'static str {
    T::example()
}

macro_rules! settings {
    ($($key:literal $($field:ident).+ $help:literal;)+) => {
        /// All of them, in the order of the sample file.
        pub const SETTINGS: &[Setting] = &[$(Setting {
            key: $key,
            help: $help,
            example: || example(|config| &config.$($field).+),
            set: |config, input| {
                config.$($field).+ = Value::read(input)?;
                Ok(())
            },
            show: |config| config.$($field).+.show(),
        }),+];
    };
}

settings! {
    "store" store "Where the fleet's records are: \"etcd\", or \"memory\" for a single node without etcd and gossip.";

    "node.name" node.name "This node's name, unique in the fleet; the host name if not set.";
    "node.labels" node.labels "Labels of this node.";
    "node.address_reserve" node.address_reserve "How many free addresses this node keeps claimed, to add endpoints while etcd is away; at most one pod CIDR of them.";
    "node.machine_id" node.machine_id "The machine's id, which tells a restarted node from a second one of its name; /etc/machine-id if not set.";
    "node.state_dir" node.state_dir "What must outlive a restart.";
    "node.run_dir" node.run_dir "Folder of the API socket warren.sock.";

    "fleet.name" fleet.name "The fleet's name: a part of every etcd key.";
    "fleet.pools" fleet.pools "Where pod CIDRs come from. All nodes of a fleet must agree on the settings of the fleet's addresses.";
    "fleet.service_pools" fleet.service_pools "Where services' virtual IPs come from, in a fleet that has no such pools yet; 10.201.0.0/16 if not set, and not in fleet.pools.";
    "fleet.block_prefix_v4" fleet.block_prefix_v4 "Prefix length of one pod CIDR in an IPv4 pool.";
    "fleet.block_prefix_v6" fleet.block_prefix_v6 "Prefix length of one pod CIDR in an IPv6 pool.";
    "fleet.tunnel_port" fleet.tunnel_port "UDP port of the VXLAN tunnel. All nodes of a fleet must agree on it.";
    "fleet.quarantine" fleet.quarantine "How long a released identity or pod CIDR stays unused.";
    "fleet.address_cooldown" fleet.address_cooldown "How long a released address stays unused.";
    "fleet.collect_interval" fleet.collect_interval "How often this node looks for unused identities and pod CIDRs, give or take half.";

    "etcd.endpoints" etcd.endpoints "Members of the etcd cluster, all with http:// or all with https://.";
    "etcd.ca_file" etcd.ca_file "Certificate of the authority that signed the members' certificates (PEM).";
    "etcd.cert_file" etcd.cert_file "This node's client certificate (PEM); read again when it changes.";
    "etcd.key_file" etcd.key_file "Its private key (PEM).";
    "etcd.server_name" etcd.server_name "Name expected in the members' certificates, where it differs from the endpoint's.";
    "etcd.user" etcd.user "User, where etcd asks for one.";
    "etcd.password_file" etcd.password_file "File that holds the user's password.";
    "etcd.call_timeout" etcd.call_timeout "Deadline of one call, failover to other members included.";

    "gossip.port" gossip.port "UDP port on the underlay address.";
    "gossip.key_file" gossip.key_file "The fleet's gossip keys, one a line, the first in use; 0600. `warrend keygen FILE` makes one.";
    "gossip.seeds" gossip.seeds "Other nodes to begin with, as host:port; nodes in etcd are found without.";
    "gossip.interval" gossip.interval "Time between two rounds; deaths are seen after about six.";

    "datapath.pin_root" datapath.pin_root "Folder on bpffs for programs, maps and links.";
    "datapath.underlay_interface" datapath.underlay_interface "Interface of the network between nodes; if not set, the one that leads to etcd, else that of the default route.";
    "datapath.underlay_address" datapath.underlay_address "This node's IPv4 address there; the interface's first if not set.";
    "datapath.audit_interval" datapath.audit_interval "How often the kernel is read whole, compared and repaired.";

    "datapath.mode" datapath.mode "How packets get to other nodes: \"tunnel\" (VXLAN), or \"native\" (as they are, by routes). All nodes of a fleet must agree on it.";
    "datapath.native_routes" datapath.native_routes "Routes of the native mode: \"direct\" (this node makes them, to nodes on its own network), or \"external\" (the network has them).";
    "datapath.host_routing" datapath.host_routing "How packets get to this node's endpoints: \"bpf\" (straight), or \"legacy\" (by the node's stack and its netfilter).";
    "datapath.mtu_bytes" datapath.mtu_bytes "MTU of endpoints; what the underlay carries if not set, and never more.";

    "datapath.socket_lb" datapath.socket_lb "Whether services are translated where a process connects, and not packet by packet; needs cgroup2.";
    "datapath.cgroup" datapath.cgroup "Folder of a cgroup2: for processes in it and below it; where cgroup2 is mounted if not set.";
    "datapath.socket_lb_ends_tcp" datapath.socket_lb_ends_tcp "Whether TCP connections to a backend that was removed are ended as well; UDP sockets always are.";

    "datapath.xdp" datapath.xdp "Whether XDP forwards known flows of external clients: \"off\", \"native\" (in the underlay's driver), or \"generic\" (for any driver).";
    "datapath.drop_cidrs" datapath.drop_cidrs "IPv4 networks whose packets the underlay interface drops; needs datapath.xdp.";

    "masquerade.enabled" masquerade.enabled "Whether endpoints reach what is outside the fleet with this node's underlay address.";
    "masquerade.ports" masquerade.ports "Ports for that, as first-last; kept from the node's own sockets (ip_local_reserved_ports).";
    "masquerade.exclude" masquerade.exclude "Destinations that see endpoints' own addresses, besides the fleet's pools.";

    "identity.labels" identity.labels "Which labels count for identities: patterns in order, as \"team/*\", \"-\" before those that do not. Empty: all count.";

    "recorder.max_bytes" recorder.max_bytes "How much disk the log of events in node.state_dir may take (`warren-lab replay`); 0: none is kept.";

    "http.metrics_listen" http.metrics_listen "Address of /metrics and /healthz.";
    "http.socket_group" http.socket_group "Group that may use the API socket, beside root, if it exists.";

    "log.level" log.level "The least important messages: \"error\", \"warn\", \"info\", \"debug\" or \"trace\".";
    "log.format" log.format "\"text\" or \"json\".";
}
