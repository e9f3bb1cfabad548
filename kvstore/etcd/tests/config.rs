//! Invalid configurations and their messages.

use std::{path::PathBuf, time::Duration};

use kvstore_etcd::{EtcdConfig, EtcdStore, TlsConfig};

#[track_caller]
fn check(config: &EtcdConfig, expected: &[&str]) {
    let errors = config.validate().expect_err("wrong").0;
    assert_eq!(errors, expected);
    assert_eq!(EtcdStore::connect(config.clone()).expect_err("wrong").0, expected);
}

#[test]
fn endpoints_are_checked() {
    check(&EtcdConfig::new([""; 0]), &["no endpoints: give one per member, as http://host:2379"]);
    check(
        &EtcdConfig::new(["10.0.0.1:2379", "http://10.0.0.1", "http://10.0.0.1:2379/etcd", "http://u:p@h:1"]),
        &[
            r#"endpoint "10.0.0.1:2379": write it as http://host:port or https://host:port"#,
            r#"endpoint "http://10.0.0.1": there is no port; etcd's clients use 2379"#,
            r#"endpoint "http://10.0.0.1:2379/etcd": nothing may follow the port"#,
            r#"endpoint "http://u:p@h:1": user and password do not belong into the endpoint"#,
        ],
    );
    check(
        &EtcdConfig::new(["http://a:1", "https://b:1", "http://a:1"]),
        &[
            r#"endpoint "http://a:1" is there twice"#,
            "endpoints mix http:// and https://: use one for all members",
            "https:// endpoints need the file of their CA (tls ca)",
        ],
    );
}

#[test]
fn mistakes_are_all_reported_at_once() {
    let tls = TlsConfig {
        ca: PathBuf::from("/nonexistent/ca.pem"),
        cert: Some(PathBuf::from("/dev/null")),
        key: None,
        server_name: None,
    };
    let config = EtcdConfig {
        tls: Some(tls),
        auth: Some((String::new(), String::new())),
        call_timeout: Duration::from_millis(1),
        ..EtcdConfig::new(["http://a:1"])
    };
    check(
        &config,
        &[
            "TLS files are given, but not every endpoint is https://",
            "a client certificate without its key (tls key)",
            "TLS file /nonexistent/ca.pem: No such file or directory (os error 2)",
            "TLS file /dev/null: no PEM in it",
            "the user's name is empty; leave user and password out to use none",
            "the user's password is empty",
            "call timeout 1ms is not between 500ms and 10s",
        ],
    );
}

#[test]
fn password_is_masked() {
    let auth = Some(("warren".to_owned(), "hunter2".to_owned()));
    let config = EtcdConfig { auth, ..EtcdConfig::new(["http://a:1"]) };
    let store = EtcdStore::connect(config.clone()).expect("valid");
    for text in [format!("{config:?}"), format!("{store:?}")] {
        assert!(text.contains("warren") && !text.contains("hunter2"), "{text}");
    }
}
