//! The agent's configuration: a flag overrides the environment, which overrides the file, which overrides the default.
//!
//! All mistakes are reported at once, each with its place. Nothing here opens a network connection.

mod section;
mod settings;
mod value;

use std::{collections::BTreeMap, fmt, fmt::Write as _, path::Path};

use identity::LabelPattern;
use kvstore_schema::{
    record::{FleetRecord, Record},
    service::NODE_PORTS,
};

pub use section::{Config, DatapathSection, EtcdSection, LogSection, MasqueradeSection};
pub use settings::SETTINGS;
pub use value::{Input, LogFormat, LogLevel, PortRange, StoreKind, XdpKind};

/// The default path of the configuration file, which may be absent; a file named by a flag must exist.
pub const DEFAULT_PATH: &str = "/etc/warren/warren.toml";

/// The least that every IPv4 host must accept (RFC 1122, section 3.3.2).
const LEAST_MTU_BYTES: u16 = 576;
/// The limit of concurrent masqueraded flows of a node to one external address and port: fewer are too few.
const LEAST_PORTS: u16 = 256;

/// One mistake, and its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// The file, the flag or the variable.
    pub place: String,
    /// The setting.
    pub key: String,
    /// What is wrong, and what to do.
    pub text: String,
}

/// All mistakes of a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistakes(pub Vec<Mistake>);

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Mistake { place, key, text }) in self.0.iter().enumerate() {
            let gap = if index > 0 { "\n" } else { "" };
            match key.as_str() {
                "" => write!(f, "{gap}{place}: {text}")?,
                key => write!(f, "{gap}{place}: {key}: {text}")?,
            }
        }
        Ok(())
    }
}

impl std::error::Error for Mistakes {}

/// A value given by a flag or the environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Override {
    /// The setting's key.
    pub key: &'static str,
    /// The flag or variable: `--node-name` or `WARREN_NODE_NAME`.
    pub place: String,
    /// The value.
    pub text: String,
}

/// Loads the configuration. `file`: the path and text of the file, if there is one. `overrides`: at most one for each
/// setting, since flags have overridden variables already.
///
/// # Errors
/// All mistakes: in the text, in single values, and between settings.
pub fn load(file: Option<(&Path, &str)>, overrides: &[Override]) -> Result<Config, Mistakes> {
    let mut config = Config::default();
    let mut mistakes = Vec::new();
    let mut places: BTreeMap<&str, String> = BTreeMap::new();
    let mut set = |key: &'static str, place: String, input: &Input, mistakes: &mut Vec<Mistake>| {
        let setting = SETTINGS.iter().find(|setting| setting.key == key).expect("keys come from the table");
        if let Err(text) = (setting.set)(&mut config, input) {
            mistakes.push(Mistake { place: place.clone(), key: key.to_owned(), text });
        }
        places.insert(key, place);
    };
    if let Some((path, text)) = file {
        let place = path.display().to_string();
        match text.parse::<toml::Table>() {
            Err(error) => mistakes.push(Mistake {
                place,
                key: String::new(),
                text: error.to_string().trim_end().to_owned(),
            }),
            Ok(table) => {
                for (key, value) in flatten(table) {
                    match SETTINGS.iter().find(|setting| setting.key == key) {
                        Some(setting) => set(setting.key, place.clone(), &Input::Toml(value), &mut mistakes),
                        None => mistakes.push(Mistake { place: place.clone(), text: unknown_key(&key), key }),
                    }
                }
            }
        }
    }
    for Override { key, place, text } in overrides {
        set(key, place.clone(), &Input::Text(text.clone()), &mut mistakes);
    }
    check_together(&config, &places, &mut mistakes);
    if mistakes.is_empty() { Ok(config) } else { Err(Mistakes(mistakes)) }
}

/// Flattens sections to keys of the form `section.name`; a table that is a setting's value stays a table.
fn flatten(table: toml::Table) -> Vec<(String, toml::Value)> {
    let is_section = |name: &str| SETTINGS.iter().any(|setting| setting.section().0 == name);
    let mut flat = Vec::new();
    for (name, value) in table {
        match value {
            toml::Value::Table(section) if is_section(&name) => {
                flat.extend(section.into_iter().map(|(key, value)| (format!("{name}.{key}"), value)));
            }
            value => flat.push((name, value)),
        }
    }
    flat
}

fn unknown_key(key: &str) -> String {
    let section = key.split_once('.').map_or("", |(section, _)| section);
    let known: Vec<&str> = SETTINGS
        .iter()
        .map(settings::Setting::section)
        .filter(|(of, _)| *of == section)
        .map(|(_, name)| name)
        .collect();
    match section {
        "" => {
            let mut sections: Vec<&str> = SETTINGS
                .iter()
                .map(|setting| setting.section().0)
                .filter(|section| !section.is_empty())
                .collect();
            sections.dedup();
            format!(
                "no such setting; there are {}, and the sections {}",
                known.join(", "),
                sections.join(", ")
            )
        }
        _ => format!("no such setting; [{section}] has {}", known.join(", ")),
    }
}

