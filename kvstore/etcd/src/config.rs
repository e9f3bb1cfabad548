//! The configuration of the etcd client; all mistakes are reported at once.

use std::{
    collections::BTreeSet,
    fmt, fs,
    path::{Path, PathBuf},
    time::Duration,
};

use tonic::transport::Uri;

/// Enough for three attempts of 1.5 s each, so that no call fails because of one frozen member of three.
pub const DEFAULT_CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// With less, a call would give up before a healthy member under load answers.
const SHORTEST_CALL_TIMEOUT: Duration = Duration::from_millis(500);

/// With more, a black hole would not be known to be down within 10 s.
const LONGEST_CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// How to reach etcd.
#[derive(Clone, PartialEq, Eq)]
pub struct EtcdConfig {
    /// `http://host:port` or `https://host:port`, with one scheme for all.
    pub endpoints: Vec<String>,
    /// Required for `https://`.
    pub tls: Option<TlsConfig>,
    /// User and password.
    pub auth: Option<(String, String)>,
    /// The deadline of one call, attempts on all members included.
    pub call_timeout: Duration,
}

/// Files in PEM format, read again when they change on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsConfig {
    /// Certificates of the CAs that may sign a member's certificate.
    pub ca: PathBuf,
    /// The client certificate with its chain; requires `key`.
    pub cert: Option<PathBuf>,
    /// The key of the client certificate.
    pub key: Option<PathBuf>,
    /// The name in the members' certificates, where it is not the endpoint's host.
    pub server_name: Option<String>,
}

/// All mistakes of a configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("etcd configuration: {}", .0.join("; "))]
pub struct ConfigErrors(pub Vec<String>);

impl fmt::Debug for EtcdConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let masked = self.auth.as_ref().map(|(user, _)| (user, "***"));
        f.debug_struct("EtcdConfig")
            .field("endpoints", &self.endpoints)
            .field("tls", &self.tls)
            .field("auth", &masked)
            .field("call_timeout", &self.call_timeout)
            .finish()
    }
}

impl EtcdConfig {
    /// Members without TLS and without users.
    pub fn new(endpoints: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            endpoints: endpoints.into_iter().map(Into::into).collect(),
            tls: None,
            auth: None,
            call_timeout: DEFAULT_CALL_TIMEOUT,
        }
    }

    /// Checks everything that does not need etcd; reads the TLS files.
    ///
    /// # Errors
    /// All mistakes, each with what to do.
    pub fn validate(&self) -> Result<(), ConfigErrors> {
        let mut errors = Vec::new();
        self.check_endpoints(&mut errors);
        if let Some(tls) = &self.tls {
            tls.check(&mut errors);
        }
        if let Some((user, password)) = &self.auth {
            if user.is_empty() {
                errors.push("the user's name is empty; leave user and password out to use none".to_owned());
            }
            if password.is_empty() {
                errors.push("the user's password is empty".to_owned());
            }
        }
        if !(SHORTEST_CALL_TIMEOUT..=LONGEST_CALL_TIMEOUT).contains(&self.call_timeout) {
            errors.push(format!(
                "call timeout {:?} is not between {SHORTEST_CALL_TIMEOUT:?} and {LONGEST_CALL_TIMEOUT:?}",
                self.call_timeout
            ));
        }
        if errors.is_empty() { Ok(()) } else { Err(ConfigErrors(errors)) }
    }

    fn check_endpoints(&self, errors: &mut Vec<String>) {
        if self.endpoints.is_empty() {
            errors.push("no endpoints: give one per member, as http://host:2379".to_owned());
        }
        let mut seen = BTreeSet::new();
        for endpoint in &self.endpoints {
            if let Err(reason) = check_endpoint(endpoint) {
                errors.push(format!("endpoint {endpoint:?}: {reason}"));
            }
            if !seen.insert(endpoint) {
                errors.push(format!("endpoint {endpoint:?} is there twice"));
            }
        }
        let secure = self.endpoints.iter().filter(|endpoint| endpoint.starts_with("https://")).count();
        if secure > 0 && self.endpoints.iter().any(|endpoint| endpoint.starts_with("http://")) {
            errors.push("endpoints mix http:// and https://: use one for all members".to_owned());
        }
        match &self.tls {
            Some(_) if secure < self.endpoints.len() => {
                errors.push("TLS files are given, but not every endpoint is https://".to_owned());
            }
            None if secure > 0 => {
                errors.push("https:// endpoints need the file of their CA (tls ca)".to_owned())
            }
            _ => {}
        }
    }
}

fn check_endpoint(endpoint: &str) -> Result<(), String> {
    if !endpoint.starts_with("http://") && !endpoint.starts_with("https://") {
        return Err("write it as http://host:port or https://host:port".to_owned());
    }
    let uri: Uri = endpoint.parse().map_err(|error| format!("{error}"))?;
    if uri.host().is_none_or(str::is_empty) {
        return Err("there is no host".to_owned());
    }
    if uri.port_u16().is_none_or(|port| port == 0) {
        return Err("there is no port; etcd's clients use 2379".to_owned());
    }
    if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return Err("user and password do not belong into the endpoint".to_owned());
    }
    if uri.path_and_query().is_some_and(|path| path != "/") {
        return Err("nothing may follow the port".to_owned());
    }
    Ok(())
}

impl TlsConfig {
    /// The files, in a fixed order.
    pub(crate) fn files(&self) -> impl Iterator<Item = &Path> {
        [Some(&self.ca), self.cert.as_ref(), self.key.as_ref()].into_iter().flatten().map(PathBuf::as_path)
    }

    fn check(&self, errors: &mut Vec<String>) {
        match (&self.cert, &self.key) {
            (Some(_), None) => errors.push("a client certificate without its key (tls key)".to_owned()),
            (None, Some(_)) => errors.push("a client key without its certificate (tls cert)".to_owned()),
            _ => {}
        }
        for file in self.files() {
            match fs::read(file) {
                Err(error) => errors.push(format!("TLS file {}: {error}", file.display())),
                Ok(bytes) if !bytes.windows(11).any(|window| window == b"-----BEGIN ") => {
                    errors.push(format!("TLS file {}: no PEM in it", file.display()));
                }
                Ok(_) => {}
            }
        }
    }
}
