//! The same services as iptables rules, in the chains that kube-proxy creates: the first packet of a flow walks
//! KUBE-SERVICES from rule to rule until one matches. The matching rule is in the middle.

use std::{
    fmt::Write as _,
    fs,
    io::Write,
    net::Ipv4Addr,
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use chaos_lab::{Lab, namespace, process};

use super::{FRONTEND, SERVER_PORT, echo};

/// The server behind the router.
const SERVER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 6);
/// The remedy if iptables is missing.
const ADVICE: &str = "package iptables; deploy/setup.sh installs it";

/// A client, a router with rules, and a server that echoes; removed when dropped.
pub struct Routed {
    /// Namespaces: client, router, server.
    names: [String; 3],
}

impl Routed {
    /// Creates them, with rules for this many other services.
    pub fn make(lab: &Lab, name: &str, others: u32) -> Result<Self> {
        let names = ["client", "router", "server"]
            .map(|role| lab.name().machine_namespace(&format!("bench-{name}-{role}")));
        let routed = Self { names };
        let [client, router, server] = &routed.names;
        routed.names.iter().try_for_each(|name| namespace::create(name))?;
        for (leaf, device, ours, theirs) in [
            (client, "c", "192.0.2.1", "192.0.2.2".to_owned()),
            (server, "s", "192.0.2.5", SERVER.to_string()),
        ] {
            let peer = ["peer", "name", "eth0", "netns", leaf];
            namespace::ip([&["-n", router, "link", "add", device, "type", "veth"][..], &peer].concat())?;
            for (inside, device, address) in [(router, device, ours), (leaf, "eth0", &theirs)] {
                namespace::ip(["-n", inside, "address", "add", &format!("{address}/30"), "dev", device])?;
                namespace::ip(["-n", inside, "link", "set", device, "up"])?;
            }
            namespace::ip(["-n", leaf, "route", "add", "default", "via", ours])?;
        }
        namespace::inside(router, || Ok(fs::write("/proc/sys/net/ipv4/ip_forward", "1")?))?;
        load(router, &rules(others)?)?;
        echo(server)?;
        Ok(routed)
    }

    /// A program that runs in the client's namespace.
    pub fn client(&self, program: PathBuf) -> Result<Command> {
        let mut command = Command::new(program);
        process::enter(&mut command, &self.names[0], None)?;
        Ok(command)
    }
}

impl Drop for Routed {
    fn drop(&mut self) {
        for name in &self.names {
            if let Err(error) = namespace::delete(name) {
                eprintln!("delete {name}: {error:#}");
            }
        }
    }
}

/// The version of iptables, as it prints it.
pub fn version() -> Result<String> {
    let output = Command::new("iptables").arg("--version").output();
    let output = output.with_context(|| format!("run iptables ({ADVICE})"))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// For each service and protocol a rule that leads to its chain, from there one to its endpoint's chain, and the rule
/// that translates.
fn rules(others: u32) -> Result<String> {
    let first = u32::from(Ipv4Addr::new(198, 19, 0, 1));
    let mut services: Vec<String> =
        (0..others).map(|number| Ipv4Addr::from(first + number).to_string()).collect();
    services.insert(services.len() / 2, FRONTEND.ip().to_string());
    let (mut chains, mut rules) = (String::new(), String::new());
    for (number, service) in services.iter().enumerate() {
        for protocol in ["tcp", "udp"] {
            let id = format!("{}{number}", protocol.to_uppercase());
            let comment = format!("-m comment --comment bench/{number}:{protocol}");
            writeln!(chains, ":KUBE-SVC-{id} - [0:0]\n:KUBE-SEP-{id} - [0:0]")?;
            writeln!(
                rules,
                "-A KUBE-SERVICES -d {service}/32 -p {protocol} {comment} -m {protocol} --dport {port} -j KUBE-SVC-{id}\n\
                 -A KUBE-SVC-{id} {comment} -j KUBE-SEP-{id}\n\
                 -A KUBE-SEP-{id} -s {SERVER}/32 {comment} -j KUBE-MARK-MASQ\n\
                 -A KUBE-SEP-{id} -p {protocol} {comment} -m {protocol} -j DNAT --to-destination {SERVER}:{SERVER_PORT}",
                port = FRONTEND.port()
            )?;
        }
    }
    Ok(format!(
        "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n{chains}-A PREROUTING -j KUBE-SERVICES\n\
         -A KUBE-MARK-MASQ -j MARK --or-mark 0x4000\n{rules}COMMIT\n"
    ))
}

fn load(router: &str, rules: &str) -> Result<()> {
    let mut command = Command::new("iptables-restore");
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    process::enter(&mut command, router, None)?;
    let mut child = command.spawn().with_context(|| format!("run iptables-restore ({ADVICE})"))?;
    child.stdin.take().context("it has an input")?.write_all(rules.as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "iptables-restore: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
