//! Invalid input of every kind ends in an error that names the remedy.

use std::fs;

use anyhow::ensure;
use chaos_lab::{Lab, ask, namespace, process, wait};
use nix::sys::signal::Signal;

use crate::support::{SOON, TestLab};

#[test]
fn cli_explains_invalid_input() {
    let Some(mut lab) = TestLab::up("mistakes", 1, 1) else { return };
    lab.expect_errors();
    let check = |arguments: &[&str], code: i32, expected: &[&str]| {
        let (actual, stdout, stderr) = lab.warren("n1", arguments);
        assert_eq!((actual, stdout.as_str()), (code, ""), "{arguments:?}: {stderr}");
        for text in expected {
            assert!(stderr.contains(text), "{arguments:?} says {stderr:?}, not {text:?}");
        }
    };
    check(
        &["endpoint", "add", "web", "--netns", "no-such-namespace", "-l", "app=web"],
        1,
        &["no-such-namespace"],
    );
    check(&["endpoint", "add", "web", "--netns", "/etc/hostname", "-l", "app=web"], 1, &["/etc/hostname"]);
    check(&["endpoint", "add", "web", "--netns", "x", "-l", "app"], 2, &["key=value"]);
    check(&["endpoint", "add", "web", "--netns", "x", "-l", "app=a b"], 2, &["app"]);
    check(&["endpoint", "get", "nobody"], 1, &["nobody"]);
    check(&["node", "remove", "nobody"], 1, &["nobody"]);
    check(&["node", "remove", "n1"], 1, &["ask another node"]);
    check(&["cidr", "release", "10.9.9.0/24"], 1, &["10.9.9.0/24"]);
    check(&["map", "dump", "NO_SUCH_MAP"], 1, &["NO_SUCH_MAP"]);

    let web = lab.endpoint("n1", "web", "app=web");
    let namespace = web.namespace.as_str();
    let used = web.address.to_string();
    check(
        &["endpoint", "add", "web", "--netns", namespace, "-l", "app=other"],
        1,
        &["web", "delete it first"],
    );
    check(&["endpoint", "add", "other", "--netns", "x", "--ip", "10.9.9.9"], 1, &["10.9.9.9"]);
    check(&["endpoint", "add", "other", "--netns", "x", "--ip", &used], 1, &[&used]);
    let cidr = ask(lab.api("n1").status()).unwrap().cidrs[0].cidr.to_string();
    check(&["cidr", "release", &cidr], 1, &[&cidr]);

    services_that_cannot_be(&lab);
    a_namespace_that_is_gone(&lab);
    a_second_agent_on_the_node(&lab);
}

/// Services that are invalid, or that the fleet rejects, do not affect the valid ones.
fn services_that_cannot_be(lab: &TestLab) {
    let file = lab.name().folder().join("services.yaml");
    let path = file.to_str().unwrap();
    let service = |name: &str, more: &str| {
        format!(
            "apiVersion: warren/v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  selector: {{}}\n  ports: [{{port: 80{more}}}]\n"
        )
    };
    let write = |services: &[String]| fs::write(&file, services.join("---\n")).unwrap();
    let node_port = ", nodePort: 30080";
    write(&[service("first", node_port)]);
    assert_eq!(lab.warren("n1", &["apply", "-f", path]).0, 0);
    write(&[service("second", node_port), service("third", "")]);
    let (code, stdout, stderr) = lab.warren("n1", &["apply", "-f", path]);
    assert_eq!(code, 1);
    assert!(stdout.starts_with("service third created: ") && stdout.lines().count() == 1, "{stdout}");
    assert_eq!(
        stderr,
        "warren: service second: node port 30080/tcp belongs to service first; use another one, or nodePort: auto\n"
    );
    write(&[service("fourth", ""), service("fifth", ", nodePort: 80")]);
    let (code, stdout, stderr) = lab.warren("n1", &["apply", "-f", path]);
    assert_eq!(code, 2);
    assert!(stdout.starts_with("service fourth created: ") && stdout.lines().count() == 1, "{stdout}");
    assert!(
        stderr.contains(&format!("{path}: line 8: service fifth: spec.ports[0].nodePort: 80")),
        "{stderr}"
    );
    wait::until("the others to be known", SOON, || {
        let services = ask(lab.api("n1").services())?.items;
        let names: Vec<&str> = services.iter().map(|service| service.name.as_str()).collect();
        ensure!(names == ["first", "fourth", "third"], "there are {names:?}");
        Ok(())
    })
    .unwrap();
    for (name, said) in [("first", "deleted"), ("third", "deleted"), ("third", "was not there")] {
        let answer = (0, format!("service {name} {said}\n"), String::new());
        assert_eq!(lab.warren("n1", &["delete", "service", name]), answer);
    }
}

/// The namespace of an endpoint is deleted without the agent: the endpoint can still be deleted.
fn a_namespace_that_is_gone(lab: &TestLab) {
    let gone = lab.endpoint("n1", "gone", "app=gone");
    namespace::delete(&gone.namespace).unwrap();
    let (code, _, stderr) = lab.warren("n1", &["endpoint", "delete", "gone"]);
    assert_eq!(code, 0, "{stderr}");
    wait::until("the kernel to be as wanted", SOON, || {
        let (code, text, _) = lab.warren("n1", &["state", "diff"]);
        ensure!(code == 0, "{text}");
        Ok(())
    })
    .unwrap();
}

