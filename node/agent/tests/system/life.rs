//! Endpoints, their traffic and its observation; damage and its repair.

use node_api::{DiffQuery, EndpointState, FlowQuery, LimitQuery, ObserveLine, ObserveQuery};

use crate::stage::{Stage, text};

#[test]
fn endpoint_is_added_answers_and_is_deleted() {
    let Some(mut stage) = Stage::new() else { return };
    let agent = stage.start_ready();
    let client = stage.client();
    let (added, namespace) = stage.add_endpoint("web");
    assert!(!added.existed);
    let again = stage.ask(client.endpoint_add(&stage.request("web", &namespace)));
    assert!(again.existed);
    assert_eq!((again.address, again.identity, again.id), (added.address, added.identity, added.id));

    let address = added.address.to_string();
    let ping = stage.output(stage.node(), "ping", &["-c", "1", "-W", "5", &address]);
    assert!(ping.status.success(), "{}", text(&ping));

    let shown = stage.ask(client.endpoint(&added.name));
    assert_eq!((shown.state, shown.address), (EndpointState::Ready, Some(added.address)));
    let ips = stage.ask(client.ips(&LimitQuery::default()));
    let entry = ips.items.iter().find(|entry| entry.prefix.ip() == added.address).expect("is in the ipcache");
    assert_eq!((entry.identity, entry.endpoint.as_ref()), (added.identity, Some(&added.name)));
    let dump = stage.ask(client.map_dump("WARREN_IPC_V4", &LimitQuery::default()));
    assert!(
        dump.rows.iter().any(|row| row.get("key").is_some_and(|key| *key == address.as_str())),
        "{dump:?}"
    );

    let to_web = FlowQuery { to: Some("endpoint:web".parse().unwrap()), ..Default::default() };
    let flows = stage.ask(client.flows(&to_web));
    assert_eq!((flows.total, flows.items[0].packets, flows.items[0].reply_packets), (1, 1, 1));
    let to_web = ObserveQuery { to: Some("app=web".parse().unwrap()), ..Default::default() };
    stage.wait("the new flow is reported", || {
        stage.ask(async {
            let first = client.observe(&to_web).await?.next().await?;
            Ok(first.filter(|line| {
                matches!(line, ObserveLine::Event(event) if event.destination.endpoint.as_ref() == Some(&added.name))
            }))
        })
    });

    assert!(stage.ask(client.endpoint_delete(&added.name)).existed);
    assert!(!stage.ask(client.endpoint_delete(&added.name)).existed);
    assert_eq!(stage.ask(client.endpoints()).total, 0);
    let ping = stage.output(stage.node(), "ping", &["-c", "1", "-W", "1", &address]);
    assert!(!ping.status.success(), "{}", text(&ping));
    assert_eq!(stage.ask(client.state_diff(&DiffQuery::default())).differences, [] as [String; 0]);
    agent.stop();
}

#[test]
fn forged_source_is_dropped_counted_and_reported() {
    let Some(mut stage) = Stage::new() else { return };
    let agent = stage.start_ready();
    let client = stage.client();
    let (added, namespace) = stage.add_endpoint("liar");
    stage.output(&namespace, "ip", &["address", "add", "203.0.113.7/32", "dev", "lo"]);
    // The neighbour entry must exist: an ARP request from a forged address is refused too.
    let honest = stage.output(&namespace, "ping", &["-c", "1", "-W", "5", "192.0.2.10"]);
    assert!(honest.status.success(), "{}", text(&honest));
    stage.output(&namespace, "ping", &["-c", "1", "-W", "1", "-I", "203.0.113.7", "192.0.2.10"]);
    let drops = stage.ask(client.drops()).items;
    let row = drops.iter().find(|row| row.reason == "source-spoofed").unwrap_or_else(|| panic!("{drops:?}"));
    assert_eq!((row.direction.as_str(), row.packets), ("egress", 1));
    assert!(row.remedy.is_some());
    let query = ObserveQuery { reason: Some("source-spoofed".to_owned()), ..Default::default() };
    let event = stage.wait("the drop is reported", || {
        match stage.ask(async { client.observe(&query).await?.next().await }) {
            Some(ObserveLine::Event(event)) => Some(event),
            _ => None,
        }
    });
    assert_eq!(event.source.address, Some("203.0.113.7".parse().unwrap()));
    assert!(stage.ask(client.endpoint_delete(&added.name)).existed);
    agent.stop();
}

#[test]
fn damage_is_shown_then_repaired_and_counted() {
    let Some(mut stage) = Stage::new() else { return };
    let agent = stage.start_ready();
    let client = stage.client();
    let (added, _) = stage.add_endpoint("web");
    let diff = |repair| stage.ask(client.state_diff(&DiffQuery { repair }));
    assert_eq!(diff(false).differences, [] as [String; 0]);
    let octets = added.address.to_string();
    let pin = stage.pin_root().join("maps/WARREN_IPC_V4");
    let mut arguments = vec!["map", "delete", "pinned", pin.to_str().unwrap(), "key"];
    arguments.extend(octets.split('.'));
    let deleted = stage.output(stage.node(), "bpftool", &arguments);
    assert!(deleted.status.success(), "{}", text(&deleted));
    let shown = diff(false);
    assert!(shown.differences.len() == 1 && shown.differences[0].contains(&octets), "{shown:?}");
    assert_eq!(diff(true).differences, shown.differences);
    assert_eq!(diff(false).differences, [] as [String; 0]);
    assert_eq!(stage.status().audit.repaired_total, 1);
    agent.stop();
}
