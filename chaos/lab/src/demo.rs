//! `warren-lab demo`: shows what a fleet does.

use anyhow::{Context, Result, bail};
use chaos_lab::{Lab, probe};

/// Shows status, a ping and a TCP transfer across nodes, the ipcache and the flows.
pub fn run(lab: &Lab, bytes: u64) -> Result<()> {
    let status = lab.status()?;
    let find = |node: &str, name: &str| {
        status.endpoints.iter().find(|endpoint| endpoint.node == node && endpoint.name == name).with_context(
            || format!("endpoint {node}/{name} is not there: take the lab down, and make it anew"),
        )
    };
    let last = lab.spec().node_names().last().context("a lab has a node")?;
    let (from, to) = (find("n1", "a")?, find(&last, "b")?);

    show(lab, "How node n1 is", "n1", &["warren", "status"])?;
    show(
        lab,
        "A ping across nodes",
        "n1/a",
        &["ping", "-n", "-c", "3", "-i", "0.2", &to.address.to_string()],
    )?;

    heading("A TCP transfer across nodes, checksums compared");
    let transfer = probe::transfer(from, to, bytes, 1)?;
    let seconds = transfer.time.as_secs_f64();
    println!(
        "{} MiB from {} to {} in {seconds:.2} s ({:.2} Gbit/s), sha256 {} on both sides",
        transfer.bytes >> 20,
        from.address,
        to.address,
        transfer.bytes as f64 * 8.0 / seconds / 1e9,
        transfer.sha256
    );

    show(lab, "The ipcache as n1 wants it", "n1", &["warren", "ip", "list"])?;
    show(lab, "Flows that n1 saw", "n1", &["warren", "observe", "--last", "12"])?;
    show(lab, "Where what n1 wants and what its kernel holds differ", "n1", &["warren", "state", "diff"])?;

    heading("The fleet is yours");
    let program = std::env::args().next().unwrap_or_else(|| "warren-lab".to_owned());
    let lab = match lab.name().as_str() {
        "lab" => program,
        name => format!("{program} --name {name}"),
    };
    for hint in [
        "status",
        "exec n1 -- warren node list",
        &format!("exec n1/a -- ping {}", to.address),
        "endpoint add n2 web --label app=web",
        "exec n1 -- warren observe --follow",
        "agent kill n1                # the pings go on",
        "latency                      # how soon a new endpoint answers, and is known everywhere",
        "down                         # or: make lab-down",
    ] {
        println!("  {lab} {hint}");
    }
    Ok(())
}

fn heading(text: &str) {
    println!("\n== {text}");
}

fn show(lab: &Lab, title: &str, target: &str, command: &[&str]) -> Result<()> {
    heading(&format!("{title}: {}", command.join(" ")));
    let status = lab.command(target, command[0])?.args(&command[1..]).status()?;
    if !status.success() {
        bail!("{} on {target}: {status}", command.join(" "));
    }
    Ok(())
}
