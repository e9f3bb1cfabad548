//! Mistakes in a configuration, and their messages.

use super::*;

const PLACE: &str = "/etc/warren/warren.toml";

fn file(text: &str) -> Result<Config, Mistakes> {
    load(Some((Path::new(PLACE), text)), &[])
}

fn flag(key: &'static str, text: &str) -> Override {
    Override { key, place: format!("--{}", key.replace(['.', '_'], "-")), text: text.to_owned() }
}

#[test]
fn sample_file_is_the_default() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/warren.toml");
    let head = "# Configuration of warrend. All values are the defaults; a line that begins with # sets nothing.\n\
                # Each setting is also a flag (--etcd-endpoints) and a variable (WARREN_ETCD_ENDPOINTS).\n";
    let expected = format!("{head}{}", render(&Config::default()));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(path, &expected).unwrap();
    }
    let sample = std::fs::read_to_string(path).unwrap();
    assert_eq!(sample, expected, "UPDATE_GOLDEN=1 rewrites deploy/warren.toml");
    assert_eq!(file(&sample), Ok(Config::default()));
    for setting in SETTINGS {
        let name = setting.section().1;
        assert!(
            sample.contains(&format!("\n{name} = ")) || sample.contains(&format!("\n#{name} = ")),
            "{name}"
        );
    }
}

#[test]
fn mistakes_are_all_reported_at_once() {
    let text = r#"
        store = "consul"
        colour = "red"
        [node]
        name = "Node 1"
        labels = { rack = 1 }
        [fleet]
        pools = ["10.0.0.0/8", "10.1.0.0/16"]
        tunnel_port = 80000
        [etcd]
        endpoint = "http://127.0.0.1:2379"
        user = "warren"
        [gossip]
        key_file = "gossip.key"
        interval = "1 s"
    "#;
    let expected = [
        r#"/etc/warren/warren.toml: store: "consul" is none of "etcd", "memory""#,
        "/etc/warren/warren.toml: colour: no such setting; there are store, and the sections node, fleet, etcd, gossip, datapath, masquerade, identity, recorder, http, log",
        r#"/etc/warren/warren.toml: node.name: name "Node 1" is not valid: use a-z, 0-9, '-', '_' and '.', beginning and ending with a letter or digit"#,
        "/etc/warren/warren.toml: node.labels: expected a text in quotes for label rack",
        "/etc/warren/warren.toml: fleet.tunnel_port: 80000 is out of range: use a whole number from 0 to 65535",
        "/etc/warren/warren.toml: etcd.endpoint: no such setting; [etcd] has endpoints, ca_file, cert_file, key_file, server_name, user, password_file, call_timeout",
        r#"/etc/warren/warren.toml: gossip.key_file: "gossip.key" is not an absolute path"#,
        r#"/etc/warren/warren.toml: gossip.interval: "1 s" is no duration: use a number with ms, s, m, h or d, as "30s""#,
        "/etc/warren/warren.toml: fleet.pools: pools 10.0.0.0/8 and 10.1.0.0/16 overlap",
        "/etc/warren/warren.toml: etcd.user: needs etcd.password_file beside it",
    ];
    let mistakes = file(text).unwrap_err().to_string();
    let mut found: Vec<&str> = mistakes.lines().collect();
    let mut expected = expected.to_vec();
    found.sort_unstable();
    expected.sort_unstable();
    assert_eq!(found, expected);
}

