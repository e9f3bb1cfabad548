//! Checks of a configuration beyond its text: files, addresses, keys. `warrend check` reports all problems at once; the
//! start of the agent fails with the first.

use std::{fs, net::IpAddr, time::Duration};

use anyhow::Context;
use kvstore_etcd::{EtcdConfig, TlsConfig};
use node_gossip::{Keyring, MAX_INTERVAL, MIN_INTERVAL};

use crate::config::{Config, EtcdSection, StoreKind};

/// All problems, each as a text.
pub fn problems(config: &Config) -> Vec<String> {
    let mut problems = Vec::new();
    let mut note = |key: &str, result: anyhow::Result<()>| {
        if let Err(error) = result {
            problems.push(format!("{key}: {error:#}"));
        }
    };
    if config.store == StoreKind::Etcd {
        note("etcd", etcd_config(&config.etcd).and_then(|config| Ok(config.validate()?)));
        note("gossip.key_file", Keyring::load(&config.gossip.key_file).map(drop).map_err(Into::into));
        note("gossip.interval", check_interval(config.gossip.interval));
    }
    problems
}

fn check_interval(interval: Duration) -> anyhow::Result<()> {
    anyhow::ensure!(
        (MIN_INTERVAL..=MAX_INTERVAL).contains(&interval),
        "{interval:?} is not between {MIN_INTERVAL:?} and {MAX_INTERVAL:?}"
    );
    Ok(())
}

/// The configuration of the etcd store, with the password read from its file.
///
/// # Errors
/// When the password file cannot be read.
pub fn etcd_config(section: &EtcdSection) -> anyhow::Result<EtcdConfig> {
    let auth = match (&section.user, &section.password_file) {
        (Some(user), Some(path)) => {
            let password =
                fs::read_to_string(path).with_context(|| format!("read password file {}", path.display()))?;
            Some((user.clone(), password.trim_end_matches(['\r', '\n']).to_owned()))
        }
        _ => None,
    };
    let tls = section.ca_file.clone().map(|ca| TlsConfig {
        ca,
        cert: section.cert_file.clone(),
        key: section.key_file.clone(),
        server_name: section.server_name.clone(),
    });
    Ok(EtcdConfig { endpoints: section.endpoints.clone(), tls, auth, call_timeout: section.call_timeout })
}

/// The hosts of endpoints that are addresses. The route to them tells the underlay interface.
pub fn literal_addresses(endpoints: &[String]) -> Vec<IpAddr> {
    let host = |endpoint: &String| {
        let authority = endpoint.split_once("://").map_or(endpoint.as_str(), |(_, rest)| rest);
        let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
        host.trim_matches(['[', ']']).parse().ok()
    };
    endpoints.iter().filter_map(host).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn literal_addresses_are_those_of_endpoints_without_names() {
        let endpoints =
            ["http://192.0.2.1:2379", "https://etcd-1.example.net:2379", "http://[2001:db8::1]:2379"];
        let endpoints = endpoints.map(str::to_owned);
        let expected: [IpAddr; 2] = ["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
        assert_eq!(literal_addresses(&endpoints), expected);
    }

    #[test]
    fn problems_of_missing_files_are_reported_at_once() {
        let mut config = Config::default();
        config.etcd.endpoints = vec!["https://192.0.2.1:2379".to_owned()];
        config.etcd.ca_file = Some("/nonexistent/ca.pem".into());
        config.gossip.key_file = "/nonexistent/gossip.key".into();
        let problems = problems(&config).join("\n");
        assert!(problems.contains("/nonexistent/ca.pem"), "{problems}");
        assert!(problems.contains("/nonexistent/gossip.key"), "{problems}");
    }

    #[test]
    fn problems_of_a_single_node_without_files_are_none() {
        let config = Config { store: StoreKind::Memory, ..Config::default() };
        assert_eq!(problems(&config), [] as [String; 0]);
    }
}
