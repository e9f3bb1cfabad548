//! XDP in a whole fleet: an external client gets the same responses with and without it, in each mode, and a counter
//! shows which packets XDP forwarded. Agents restart with other settings; afterwards nothing is left behind.

use std::{fs, net::SocketAddr, process::Command};

use anyhow::{Context, Result, ensure};
use chaos_lab::{Endpoint, ask, namespace, process, spec::underlay_address, wait};
use nix::sys::signal::Signal;
use node_api::ServiceWritten;

use crate::{
    servers::{Server, connect, exchange},
    support::{SOON, TestLab, finish},
};

const NODES: [&str; 2] = ["n1", "n2"];
/// An external address: the client's route leads to n1.
const EXTERNAL: &str = "198.51.100.7";
/// Connections, and requests by UDP, to each frontend: one of three backends is missed once in 10^8 runs.
const MANY: usize = 48;

/// Writes the service, and waits until both nodes have it.
fn apply(lab: &TestLab, more: &str) -> ServiceWritten {
    let manifest = format!(
        "apiVersion: warren/v1\nkind: Service\nmetadata: {{name: web}}\nspec:\n  selector: {{matchLabels: {{app: web}}}}\n  \
         ports:\n  - {{name: tcp, port: 80, targetPort: 8080, nodePort: 30080}}\n  \
         - {{name: udp, port: 53, targetPort: 5353, protocol: udp, nodePort: 30053}}\n  externalIps: [{EXTERNAL}]\n{more}"
    );
    let written = lab.apply("n1", &manifest);
    NODES.iter().for_each(|node| lab.wait_served(node, &written, 3));
    written
}

/// Restarts the agents with a setting, and waits until each has the service.
fn restart(lab: &TestLab, setting: &str, service: &ServiceWritten) {
    for node in NODES {
        lab.end(node, Signal::SIGTERM).unwrap();
        lab.start_agent_with(node, &["--datapath-xdp", setting]).unwrap();
    }
    for node in NODES {
        lab.wait_node_ready(node).unwrap();
        lab.wait_served(node, service, 3);
    }
}

/// Waits until the XDP program is attached in this mode to each node's interface, or none is: as the agents report
/// it, and in the kernel.
fn wait_for_program(lab: &TestLab, expected: Option<&str>) {
    for node in NODES {
        wait::until(&format!("XDP program {expected:?} on {node}"), SOON, || {
            let programs = ask(lab.api(node).status())?.programs;
            let program = programs.iter().find(|program| program.hook.starts_with("xdp"));
            let told = program.map(|program| (program.hook.as_str(), program.devices.join(" ")));
            ensure!(told == expected.map(|hook| (hook, "eth0".to_owned())), "it has {told:?}");
            ensure!(is_attached(lab, node) == expected.is_some(), "its kernel differs");
            Ok(())
        })
        .unwrap();
    }
}

fn is_attached(lab: &TestLab, node: &str) -> bool {
    let shown = process::run(&lab.name().machine_namespace(node), "ip", &["link", "show", "eth0"]).unwrap();
    shown.contains("prog/xdp")
}

/// An external client's requests to each frontend, and the packets of them that n1 forwarded by XDP.
struct Client<'a> {
    lab: &'a TestLab,
    external: String,
    backends: &'a [Endpoint],
}

/// The address that backends see as the client's.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Seen {
    /// Local backends see the client; remote ones see the node that the request came to.
    AsNodeElsewhere,
    /// All backends see the client.
    AsItself,
    /// All backends see the client; only local ones get requests.
    ByLocalOnly,
}

