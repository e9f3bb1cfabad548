//! Faults of the underlay: nftables on its bridge, with a rule for each pair of ports. Ports have the names of their
//! machines.
//!
//! The rules are always written as a whole, in one transaction: they equal the list of active faults.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use super::{ActiveFault, Fault, Way};
use crate::{Lab, process};

/// The table of all faults except flapping ones.
const TABLE: &str = "faults";

impl Lab {
    /// Writes the rules of the active faults.
    pub(super) fn write_rules(&self, active: &[ActiveFault]) -> Result<()> {
        self.nft(&script(TABLE, active.iter().map(|fault| &fault.fault)))
    }

    /// A flapping fault has its own table, which is created and deleted in turn.
    pub(super) fn write_flap_rules(&self, id: u32, way: &Way) -> Result<()> {
        self.nft(&script(&format!("flap{id}"), [&Fault::Cut { way: way.clone() }]))
    }

    pub(super) fn remove_flap_rules(&self, id: u32) -> Result<()> {
        self.nft(&no_table(&format!("flap{id}")))
    }

    fn nft(&self, script: &str) -> Result<()> {
        let mut command = Command::new("nft");
        process::enter(&mut command, &self.name().underlay_namespace(), None)?;
        command.args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().context("run nft (package nftables; deploy/setup.sh installs it)")?;
        child.stdin.take().context("nft has an input")?.write_all(script.as_bytes())?;
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!("nft: {}\nof\n{script}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }

    /// Turns a sender's offloads off while its packets are delayed, and on again afterwards: the helper must see
    /// frames as they are on the wire, segmented and with checksums.
    pub(super) fn offloads(&self, fault: &Fault, on: bool) -> Result<()> {
        let Fault::Delay { way, .. } = fault else { return Ok(()) };
        let mut senders: Vec<&str> = way.pairs().into_iter().map(|(from, _)| from).collect();
        senders.dedup();
        let state = if on { "on" } else { "off" };
        for machine in senders {
            let inside = self.name().machine_namespace(machine);
            process::run(&inside, "ethtool", &["-K", "eth0", "tx", state, "tso", state])?;
        }
        Ok(())
    }
}

/// A table with the rules of these faults.
fn script<'a>(table: &str, faults: impl IntoIterator<Item = &'a Fault>) -> String {
    let rules: String = faults.into_iter().map(rules).collect();
    format!(
        "{}table bridge {table} {{\n chain forward {{\n  type filter hook forward priority 0; policy accept;\n{rules} }}\n}}\n",
        no_table(table)
    )
}

/// Removes a table, whether or not it exists.
fn no_table(table: &str) -> String {
    format!("table bridge {table}\ndelete table bridge {table}\n")
}

fn rules(fault: &Fault) -> String {
    let (way, verdict) = match fault {
        Fault::Cut { way } => (way, "drop".to_owned()),
        Fault::Loss { way, per_mille } => (way, format!("numgen random mod 1000 < {per_mille} drop")),
        // The helper has seen the frame already, and sends it at its time. ARP broadcasts are not delayed.
        Fault::Delay { way, .. } => {
            (way, "ether daddr & 01:00:00:00:00:00 == 00:00:00:00:00:00 drop".to_owned())
        }
        _ => return String::new(),
    };
    way.pairs()
        .into_iter()
        .map(|(from, to)| format!("  iifname \"{from}\" oifname \"{to}\" {verdict}\n"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ruleset_contains_all_active_faults() {
        let way =
            |from: &str, to: &str, one_way| Way { from: vec![from.into()], to: vec![to.into()], one_way };
        let faults = [
            Fault::Cut { way: way("n1", "n2", true) },
            Fault::Loss { way: way("n1", "e1", false), per_mille: 105 },
            Fault::Paused { machine: "n1".to_owned() },
        ];
        let expected = r#"table bridge faults
delete table bridge faults
table bridge faults {
 chain forward {
  type filter hook forward priority 0; policy accept;
  iifname "n1" oifname "n2" drop
  iifname "e1" oifname "n1" numgen random mod 1000 < 105 drop
  iifname "n1" oifname "e1" numgen random mod 1000 < 105 drop
 }
}
"#;
        assert_eq!(script("faults", &faults), expected);
    }
}
