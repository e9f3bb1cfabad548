//! The agent follows its node's underlay, and repairs changes of the network stack by others at once.

use std::{fs, time::Instant};

use node_api::{LimitQuery, Status};

use crate::stage::{Stage, text};

/// Far below the half minute after which an audit would find the change too.
const AT_ONCE_SECONDS: u64 = 15;

/// A stage whose underlay is named by its interface.
fn stage() -> Option<Stage> {
    let stage = Stage::new()?;
    let path = stage.path("warren.toml");
    let config = fs::read_to_string(&path).expect("a configuration");
    fs::write(&path, config.replace("underlay_address = \"192.0.2.10\"", "underlay_interface = \"under0\""))
        .expect("written");
    Some(stage)
}

fn ip(stage: &Stage, arguments: &str) -> String {
    let output = stage.output(stage.node(), "ip", &arguments.split(' ').collect::<Vec<_>>());
    assert!(output.status.success(), "ip {arguments}: {}", text(&output));
    text(&output)
}

fn wait_status(stage: &Stage, what: &str, as_expected: impl Fn(&Status) -> bool) -> Status {
    stage.wait(what, || Some(stage.status()).filter(&as_expected))
}

fn pings(stage: &Stage, address: &str) -> bool {
    stage.output(stage.node(), "ping", &["-c", "1", "-W", "5", address]).status.success()
}

#[test]
fn underlay_changes_are_followed() {
    let Some(mut stage) = stage() else { return };
    let agent = stage.start_ready();
    let (web, namespace) = stage.add_endpoint("web");
    let web = web.address.to_string();
    let status = stage.status();
    let underlay = (status.underlay.interface.as_str(), status.underlay.reason.as_str());
    assert_eq!(underlay, ("under0", "the configured interface"));
    let others: Vec<&str> =
        status.underlay.passed_over.iter().map(|other| other.interface.as_str()).collect();
    assert_eq!(others, [] as [&str; 0], "a virtual device without an address is worth no word");

    for (mtu_bytes, pod_mtu_bytes) in [(1400, 1350), (9000, 8950)] {
        ip(&stage, &format!("link set under0 mtu {mtu_bytes}"));
        wait_status(&stage, "the MTU is followed", |status| {
            (status.underlay.mtu_bytes, status.underlay.pod_mtu_bytes) == (mtu_bytes, pod_mtu_bytes)
        });
        stage.wait("by the endpoint", || {
            let inside = text(&stage.output(&namespace, "ip", &["-o", "link", "show", "dev", "eth0"]));
            inside.contains(&format!(" mtu {pod_mtu_bytes} ")).then_some(())
        });
        let routes = ip(&stage, "route show proto 112");
        assert!(routes.contains(&format!("mtu {pod_mtu_bytes}")), "{routes}");
        assert!(pings(&stage, &web));
    }

    ip(&stage, "address add 192.0.2.11/24 dev under0");
    ip(&stage, "address del 192.0.2.10/24 dev under0");
    ip(&stage, "address replace 192.0.2.11/24 dev under0");
    wait_status(&stage, "the address is followed", |status| {
        status.underlay.address.to_string() == "192.0.2.11"
    });
    stage.wait("the host's addresses are the new ones", || {
        let ips = stage.ask(stage.client().ips(&LimitQuery::default())).items;
        let has = |address: &str| ips.iter().any(|entry| entry.prefix.ip().to_string() == address);
        (has("192.0.2.11") && !has("192.0.2.10")).then_some(())
    });
    assert!(pings(&stage, &web));

    ip(&stage, "link del under0");
    let status = wait_status(&stage, "it is said", |status| status.underlay.problem.is_some());
    let problem = status.underlay.problem.expect("a problem");
    assert!(problem.contains("under0 is not there"), "{problem}");
    assert!(pings(&stage, &web), "endpoints do not care");
    ip(&stage, "link add under0 mtu 1500 type veth peer name under1");
    ip(&stage, "address add 192.0.2.12/24 dev under0");
    ip(&stage, "link set under0 up");
    ip(&stage, "link set under1 up");
    let back = |status: &Status| {
        status.underlay.problem.is_none()
            && status.underlay.address.to_string() == "192.0.2.12"
            && status.underlay.pod_mtu_bytes == 1450
    };
    wait_status(&stage, "the new device is found", back);
    assert!(pings(&stage, &web));
    agent.stop();
}

#[test]
fn deletions_by_others_are_repaired_at_once() {
    let Some(mut stage) = Stage::new() else { return };
    let agent = stage.start_ready();
    let (web, _) = stage.add_endpoint("web");
    let web = web.address.to_string();
    let cidr = stage.status().cidrs[0].cidr.to_string();
    for (damage, look, mended) in [
        (format!("route del {cidr} proto 112"), "route show proto 112", cidr.as_str()),
        ("link del warren_vxlan".to_owned(), "-o link show", "warren_vxlan"),
        ("link set warren_host down".to_owned(), "route show proto 112", cidr.as_str()),
    ] {
        // So that the pause between two reads of the kernel is over.
        let before = ip(&stage, look);
        assert!(before.contains(mended), "{before}");
        let begin = Instant::now();
        ip(&stage, &damage);
        stage.wait(&damage, || ip(&stage, look).contains(mended).then_some(()));
        stage.wait(&damage, || pings(&stage, &web).then_some(()));
        assert!(begin.elapsed().as_secs() < AT_ONCE_SECONDS, "{damage}: {:?}", begin.elapsed());
    }
    agent.stop();
}