/// Rules about several settings, or beyond a value's form.
fn check_together(config: &Config, places: &BTreeMap<&str, String>, mistakes: &mut Vec<Mistake>) {
    let mut wrong = |key: &str, text: String| {
        let place = places.get(key).cloned().unwrap_or_else(|| "default".to_owned());
        mistakes.push(Mistake { place, key: key.to_owned(), text });
    };
    if let Err(error) = fleet_record(config).validate() {
        wrong("fleet.pools", error.to_string().replace("record is not valid: ", ""));
    }
    let service_pools = config.fleet.service_pools.as_deref().unwrap_or_default();
    for (key, pools) in
        [("fleet.pools", config.fleet.pools.as_slice()), ("fleet.service_pools", service_pools)]
    {
        for pool in pools.iter().filter(|pool| !pool.is_ipv4()) {
            wrong(
                key,
                format!("{pool} is an IPv6 network, and Warren has no IPv6 yet: use IPv4 networks only"),
            );
        }
    }
    if config.fleet.tunnel_port == config.gossip.port {
        wrong("gossip.port", format!("{} is the tunnel's port too: use another", config.gossip.port));
    }
    if config.gossip.port == 0 {
        wrong("gossip.port", "0 is no port that other nodes could find".to_owned());
    }
    for pattern in &config.identity.labels {
        if let Err(error) = pattern.parse::<LabelPattern>() {
            wrong("identity.labels", error.to_string());
        }
    }
    if config.datapath.mtu_bytes.is_some_and(|mtu_bytes| mtu_bytes < LEAST_MTU_BYTES) {
        wrong(
            "datapath.mtu_bytes",
            format!("must be at least {LEAST_MTU_BYTES}: every IPv4 host takes that much"),
        );
    }
    if config.datapath.xdp == XdpKind::Off && !config.datapath.drop_cidrs.is_empty() {
        wrong("datapath.drop_cidrs", "needs datapath.xdp = \"native\" or \"generic\"".to_owned());
    }
    for cidr in config.datapath.drop_cidrs.iter().filter(|cidr| !cidr.is_ipv4()) {
        wrong("datapath.drop_cidrs", format!("{cidr} is no IPv4 network"));
    }
    let PortRange { first, last } = config.masquerade.ports;
    if config.masquerade.enabled && last - first < LEAST_PORTS - 1 {
        wrong("masquerade.ports", format!("{first}-{last} are too few: give at least {LEAST_PORTS}"));
    }
    let (first_node_port, last_node_port) = (*NODE_PORTS.start(), *NODE_PORTS.end());
    if config.masquerade.enabled && first <= last_node_port && last >= first_node_port {
        let text =
            format!("{first}-{last} meets the node ports of services, {first_node_port}-{last_node_port}");
        wrong("masquerade.ports", text + ": use others");
    }
    for (name, port) in [("fleet.tunnel_port", config.fleet.tunnel_port), ("gossip.port", config.gossip.port)]
    {
        if config.masquerade.enabled && (first..=last).contains(&port) {
            wrong("masquerade.ports", format!("{first}-{last} holds {port}, which is {name}: use others"));
        }
    }
    let etcd = &config.etcd;
    if config.store == StoreKind::Etcd && etcd.endpoints.is_empty() {
        wrong("etcd.endpoints", "at least one is needed with store = \"etcd\"".to_owned());
    }
    for (have, lack, given) in [
        ("etcd.cert_file", "etcd.key_file", (etcd.cert_file.is_some(), etcd.key_file.is_some())),
        ("etcd.key_file", "etcd.cert_file", (etcd.key_file.is_some(), etcd.cert_file.is_some())),
        ("etcd.cert_file", "etcd.ca_file", (etcd.cert_file.is_some(), etcd.ca_file.is_some())),
        ("etcd.user", "etcd.password_file", (etcd.user.is_some(), etcd.password_file.is_some())),
        ("etcd.password_file", "etcd.user", (etcd.password_file.is_some(), etcd.user.is_some())),
    ] {
        if given == (true, false) {
            wrong(have, format!("needs {lack} beside it"));
        }
    }
    for (key, duration) in [
        ("gossip.interval", config.gossip.interval),
        ("datapath.audit_interval", config.datapath.audit_interval),
        ("fleet.collect_interval", config.fleet.collect_interval),
        ("etcd.call_timeout", etcd.call_timeout),
    ] {
        if duration.is_zero() {
            wrong(key, "must not be 0".to_owned());
        }
    }
    if config.datapath.pin_root == Path::new("/") || config.datapath.pin_root.starts_with("/tmp") {
        wrong("datapath.pin_root", "must be a folder of ours on bpffs, as /sys/fs/bpf/warren".to_owned());
    }
}

/// The fleet record of this configuration, except for its id.
fn fleet_record(config: &Config) -> FleetRecord {
    FleetRecord {
        fleet_id: "unknown".to_owned(),
        pools: config.fleet.pools.clone(),
        service_pools: config.fleet.service_pools(),
        block_prefix_v4: config.fleet.block_prefix_v4,
        block_prefix_v6: config.fleet.block_prefix_v6,
        tunnel_port: config.fleet.tunnel_port,
        life: Default::default(),
        unknown: BTreeMap::new(),
    }
}

/// The configuration as a file with comments: what `check` prints, and the sample.
pub fn render(config: &Config) -> String {
    let mut out = String::new();
    let mut section = "";
    for setting in SETTINGS {
        let (of, name) = setting.section();
        if of != section {
            section = of;
            write!(out, "\n[{section}]").expect("writing to a String does not fail");
        }
        let line = match (setting.show)(config) {
            Some(value) => format!("{name} = {value}"),
            None => format!("#{name} = {}", (setting.example)()),
        };
        write!(out, "\n# {}\n{line}\n", setting.help).expect("writing to a String does not fail");
    }
    out
}

/// The configuration as JSON, by section: what `check -o json` prints.
pub fn to_json(config: &Config) -> serde_json::Value {
    let mut out = serde_json::Map::new();
    for setting in SETTINGS {
        let (section, name) = setting.section();
        let value = serde_json::to_value((setting.show)(config)).expect("TOML values are JSON values");
        match section {
            "" => drop(out.insert(name.to_owned(), value)),
            section => {
                let section = out.entry(section).or_insert_with(|| serde_json::json!({}));
                section[name] = value;
            }
        }
    }
    out.into()
}

#[cfg(test)]
mod tests;
