//! Users, and TLS with client certificates that are replaced on disk.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use etcd_client::{Client, PermissionType};
use kvstore_etcd::{
    EtcdConfig, EtcdStore, TlsConfig,
    testing::{EtcdCluster, ServerTls, missing},
};
use kvstore_schema::{Key, KvOp, Prefix, Txn};
use kvstore_store::{Store, StoreError, WatchEvent};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair, SanType,
};
use tempfile::TempDir;

fn put(name: &str) -> Txn {
    Txn::new().then(KvOp::Put { key: Key::from_raw(name), value: [].into(), lease: None })
}

fn prefix() -> Prefix {
    Prefix::from_raw("/warren/")
}

/// Creates the users `warren` (with access to /warren/) and `root`, and enables authentication.
async fn turn_users_on(url: &str) {
    let mut client = Client::connect([url], None).await.expect("connect");
    client.role_add("warren").await.expect("role");
    let all = etcd_client::Permission::new(PermissionType::Readwrite, "/warren/").with_prefix();
    client.role_grant_permission("warren", all).await.expect("permission");
    for (user, role) in [("root", "root"), ("warren", "warren")] {
        if role == "root" {
            client.role_add(role).await.expect("role");
        }
        client.user_add(user, "secret", None).await.expect("user");
        client.user_grant_role(user, role).await.expect("grant");
    }
    client.auth_enable().await.expect("enable");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_and_tokens_are_used_and_renewed() {
    if missing() {
        return;
    }
    let mut cluster = EtcdCluster::start(1).await;
    turn_users_on(&cluster.config().endpoints[0]).await;
    let connect = |auth: Option<(&str, &str)>| {
        let auth = auth.map(|(user, password)| (user.to_owned(), password.to_owned()));
        EtcdStore::connect(EtcdConfig { auth, ..cluster.config() }).expect("valid")
    };
    let refused = |answer: Result<_, StoreError>| matches!(answer, Err(StoreError::Refused(_)));
    assert!(refused(connect(None).txn(put("/warren/a")).await));
    assert!(refused(connect(Some(("warren", "wrong"))).txn(put("/warren/a")).await));

    let store = connect(Some(("warren", "secret")));
    let base = store.txn(put("/warren/a")).await.expect("permitted").revision;
    assert!(refused(store.txn(put("/other/a")).await));
    let mut watch = store.watch(&prefix(), base).await.expect("permitted");
    assert!(matches!(watch.events.recv().await, Some(WatchEvent::Changes { .. })));
    let lease = store.lease_grant(Duration::from_secs(60)).await.expect("permitted");
    store.lease_keep_alive(lease).await.expect("permitted");

    // A restarted member does not know its tokens any more; the store requests another one by itself.
    cluster.kill(0);
    cluster.revive(0);
    cluster.wait_ready().await.expect("serves again");
    let mut answer = store.txn(put("/warren/b")).await;
    if matches!(answer, Err(StoreError::Ambiguous(_))) {
        answer = store.txn(put("/warren/b")).await;
    }
    answer.expect("with a new token");
}

/// A certificate authority of the test, and its folder.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    dir: PathBuf,
}

impl Authority {
    fn new(dir: &Path, name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("signed");
        fs::write(dir.join(format!("{name}.pem")), issuer.pem()).expect("write");
        Self { issuer, dir: dir.to_owned() }
    }

    /// Writes `<name>.pem` and `<name>.key`.
    fn sign(&self, name: &str) -> (PathBuf, PathBuf) {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.subject_alt_names = vec![SanType::IpAddress([127, 0, 0, 1].into())];
        // etcd's gateway is a client of its own server, with the server's certificate.
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().expect("a key");
        let cert = params.signed_by(&key, &self.issuer).expect("signed");
        let paths = (self.dir.join(format!("{name}.pem")), self.dir.join(format!("{name}.key")));
        fs::write(&paths.0, cert.pem()).expect("write");
        fs::write(&paths.1, key.serialize_pem()).expect("write");
        paths
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn client_certificates_are_read_again_after_a_change() {
    if missing() {
        return;
    }
    let dir = TempDir::with_prefix("warren-tls-").expect("a directory");
    let (ours, foreign) = (Authority::new(dir.path(), "ca"), Authority::new(dir.path(), "foreign-ca"));
    let ca = dir.path().join("ca.pem");
    let (cert, key) = ours.sign("server");
    let server = ServerTls { cert, key, client_ca: ca.clone() };
    let tls = |(cert, key)| TlsConfig { ca: ca.clone(), cert: Some(cert), key: Some(key), server_name: None };
    let mut cluster = EtcdCluster::start_with(1, Some((server, tls(ours.sign("good"))))).await;

    // A certificate that the server does not accept, then a good one in its place.
    let config = EtcdConfig { tls: Some(tls(foreign.sign("client"))), ..cluster.config() };
    let store = EtcdStore::connect(config).expect("valid");
    let answer = store.txn(put("/warren/a")).await;
    assert!(matches!(answer, Err(StoreError::Unavailable(_))), "{answer:?}");
    let (_, key) = ours.sign("client");
    let base = store.txn(put("/warren/a")).await.expect("with the new certificate").revision;

    // Files in the middle of a rotation do not match; the existing connection stays in use.
    let mut watch = store.watch(&prefix(), base.next()).await.expect("watches");
    fs::write(&key, "-----BEGIN PRIVATE KEY-----\n").expect("write");
    store.txn(put("/warren/b")).await.expect("over the old connection");
    ours.sign("client");
    store.txn(put("/warren/c")).await.expect("over a new one");
    let mut seen = 0;
    while seen < 2 {
        match watch.events.recv().await.expect("goes on over the rotation") {
            WatchEvent::Changes { events, .. } => seen += events.len(),
            WatchEvent::Progress { .. } => {}
            WatchEvent::Ended(error) => panic!("{error}"),
        }
    }

    // Files that the server refuses do not cut off a store that has working ones, even over a restart.
    foreign.sign("client");
    cluster.kill(0);
    cluster.revive(0);
    cluster.wait_ready().await.expect("serves again");
    let begun = Instant::now();
    loop {
        match store.list_page(&prefix(), None, None, 10).await {
            Ok(page) => break assert_eq!(page.entries.len(), 3),
            Err(error) => assert!(begun.elapsed() < Duration::from_secs(60), "{error}"),
        }
    }
}
