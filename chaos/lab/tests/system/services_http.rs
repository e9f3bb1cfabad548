//! A real web server behind a service under a real load: from outside in each mode, and from a workload, with a new
//! connection for each request. No request fails, and all servers respond.

use std::{collections::BTreeSet, fs, net::IpAddr, process::Command};

use anyhow::{Context, ensure};
use chaos_lab::{Endpoint, namespace, process, spec::underlay_address, wait};

use crate::{
    servers::{WebServer, are_installed},
    support::{SOON, TestLab, finish, use_scale_programs},
};

/// The node port.
const NODE_PORT: u16 = 30088;

/// Applies the service, and waits until both nodes have it; returns the virtual IP.
fn apply(lab: &TestLab, more: &str) -> IpAddr {
    let manifest = format!(
        "apiVersion: warren/v1\nkind: Service\nmetadata: {{name: web}}\nspec:\n  selector: {{matchLabels: {{app: web}}}}\n  \
         ports: [{{port: 8000, nodePort: {NODE_PORT}}}]\n{more}"
    );
    let written = lab.apply("n1", &manifest);
    for node in ["n1", "n2"] {
        lab.wait_served(node, &written, 3);
    }
    written.virtual_ip
}

/// Requests are answered by exactly these endpoints.
fn check_answers(mut curl: impl FnMut() -> Command, url: &str, expected: &[&Endpoint]) {
    let expected: BTreeSet<String> = expected.iter().map(|endpoint| endpoint.name.clone()).collect();
    let mut found = BTreeSet::new();
    wait::until("all web servers to answer", SOON, || {
        let (code, stdout, stderr) =
            finish(curl().args(["--silent", "--show-error", "--fail", "--max-time", "20", url]));
        ensure!(code == 0, "{url}: {stderr}");
        found.insert(stdout);
        ensure!(found.len() >= expected.len(), "only {found:?} answer");
        Ok(())
    })
    .unwrap();
    assert_eq!(found, expected, "{url}");
}

/// Many concurrent requests with a connection each; wrk must count no failure.
fn check_load(mut wrk: Command, url: &str, what: &str) {
    let seconds = if std::env::var_os("WARREN_SCALE_SERVICES").is_some() { "3s" } else { "1s" };
    wrk.args(["--threads", "1", "--connections", "16", "--duration", seconds, "--timeout", "20s"]);
    let (code, stdout, stderr) = finish(wrk.args(["--header", "Connection: close", url]));
    assert_eq!(code, 0, "{what}: {stdout}{stderr}");
    let requests = requests(&stdout).unwrap_or_else(|error| panic!("{what}: {error:#}\n{stdout}"));
    println!("{what}: {requests} requests in {seconds}, none failed");
}

/// The number of answered requests in a report of wrk, which lists errors only if there are any.
fn requests(report: &str) -> anyhow::Result<u64> {
    for line in report.lines().map(str::trim) {
        ensure!(!line.starts_with("Socket errors:") && !line.starts_with("Non-2xx"), "{line}");
    }
    let (before, _) = report.split_once(" requests in ").context("no count of requests")?;
    let count = before.rsplit(char::is_whitespace).next().context("no count of requests")?.parse()?;
    ensure!(count > 0, "no response");
    Ok(count)
}

#[test]
fn wrk_report_is_parsed() {
    let good = "Running 1s test @ http://10.0.0.1/\n  1 threads\n  1234 requests in 1.00s, 1.00MB read\n";
    assert_eq!(requests(good).unwrap(), 1_234);
    for bad in [
        "",
        "  0 requests in 1.00s, 0.00B read\n",
        "  9 requests in 1.00s, 1.00MB read\n  Socket errors: connect 0, read 0, write 0, timeout 1\n",
        "  9 requests in 1.00s, 1.00MB read\n  Non-2xx or 3xx responses: 1\n",
    ] {
        assert!(requests(bad).is_err(), "{bad}");
    }
}

#[test]
fn http_load_is_served_without_a_failure_in_each_mode() {
    if !are_installed(&["python3", "curl", "wrk"]) {
        return;
    }
    let Some(lab) = TestLab::up_with("svc-http", 2, 1, use_scale_programs) else { return };
    let [web_1, web_2, web_3] = [("n1", "web-1"), ("n2", "web-2"), ("n2", "web-3")]
        .map(|(node, name)| lab.endpoint(node, name, "app=web"));
    lab.endpoint("n1", "client", "app=client");
    let all = [&web_1, &web_2, &web_3];
    let _servers = all.map(WebServer::start);
    lab.add_machine("x1").unwrap();
    let there = |target: &str, program: &str| {
        let mut command = Command::new(program);
        let namespace = lab.find_namespace(target).unwrap().0;
        process::enter(&mut command, &namespace, None).unwrap();
        command
    };
    // Each closed connection occupies its port for a minute.
    namespace::inside(&lab.name().machine_namespace("x1"), || {
        Ok(fs::write("/proc/sys/net/ipv4/ip_local_port_range", "2000 65000")?)
    })
    .unwrap();
    let url = |node: &str| format!("http://{}:{NODE_PORT}/", underlay_address(node));

    for (mode, more) in [("snat", ""), ("dsr", "  mode: dsr\n"), ("local", "  trafficPolicy: local\n")] {
        apply(&lab, more);
        for (node, near) in [("n1", &all[..1]), ("n2", &all[1..])] {
            let answering = if mode == "local" { near } else { &all[..] };
            check_answers(|| there("x1", "curl"), &url(node), answering);
        }
        check_load(there("x1", "wrk"), &url("n2"), &format!("from outside, {mode}"));
    }

    let vip = apply(&lab, "");
    let url = format!("http://{vip}:8000/");
    let at_socket = |program: &str| lab.command("n1/client", program).unwrap();
    check_answers(|| there("n1/client", "curl"), &url, &all);
    check_load(there("n1/client", "wrk"), &url, "from a workload, by packets");
    check_answers(|| at_socket("curl"), &url, &all);
    check_load(at_socket("wrk"), &url, "from a workload, at the socket");
}
