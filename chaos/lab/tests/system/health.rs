//! Backends that die, are drained, or lose their node, under a load of new connections: which connections are
//! affected.
//!
//! `WARREN_SCALE_RATE=1000` (`make test-scale`) opens as many connections a second; every run opens a hundred.

use std::{
    collections::BTreeMap,
    io::ErrorKind,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use chaos_lab::{Endpoint, ask, namespace, wait};
use nix::sys::signal::Signal;
use node_api::{BackendState, ServiceBackend};

use crate::{
    load::{Backend, Conversation, Load, Outcome, PORT, connections, reached, scale_rate},
    support::{SOON, TestLab, use_scale_programs},
};

/// The longest time from the death of a backend to the last connection that it gets, with a check of three failures
/// half a second apart: five times what was measured.
const PROMISED: Duration = Duration::from_secs(8);

fn apply(lab: &TestLab, health_check: &str) -> SocketAddr {
    let manifest = format!(
        "apiVersion: warren/v1\nkind: Service\nmetadata: {{name: web}}\nspec:\n  selector: {{matchLabels: {{app: web}}}}\n  \
         ports: [{{port: 80, targetPort: {PORT}}}]\n{health_check}"
    );
    let written = lab.apply("n1", &manifest);
    assert_eq!(written.outcome, node_api::Outcome::Created);
    SocketAddr::new(written.virtual_ip, 80)
}

fn backends(lab: &TestLab, node: &str) -> Result<BTreeMap<IpAddr, ServiceBackend>> {
    let service = ask(lab.api(node).service(&"web".parse()?))?;
    ensure!(ask(lab.api(node).status())?.apply.pending == 0, "the kernel of {node} is behind");
    let backends = service.ports.into_iter().flat_map(|port| port.backends);
    Ok(backends.map(|backend| (backend.address, backend)).collect())
}

/// Waits until a node and its kernel have exactly these backends in these states.
fn wait_states(lab: &TestLab, node: &str, expected: &[(&Endpoint, BackendState)]) {
    let expected: BTreeMap<IpAddr, BackendState> =
        expected.iter().map(|(endpoint, state)| (endpoint.address, *state)).collect();
    wait::until(&format!("states of backends on {node}"), SOON, || {
        let found: BTreeMap<IpAddr, BackendState> =
            backends(lab, node)?.into_iter().map(|(address, backend)| (address, backend.state)).collect();
        ensure!(found == expected, "they are {found:?}, not {expected:?}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn health_check_removes_a_dead_backend_without_other_failures() {
    use BackendState::{Active, Unhealthy};
    let Some(lab) = TestLab::up_with("health", 2, 1, use_scale_programs) else { return };
    let web = [("n1", "web-1"), ("n2", "web-2"), ("n2", "web-3")]
        .map(|(node, name)| lab.endpoint(node, name, "app=web"));
    let client = lab.endpoint("n1", "client", "app=client");
    let [one, two, three] = web.each_ref().map(|endpoint| Backend::start(endpoint, &client));
    let to = apply(
        &lab,
        "  healthCheck: {tcp: {}, interval: 500ms, unhealthyThreshold: 3, healthyThreshold: 1}\n",
    );
    for node in ["n1", "n2"] {
        wait_states(&lab, node, &[(&web[0], Active), (&web[1], Active), (&web[2], Active)]);
    }
    let mut talks = [&web[0], &web[2]].map(|backend| Conversation::with(backend, &client, to));
    let load = Load::start(&client, to);
    assert_eq!(load.wait_for_more(Instant::now()).len(), 3, "all answer, and nothing fails");

    let killed = Instant::now();
    drop(two);
    wait_states(&lab, "n1", &[(&web[0], Active), (&web[1], Unhealthy), (&web[2], Active)]);
    let settled = Instant::now();
    let after = load.wait_for_more(settled);
    assert_eq!(after.keys().map(String::as_str).collect::<Vec<_>>(), ["web-1", "web-3"], "{after:?}");
    wait_states(&lab, "n2", &[(&web[0], Active), (&web[1], Unhealthy), (&web[2], Active)]);
    let state = &backends(&lab, "n1").unwrap()[&web[1].address];
    assert_eq!(state.reason.as_deref(), Some("connection refused"));

    let again = Backend::start(&web[1], &client);
    wait_states(&lab, "n1", &[(&web[0], Active), (&web[1], Active), (&web[2], Active)]);
    assert_eq!(load.wait_for_more(Instant::now()).len(), 3, "all answer again");
    let outcomes = load.end();
    for (talk, backend) in talks.iter_mut().zip([&web[0], &web[2]]) {
        assert!(talk.goes_on_with(backend), "a connection to another backend goes on");
    }
    drop(talks);

    // Failed connections were refused by the dead backend's kernel, before the health check had failed.
    let failed: Vec<&Outcome> = outcomes.iter().filter(|(_, result)| result.is_err()).collect();
    for (begin, result) in &failed {
        assert!(*begin < settled, "failed after the backend had been taken out: {result:?}");
        assert!(
            matches!(
                result,
                Err(ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof)
            ),
            "{result:?}"
        );
    }
    assert_eq!(["n1", "n2"].map(|node| lab.drops(node, "no-backend")), [0, 0], "there were always others");
    let disturbed = [one, three, again].map(|backend| backend.disturbed());
    assert_eq!(disturbed, [0; 3], "connections to backends that live");
    let last = failed.iter().map(|(begin, _)| begin.duration_since(killed)).max().unwrap_or_default();
    println!(
        "{} connections at {:.0}/s: {} met the dead backend, the last {last:?} after the kill; 0 of others were disturbed",
        outcomes.len(),
        reached(&outcomes),
        failed.len(),
    );
    assert!(scale_rate().is_none() || last < PROMISED, "{last:?}");
}

#[test]
fn drain_replaces_all_backends_without_a_failed_request() {
    use BackendState::{Active, Terminating};
    let Some(lab) = TestLab::up_with("rolling", 2, 1, use_scale_programs) else { return };
    let client = lab.endpoint("n1", "client", "app=client");
    let start = |node: &str, name: &str| {
        let endpoint = lab.endpoint(node, name, "app=web");
        let backend = Backend::start(&endpoint, &client);
        (endpoint, backend)
    };
    let former = [start("n1", "old-1"), start("n2", "old-2"), start("n2", "old-3")];
    // A new backend gets no connections before it has passed its node's check once.
    let to = apply(&lab, "  healthCheck: {interval: 500ms, healthyThreshold: 1}\n");
    let all: Vec<_> = former.iter().map(|(endpoint, _)| (endpoint, Active)).collect();
    wait_states(&lab, "n1", &all);
    let load = Load::start(&client, to);
    assert_eq!(load.wait_for_more(Instant::now()).len(), 3);

    let mut new = Vec::new();
    for (old, server) in former {
        let next = start(&old.node, &old.name.replace("old", "new"));
        let mut talk = Conversation::with(&old, &client, to);
        let drained = lab.warren(&old.node, &["endpoint", "drain", &old.name]);
        assert_eq!(drained, (0, format!("endpoint {} takes no new flows\n", old.name), String::new()));
        let address = next.0.address;
        new.push(next);
        wait::until("the old one to be out, and the new one in", SOON, || {
            let states = backends(&lab, "n1")?;
            let state = |address| states.get(&address).map(|backend| backend.state);
            ensure!(state(old.address) == Some(Terminating), "{states:?}");
            ensure!(state(address) == Some(Active), "{states:?}");
            Ok(())
        })
        .unwrap();
        assert!(talk.goes_on_with(&old), "what runs goes on");
        drop(talk);
        wait::until("its connections to end", SOON, || {
            let open = connections(&old)?;
            ensure!(open == 0, "{open} are open");
            Ok(())
        })
        .unwrap();
        lab.delete_endpoint(&old.node, &old.name).unwrap();
        assert_eq!(server.disturbed(), 0, "connections of {}", old.name);
    }
    let after = load.wait_for_more(Instant::now());
    assert_eq!(after.keys().map(String::as_str).collect::<Vec<_>>(), ["new-1", "new-2", "new-3"]);
    let outcomes = load.end();
    let failed: Vec<&Outcome> = outcomes.iter().filter(|(_, result)| result.is_err()).collect();
    assert!(failed.is_empty(), "{} of {} failed: {failed:?}", failed.len(), outcomes.len());
    println!(
        "{} requests at {:.0}/s while all backends were replaced: 0 failed",
        outcomes.len(),
        reached(&outcomes)
    );
}

/// Without any configured health check: the death of a node is always noticed.
#[test]
fn node_death_removes_its_backends_but_agent_death_does_not() {
    use BackendState::{Active, Unhealthy};
    let Some(mut lab) = TestLab::up_with("node-death", 2, 1, use_scale_programs) else { return };
    lab.expect_errors();
    let web = [("n1", "web-1"), ("n2", "web-2")].map(|(node, name)| lab.endpoint(node, name, "app=web"));
    let client = lab.endpoint("n1", "client", "app=client");
    let _servers = web.each_ref().map(|endpoint| Backend::start(endpoint, &client));
    let to = apply(&lab, "");
    let both = [(&web[0], Active), (&web[1], Active)];
    wait_states(&lab, "n1", &both);

    lab.end("n2", Signal::SIGKILL).unwrap();
    wait::until("n1 to hear nothing of n2's agent", SOON, || {
        let status = ask(lab.api("n1").status())?;
        ensure!(status.gossip.peers.iter().all(|peer| !peer.alive), "it hears it");
        Ok(())
    })
    .unwrap();
    let load = Load::start(&client, to);
    let answers = load.wait_for_more(Instant::now());
    assert_eq!(answers.keys().map(String::as_str).collect::<Vec<_>>(), ["web-1", "web-2"], "{answers:?}");
    wait_states(&lab, "n1", &both);
    load.end();

    lab.start_agent("n2").unwrap();
    lab.wait_node_ready("n2").unwrap();
    lab.wait_node_ready("n1").unwrap();
    wait_states(&lab, "n1", &both);
    let died = Instant::now();
    let link = |state: &str| {
        namespace::ip(["-n", &lab.name().underlay_namespace(), "link", "set", "n2", state]).unwrap();
    };
    link("down");
    lab.end("n2", Signal::SIGKILL).unwrap();
    wait_states(&lab, "n1", &[(&web[0], Active), (&web[1], Unhealthy)]);
    println!("a dead node's backends were out after {:?}", died.elapsed());
    let reason = backends(&lab, "n1").unwrap()[&web[1].address].reason.clone();
    assert_eq!(reason.as_deref(), Some("node n2 does not answer"));
    let load = Load::start(&client, to);
    let answers = load.wait_for_more(Instant::now());
    assert_eq!(answers.keys().map(String::as_str).collect::<Vec<_>>(), ["web-1"], "{answers:?}");
    load.end();
    // The agent stays down: a node that answers again is enough.
    link("up");
    wait_states(&lab, "n1", &both);
}