fn a_second_agent_on_the_node(lab: &TestLab) {
    let warrend = lab.spec().programs.join("warrend");
    let config = lab.config_path("n1");
    let inside = lab.name().machine_namespace("n1");
    let arguments = ["--config", config.to_str().unwrap()];
    let error = process::run(&inside, warrend.to_str().unwrap(), &arguments).unwrap_err().to_string();
    let running = lab.processes("n1").unwrap();
    assert!(error.contains("exit status: 1"), "{error}");
    assert!(running.iter().any(|pid| error.contains(&pid.to_string())), "{error} does not name {running:?}");
    assert!(ask(lab.api("n1").status()).unwrap().ready, "the first agent goes on");
}

#[test]
fn pool_exhaustion_names_the_remedy() {
    let small = |spec: &mut chaos_lab::Spec| {
        spec.pools = vec!["10.200.0.0/29".to_owned()];
        spec.block_prefix_v4 = 30;
    };
    let Some(mut lab) = TestLab::up_with("full", 1, 1, small) else { return };
    lab.expect_errors();
    let labels = "app=many".parse().unwrap();
    let error = (0..8)
        .find_map(|number| lab.add_endpoint("n1", &format!("w{number}"), &labels).err())
        .expect("eight endpoints do not fit in a pool of eight addresses, some of which are no host's");
    let text = format!("{error:#}");
    assert!(text.contains("pool"), "{text} does not say what to do");
    let status = ask(lab.api("n1").status()).unwrap();
    assert_eq!(status.cidrs.len(), 2, "a further block was claimed when the first was full");
    // Released addresses are used again after their cooldown; existing endpoints are not affected.
    let (code, _, _) = lab.warren("n1", &["status"]);
    assert_eq!(code, 0);
}

#[test]
fn node_with_other_pools_halts_with_the_reason() {
    let Some(mut lab) = TestLab::made("pools", 2, 1) else { return };
    lab.expect_errors();
    lab.start_etcd("e1").unwrap();
    lab.start_agent("n1").unwrap();
    wait::until("n1 to make the fleet", SOON, || {
        let status = ask(lab.api("n1").status())?;
        ensure!(status.ready, "it is not ready");
        Ok(())
    })
    .unwrap();
    lab.start_agent_with("n2", &["--fleet-pools", "10.99.0.0/16", "--fleet-block-prefix-v4", "26"]).unwrap();
    let reason = wait::until("n2 to halt", SOON, || {
        let status = ask(lab.api("n2").status())?;
        status.halted.map(|halted| halted.reason).ok_or_else(|| anyhow::anyhow!("it goes on"))
    })
    .unwrap();
    for text in ["10.99.0.0/16", "10.200.0.0/16", "26", "24"] {
        assert!(reason.contains(text), "{reason} does not name {text}");
    }
    let (code, text, _) = lab.warren("n2", &["status"]);
    assert_eq!(code, 0);
    assert!(text.contains("FAIL node") && text.contains("10.99.0.0/16"), "{text}");
    let refused = lab.add_endpoint("n2", "web", &"app=web".parse().unwrap()).unwrap_err();
    assert!(format!("{refused:#}").contains("10.99.0.0/16"), "{refused:#}");
    // With the right pools, the node joins.
    lab.end("n2", Signal::SIGTERM).unwrap();
    lab.start_agent("n2").unwrap();
    lab.wait_node_ready("n2").unwrap();
}

#[test]
fn agent_without_etcd_waits_and_reports_it() {
    let Some(mut lab) = TestLab::made("no-etcd", 1, 1) else { return };
    lab.expect_errors();
    lab.start_agent("n1").unwrap();
    wait::until("n1 to say that etcd is away", SOON, || {
        let status = ask(lab.api("n1").status())?;
        ensure!(!status.store.connected && status.store.error.is_some(), "its store is {:?}", status.store);
        ensure!(!status.ready, "it cannot be ready");
        Ok(())
    })
    .unwrap();
    let (code, text, _) = lab.warren("n1", &["status"]);
    assert_eq!(code, 0);
    assert!(text.contains("FAIL store"), "{text}");
    let pid = lab.processes("n1").unwrap();
    lab.start_etcd("e1").unwrap();
    lab.wait_node_ready("n1").unwrap();
    assert_eq!(lab.processes("n1").unwrap(), pid, "it waited, and was not started again");
    lab.endpoint("n1", "web", "app=web");
}

#[test]
fn single_node_needs_no_etcd() {
    let Some(lab) = TestLab::up("memory", 1, 0) else { return };
    let web = lab.endpoint("n1", "web", "app=web");
    let db = lab.endpoint("n1", "db", "app=db");
    chaos_lab::probe::ping(&web.namespace, db.address, 3).unwrap();
    assert!(Lab::open(lab.name().clone(), |_| {}).unwrap().status().unwrap().machines[0].problem.is_none());
}
