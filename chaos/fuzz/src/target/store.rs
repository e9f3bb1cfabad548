//! Input from etcd, and from the store file of a single node.

use identity::FleetName;
use kvstore_schema::{
    Key, KeyValue, ListPage, Prefix, Revision, Schema, StoreIdentity,
    key::ParsedKey,
    record::{
        AliveRecord, CidrRecord, EndpointRecord, FleetRecord, IdentityIdRecord, IdentityLabelsRecord,
        IdentityRefRecord, NodeRecord, Record,
    },
    service::{ServiceClaimRecord, ServiceRecord},
};
use kvstore_store::MemState;

use super::{Target, sample};

/// A key under the fleet's prefix. A parsed key is formatted to the same text.
pub const RECORD_KEY: Target = Target {
    name: "record-key",
    run: key,
    seeds: key_seeds,
    words: &[
        "endpoints/",
        "cidrs/",
        "identities/refs/",
        "/n1",
        "10.0.1.0-24",
        "fd00::-64",
        "::ffff:10.0.0.1",
        "-0",
        "+",
    ],
    rounds: 10_000,
};

fn schema() -> Schema {
    Schema::new(&FleetName::new("test").expect("a name"))
}

fn key(bytes: &[u8]) {
    let schema = schema();
    let key = Key::from_raw(format!("{}{}", schema.root(), String::from_utf8_lossy(bytes)));
    let again = match schema.parse(&key) {
        Err(_) | Ok(ParsedKey::Policy(_) | ParsedKey::Keyring) => return,
        Ok(ParsedKey::Fleet) => schema.fleet(),
        Ok(ParsedKey::Mark) => schema.mark(),
        Ok(ParsedKey::Node(node)) => schema.node(&node),
        Ok(ParsedKey::Alive(node)) => schema.alive(&node),
        Ok(ParsedKey::Cidr(cidr)) => {
            assert_eq!(cidr.ip(), cidr.network(), "a claim with host bits");
            schema.cidr(cidr)
        }
        Ok(ParsedKey::IdentityLabels(digest)) => schema.identity_labels(&digest),
        Ok(ParsedKey::IdentityId(id)) => schema.identity_id(id),
        Ok(ParsedKey::IdentityRef(id, node)) => schema.identity_ref(id, &node),
        Ok(ParsedKey::Endpoint(node, ip)) => schema.endpoint(&node, ip),
        Ok(ParsedKey::Service(name)) => schema.service(&name),
        Ok(ParsedKey::ServiceClaim(claim)) => schema.service_claim(&claim),
    };
    assert_eq!(again, key, "one thing has two keys");
}

fn key_seeds() -> Vec<Vec<u8>> {
    let digest = sample::labels("app=web").digest();
    let texts =
        ["fleet", "nodes/n1", "alive/n1", "cidrs/10.0.1.0-24", "cidrs/fd00::-64", "identities/id/256"];
    let more = [
        "identities/refs/256/n1",
        "endpoints/n1/10.0.1.5",
        "endpoints/n1/fd00::5",
        "services/web",
        "vips/10.201.0.5",
        "frontends/0.0.0.0/tcp/30080",
        "keyring",
        "mark",
    ];
    let labels = format!("identities/labels/{digest}");
    texts.into_iter().chain(more).chain([labels.as_str()]).map(|text| text.as_bytes().to_vec()).collect()
}

/// The value of a record; the first byte selects the kind. An accepted one is written and read back as equal.
pub const RECORD_VALUE: Target = Target {
    name: "record-value",
    run: value,
    seeds: value_seeds,
    words: &[
        "\"v\":1",
        "\"v\":2",
        "\"unknown\":",
        "null",
        "[]",
        "\"0.0.0.0/0\"",
        "\"pools\":",
        "\"spec\":{",
        "\"targetPort\":0",
        "\"nodePort\":30080",
        "\"node_ports\":[{",
        "\"sctp\"",
        "\"matchExpressions\":[{",
        "16777216",
        "-1",
        "1e400",
        "{\"a\":",
    ],
    rounds: 4_000,
};

fn value(bytes: &[u8]) {
    fn check<R: Record + PartialEq + std::fmt::Debug>(bytes: &[u8]) {
        let Ok(record) = R::decode(bytes) else { return };
        assert_eq!(R::decode(&record.encode()).as_ref(), Ok(&record));
    }
    let Some((kind, bytes)) = bytes.split_first() else { return };
    match kind {
        b'0' => check::<FleetRecord>(bytes),
        b'1' => check::<NodeRecord>(bytes),
        b'2' => check::<AliveRecord>(bytes),
        b'3' => check::<CidrRecord>(bytes),
        b'4' => check::<IdentityLabelsRecord>(bytes),
        b'5' => check::<IdentityIdRecord>(bytes),
        b'6' => check::<IdentityRefRecord>(bytes),
        b'8' => check::<ServiceRecord>(bytes),
        b'9' => check::<ServiceClaimRecord>(bytes),
        _ => check::<EndpointRecord>(bytes),
    }
}

fn value_seeds() -> Vec<Vec<u8>> {
    let values = [
        sample::fleet_record().encode(),
        sample::node_record().encode(),
        sample::alive_record().encode(),
        sample::cidr_record().encode(),
        sample::identity_labels_record().encode(),
        sample::identity_id_record().encode(),
        sample::identity_ref_record().encode(),
        sample::endpoint_record().encode(),
        sample::service_record().encode(),
        sample::service_claim_record().encode(),
    ];
    values.iter().zip(b'0'..).map(|(value, kind)| [&[kind], &value[..]].concat()).collect()
}

/// The listing in the store file of a single node: a store loaded from it lists the same.
pub const STORE_FILE: Target = Target {
    name: "store-file",
    run: store_file,
    seeds: store_file_seeds,
    words: &["\"entries\":[", "\"lease\":1", "9223372036854775807", "-9223372036854775808", "\"key\":\"\""],
    rounds: 2_000,
};

fn store_file(bytes: &[u8]) {
    let Ok(listing) = serde_json::from_slice::<ListPage>(bytes) else { return };
    let store = MemState::loaded(listing.clone());
    let page = store.list(&Prefix::from_raw("/"), None, None, usize::MAX).expect("now is never compacted");
    assert_eq!((page.revision, page.store), (listing.revision, listing.store));
    assert!(page.entries.iter().all(|kv| kv.lease.is_none() && listing.entries.contains(kv)));
}

fn store_file_seeds() -> Vec<Vec<u8>> {
    let kv = |key, value| KeyValue {
        key,
        value,
        create_revision: Revision(2),
        mod_revision: Revision(3),
        lease: None,
    };
    let entries = vec![
        kv(schema().fleet(), [1, 2, 3][..].into()),
        kv(schema().cidr(sample::network("10.0.0.0/24")), sample::cidr_record().encode()),
    ];
    let listing = ListPage { entries, revision: Revision(3), store: StoreIdentity(1), more: false };
    vec![serde_json::to_vec(&listing).expect("a listing is JSON")]
}