impl Client<'_> {
    /// Sends requests to each frontend, and compares the responses and the client addresses that the backends saw.
    fn ask(&self, seen: Seen, is_early: bool) {
        let client = underlay_address("x1").into();
        let gateway = ask(self.lab.api("n1").nodes()).unwrap().items[0].gateway.unwrap();
        let [node, external] = [underlay_address("n1").into(), EXTERNAL.parse().unwrap()];
        type Once = fn(SocketAddr) -> Result<(String, std::net::IpAddr)>;
        let ways: [(SocketAddr, Once, bool); 4] = [
            (SocketAddr::new(node, 30080), connect, false),
            (SocketAddr::new(node, 30053), exchange, true),
            (SocketAddr::new(external, 80), connect, false),
            (SocketAddr::new(external, 53), exchange, true),
        ];
        for (to, once, is_datagram) in ways {
            let before = self.carried();
            let answers = namespace::inside(&self.external, || {
                (0..MANY).map(|_| once(to).with_context(|| format!("to {to}"))).collect::<Result<Vec<_>>>()
            })
            .unwrap();
            let carried = self.carried() - before;
            let mut elsewhere = 0;
            for backend in self.backends {
                let is_here = backend.node == "n1";
                let times = answers.iter().filter(|(name, _)| *name == backend.name).count();
                assert_eq!(times > 0, is_here || seen != Seen::ByLocalOnly, "{} by {to}", backend.name);
                let expected = if is_here || seen != Seen::AsNodeElsewhere { client } else { gateway };
                for (_, address) in answers.iter().filter(|(name, _)| *name == backend.name) {
                    assert_eq!(*address, expected, "{} by {to}", backend.name);
                }
                elsewhere += if is_here { 0 } else { times };
            }
            // The first packet of a flow is never forwarded by XDP, and direct responses do not pass n1. Of the rest,
            // half is enough: a packet may wait for a neighbour, or have a partial checksum.
            let is_first_alone = seen == Seen::AsItself && is_datagram;
            let least = if is_early && !is_first_alone { elsewhere as u64 / 2 } else { 0 };
            assert!(carried >= least, "{to}: {carried} packets by XDP, {elsewhere} conversations");
            assert!(is_early || carried == 0, "{to}: {carried} packets by XDP");
        }
    }

    fn carried(&self) -> u64 {
        self.lab.drops("n1", "before-stack")
    }
}

#[test]
fn xdp_serves_external_clients_in_each_mode() {
    if Command::new("ethtool").arg("--version").output().is_err() {
        println!("skipped: needs ethtool");
        return;
    }
    let Some(lab) = TestLab::up("svc-xdp", 2, 1) else { return };
    let backends = [("n1", "web-1"), ("n2", "web-2"), ("n2", "web-3")]
        .map(|(node, name)| lab.endpoint(node, name, "app=web"));
    let _servers: Vec<Server> = backends.iter().map(Server::start).collect();
    lab.add_machine("x1").unwrap();
    let external = lab.name().machine_namespace("x1");
    let via = underlay_address("n1").to_string();
    process::run(&external, "ip", &["route", "add", EXTERNAL, "via", &via]).unwrap();
    // No device behind a veth completes checksums or segments packets: transmit offloads are off.
    for namespace in backends.iter().map(|backend| &backend.namespace).chain([&external]) {
        process::run(namespace, "ethtool", &["-K", "eth0", "tx", "off"]).unwrap();
    }
    let client = Client { lab: &lab, external, backends: &backends };

    let service = apply(&lab, "");
    wait_for_program(&lab, None);
    client.ask(Seen::AsNodeElsewhere, false);

    restart(&lab, "generic", &service);
    wait_for_program(&lab, Some("xdp generic"));
    client.ask(Seen::AsNodeElsewhere, true);
    apply(&lab, "  mode: dsr\n");
    client.ask(Seen::AsItself, true);
    apply(&lab, "  trafficPolicy: local\n");
    client.ask(Seen::ByLocalOnly, true);
    let service = apply(&lab, "");

    // The veth driver runs the program but cannot send packets back: the agent reports it, and passed packets are not
    // affected.
    restart(&lab, "native", &service);
    wait_for_program(&lab, Some("xdp native"));
    for node in NODES {
        let log = fs::read_to_string(lab.log_path(node)).unwrap();
        assert!(log.contains("set datapath.xdp = \"generic\""), "{node} warns of its veth");
    }

    restart(&lab, "off", &service);
    wait_for_program(&lab, None);
    client.ask(Seen::AsNodeElsewhere, false);

    // Cleanup removes what an agent leaves for the next one.
    restart(&lab, "generic", &service);
    wait_for_program(&lab, Some("xdp generic"));
    client.ask(Seen::AsNodeElsewhere, true);
    lab.end("n1", Signal::SIGTERM).unwrap();
    assert!(is_attached(&lab, "n1"), "packets go on without an agent");
    let mut command = lab.command("n1", "warrend").unwrap();
    command.env_remove("WARREN_SOCKET").arg("--config").arg(lab.config_path("n1")).arg("cleanup");
    let (code, stdout, stderr) = finish(&mut command);
    assert_eq!(code, 0, "{stdout}{stderr}");
    assert!(!is_attached(&lab, "n1"), "{stdout}");
}