#[test]
fn rules_between_settings_are_checked() {
    let check = |text: &str, expected: &str| assert_eq!(file(text).unwrap_err().to_string(), expected);
    check(
        "[masquerade]\nports = \"61000-61010\"",
        "/etc/warren/warren.toml: masquerade.ports: 61000-61010 are too few: give at least 256",
    );
    check(
        "[masquerade]\nports = \"8000-9000\"",
        "/etc/warren/warren.toml: masquerade.ports: 8000-9000 holds 8472, which is fleet.tunnel_port: use others\n\
         /etc/warren/warren.toml: masquerade.ports: 8000-9000 holds 8473, which is gossip.port: use others",
    );
    check(
        "[masquerade]\nports = \"32767-40000\"",
        "/etc/warren/warren.toml: masquerade.ports: 32767-40000 meets the node ports of services, 30000-32767: use others",
    );
    check(
        "[masquerade]\nports = \"9-1\"\nenabled = 1",
        "/etc/warren/warren.toml: masquerade.enabled: expected true or false, found integer\n\
         /etc/warren/warren.toml: masquerade.ports: \"9-1\" is no range of ports: use first-last, as 61000-65535",
    );
    check(
        "[datapath]\nmtu_bytes = 500\nmode = \"vlan\"",
        "/etc/warren/warren.toml: datapath.mode: \"vlan\" is none of \"tunnel\", \"native\"\n\
         /etc/warren/warren.toml: datapath.mtu_bytes: must be at least 576: every IPv4 host takes that much",
    );
    check(
        "[datapath]\ndrop_cidrs = [\"198.51.100.0/24\"]",
        "/etc/warren/warren.toml: datapath.drop_cidrs: needs datapath.xdp = \"native\" or \"generic\"",
    );
    check(
        "[datapath]\nxdp = \"generic\"\ndrop_cidrs = [\"2001:db8::/32\"]",
        "/etc/warren/warren.toml: datapath.drop_cidrs: 2001:db8::/32 is no IPv4 network",
    );
    check(
        "[gossip]\nport = 8472",
        "/etc/warren/warren.toml: gossip.port: 8472 is the tunnel's port too: use another",
    );
    check(
        "[etcd]\nendpoints = []",
        "/etc/warren/warren.toml: etcd.endpoints: at least one is needed with store = \"etcd\"",
    );
    check(
        "[fleet]\npools = [\"10.42.0.0/16\", \"fd00::/64\"]\nservice_pools = [\"fd01::/112\"]",
        "/etc/warren/warren.toml: fleet.pools: fd00::/64 is an IPv6 network, and Warren has no IPv6 yet: use IPv4 networks only\n\
         /etc/warren/warren.toml: fleet.service_pools: fd01::/112 is an IPv6 network, and Warren has no IPv6 yet: use IPv4 networks only",
    );
    check("[fleet]\npools = []", "/etc/warren/warren.toml: fleet.pools: no pool");
    check(
        "[fleet]\npools = [\"10.1.2.3/16\"]",
        "/etc/warren/warren.toml: fleet.pools: pool 10.1.2.3/16 has host bits set; write 10.1.0.0/16",
    );
    check(
        "[datapath]\naudit_interval = \"0s\"",
        "/etc/warren/warren.toml: datapath.audit_interval: must not be 0",
    );
    assert!(
        file("[etcd]\nendpoints = ").unwrap_err().to_string().contains("line 2"),
        "a syntax error names its line"
    );
}

#[test]
fn flag_overrides_the_file_and_the_file_the_default() {
    let text = "[node]\nname = \"from-file\"\n[log]\nlevel = \"warn\"";
    let config = load(Some((Path::new(PLACE), text)), &[flag("node.name", "from-flag")]).unwrap();
    assert_eq!(config.node.name.unwrap().as_str(), "from-flag");
    assert_eq!(config.log.level, LogLevel::Warn);
    assert_eq!(config.log.format, LogFormat::Text);
}

#[test]
fn flag_that_is_wrong_is_named() {
    let error = load(None, &[flag("fleet.tunnel_port", "many")]).unwrap_err().to_string();
    assert_eq!(
        error,
        "--fleet-tunnel-port: fleet.tunnel_port: \"many\" is not valid: use a whole number from 0 to 65535"
    );
}

#[test]
fn lists_and_labels_are_read_from_texts() {
    let overrides = [
        flag("fleet.pools", "10.1.0.0/16, 10.2.0.0/16"),
        flag("node.labels", "rack=a,zone=b"),
        flag("etcd.endpoints", "http://a:2379,http://b:2379"),
    ];
    let config = load(None, &overrides).unwrap();
    assert_eq!(config.fleet.pools.len(), 2);
    assert_eq!(config.node.labels.to_string(), "rack=a,zone=b");
    assert_eq!(config.etcd.endpoints, ["http://a:2379", "http://b:2379"]);
}

#[test]
fn rendered_configuration_reads_back() {
    let overrides = [
        flag("node.labels", "rack=a"),
        flag("datapath.underlay_address", "192.0.2.1"),
        flag("store", "memory"),
    ];
    let config = load(None, &overrides).unwrap();
    assert_eq!(file(&render(&config)), Ok(config.clone()));
    assert_eq!(to_json(&config)["node"]["labels"]["rack"], "a");
    assert_eq!(to_json(&config)["store"], "memory");
}

#[test]
fn keys_flags_and_variables_are_unique() {
    let mut seen = std::collections::BTreeSet::new();
    for setting in SETTINGS {
        assert!(seen.insert(setting.flag()) && seen.insert(setting.variable()), "{}", setting.key);
    }
}
