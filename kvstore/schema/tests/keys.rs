//! Keys: what is put together comes apart again, and nothing else does.

use identity::{Identity, Labels};
use kvstore_schema::{
    Key, Prefix, Schema,
    key::ParsedKey,
    service::{ServiceClaim, ServiceProtocol},
};

fn schema() -> Schema {
    Schema::new(&"prod".parse().unwrap())
}

#[test]
fn key_has_one_text() {
    let schema = schema();
    let node: identity::NodeName = "n1".parse().unwrap();
    let digest = Labels::default().digest();
    let check = |key: Key, text: &str, parsed: ParsedKey| {
        assert_eq!(key.as_str(), format!("/warren/v1/prod/{text}"));
        assert_eq!(schema.parse(&key), Ok(parsed));
        assert!(schema.root().contains(&key));
    };
    let id = Identity::FLEET_MIN;
    check(schema.fleet(), "fleet", ParsedKey::Fleet);
    check(schema.mark(), "mark", ParsedKey::Mark);
    check(schema.node(&node), "nodes/n1", ParsedKey::Node(node.clone()));
    check(schema.alive(&node), "alive/n1", ParsedKey::Alive(node.clone()));
    for (cidr, text) in [("10.1.2.0/24", "cidrs/10.1.2.0-24"), ("fd00::/64", "cidrs/fd00::-64")] {
        let cidr = cidr.parse().unwrap();
        check(schema.cidr(cidr), text, ParsedKey::Cidr(cidr));
    }
    let labels = format!("identities/labels/{digest}");
    check(schema.identity_labels(&digest), &labels, ParsedKey::IdentityLabels(digest.clone()));
    check(schema.identity_id(id), "identities/id/256", ParsedKey::IdentityId(id));
    check(schema.identity_ref(id, &node), "identities/refs/256/n1", ParsedKey::IdentityRef(id, node.clone()));
    let ip = "10.1.2.3".parse().unwrap();
    check(schema.endpoint(&node, ip), "endpoints/n1/10.1.2.3", ParsedKey::Endpoint(node.clone(), ip));
    let web: identity::ServiceName = "web".parse().unwrap();
    check(schema.service(&web), "services/web", ParsedKey::Service(web.clone()));
    let frontend = ServiceClaim::Frontend { address: ip, protocol: ServiceProtocol::Udp, port: 53 };
    for (claim, text) in [
        (ServiceClaim::VirtualIp(ip), "vips/10.1.2.3"),
        (frontend, "frontends/10.1.2.3/udp/53"),
        (ServiceClaim::of_nodes(ServiceProtocol::Tcp, 30_080), "frontends/0.0.0.0/tcp/30080"),
    ] {
        check(schema.service_claim(&claim), text, ParsedKey::ServiceClaim(claim));
    }
    for (text, parsed) in
        [("policies/web", ParsedKey::Policy("web".to_owned())), ("keyring", ParsedKey::Keyring)]
    {
        assert_eq!(schema.parse(&Key::from_raw(format!("/warren/v1/prod/{text}"))), Ok(parsed));
    }
    assert!(schema.frontends_of(ip).contains(&schema.service_claim(&frontend)));
}

#[test]
fn cidr_key_is_the_network() {
    let schema = schema();
    assert_eq!(schema.cidr("10.1.2.3/24".parse().unwrap()), schema.cidr("10.1.2.0/24".parse().unwrap()));
}

#[test]
fn key_of_unknown_form_is_refused() {
    let refused = |text: &str| {
        let key = Key::from_raw(format!("/warren/v1/prod/{text}"));
        assert!(schema().parse(&key).is_err(), "{key}");
    };
    for text in [
        "",
        "fleet/",
        "nodes/",
        "nodes/A",
        "nodes/a/b",
        "cidrs/10.1.2.3-24",
        "cidrs/10.1.2.0",
        "cidrs/10.1.2.0-33",
        "cidrs/fd00:0::-64",
        "identities/id/0256",
        "identities/id/+256",
        "identities/id/-1",
        "identities/id/99999999999",
        "identities/labels/abc",
        "identities/refs/256",
        "endpoints/n1/010.1.2.3",
        "endpoints/n1/fd00::0",
        "endpoints/n1",
        "services/Web",
        "services/web/v2",
        "vips/010.1.2.3",
        "vips/web",
        "frontends/10.1.2.3/tcp/080",
        "frontends/10.1.2.3/tcp/65536",
        "frontends/10.1.2.3/icmp/8",
        "frontends/10.1.2.3/tcp",
    ] {
        refused(text);
    }
    assert!(schema().parse(&Key::from_raw("/warren/v1/production/fleet")).is_err());
}

#[test]
fn prefix_of_references_holds_one_number_only() {
    let prefix = schema().identity_refs(Identity::FLEET_MIN);
    assert!(!prefix.contains(&Key::from_raw("/warren/v1/prod/identities/refs/2560/n1")));
    assert!(prefix.contains(&Key::from_raw("/warren/v1/prod/identities/refs/256/n1")));
}

#[test]
fn prefix_range_ends_behind_its_last_key() {
    assert_eq!(Prefix::from_raw("a/").range_end(), b"a0");
    assert_eq!(Prefix::from_raw("").range_end(), [0]);
}
