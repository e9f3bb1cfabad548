//! The grammar of faults, on the command line and in scenarios.

use std::{net::Ipv4Addr, path::PathBuf, time::Duration};

use anyhow::{Context, Result, bail};
use clap::Subcommand;

use super::{Fault, Way};
use crate::{Lab, duration, machines};

/// A fault. MACHINES: `n1`, `e2`, `nodes`, `etcd`, `all`, `majority` or `minority` (of the etcd members), or several
/// separated by commas.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum FaultCommand {
    /// Drop every packet between machines: `cut n1,n2 n3,n4` partitions a fleet, `cut n1 all` isolates a node, `cut
    /// n1 etcd` black-holes etcd for it.
    Cut {
        #[command(flatten)]
        way: WayArguments,
    },
    /// Drop a share of the packets between machines.
    Loss {
        #[command(flatten)]
        way: WayArguments,
        /// The share, as `10%`.
        #[arg(value_parser = parse_share)]
        share: u16,
    },
    /// Delay packets between machines, in order.
    Delay {
        #[command(flatten)]
        way: WayArguments,
        /// The delay, one way.
        #[arg(value_parser = duration::parse)]
        delay: Duration,
    },
    /// Cut and restore in turn.
    Flap {
        #[command(flatten)]
        way: WayArguments,
        /// Period of one cut and one restoration.
        #[arg(long, default_value = "500ms", value_parser = duration::parse)]
        period: Duration,
    },
    /// SIGSTOP: connections stay open, but get no response.
    Pause {
        /// Agents and etcd members.
        machines: String,
    },
    /// SIGKILL, and wait for the end.
    Kill {
        /// Agents and etcd members.
        machines: String,
    },
    /// SIGTERM, and wait for the end.
    Stop {
        /// Agents and etcd members.
        machines: String,
    },
    /// Start what is paused or down. Does not wait.
    Start {
        /// Agents and etcd members.
        machines: String,
    },
    /// Give a node another underlay address.
    Address {
        /// The node.
        node: String,
        /// Its new address, in 172.30.0.0/16.
        address: Ipv4Addr,
    },
    /// Reboot a node: agent, programs, maps, devices and workloads are gone, the state directory stays; the agent is
    /// started again.
    Reboot {
        /// The node.
        node: String,
    },
    /// Wipe, back up or restore etcd.
    #[command(subcommand)]
    Etcd(EtcdCommand),
    /// Heal a fault by its number, or all; an unknown number is an error, no fault at all is not.
    Heal {
        /// A number of `fault list`, or `all`.
        #[arg(default_value = "all")]
        which: String,
    },
    /// List the active faults.
    List,
}

/// What operators do to an etcd cluster.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum EtcdCommand {
    /// Stop all members, delete their data, start them empty.
    Wipe {
        /// Give the new cluster another id; by default it keeps its configuration, and so its id.
        #[arg(long)]
        new_id: bool,
    },
    /// Save the content to a file.
    Backup {
        /// The file.
        file: PathBuf,
    },
    /// Stop all members, and start them with the content of a backup.
    Restore {
        /// The file.
        file: PathBuf,
        /// As for `wipe`.
        #[arg(long)]
        new_id: bool,
    },
}

/// The machines of a fault, and its direction.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct WayArguments {
    /// Machines on one side.
    from: String,
    /// Machines on the other.
    to: String,
    /// Only packets from the first set to the second.
    #[arg(long)]
    one_way: bool,
}

impl WayArguments {
    fn way(&self, lab: &Lab) -> Result<Way> {
        let way = Way {
            from: machines::parse(lab.spec(), &self.from)?,
            to: machines::parse(lab.spec(), &self.to)?,
            one_way: self.one_way,
        };
        if way.pairs().is_empty() {
            bail!("between {} and {} there is nothing: name two machines", self.from, self.to);
        }
        Ok(way)
    }
}

impl FaultCommand {
    /// The texts that name sets of machines.
    pub fn machine_sets(&self) -> Vec<&str> {
        match self {
            Self::Cut { way } | Self::Loss { way, .. } | Self::Delay { way, .. } | Self::Flap { way, .. } => {
                vec![&way.from, &way.to]
            }
            Self::Pause { machines }
            | Self::Kill { machines }
            | Self::Stop { machines }
            | Self::Start { machines } => vec![machines],
            Self::Address { node, .. } | Self::Reboot { node } => vec![node],
            Self::Etcd(_) | Self::Heal { .. } | Self::List => Vec::new(),
        }
    }

    /// Inflicts the fault, and describes in words what was done.
    ///
    /// # Errors
    /// When a machine is unknown, or the fault cannot be inflicted.
    pub fn carry_out(&self, lab: &Lab) -> Result<String> {
        let inflict = |fault: Fault| {
            let text = fault.to_string();
            lab.inflict(fault).map(|id| format!("fault {id}: {text}"))
        };
        let each = |machines: &str, fault: fn(String) -> Fault| {
            let all = machines::parse(lab.spec(), machines)?;
            let done = all.into_iter().map(|machine| inflict(fault(machine)));
            done.collect::<Result<Vec<_>>>().map(|lines| lines.join("\n"))
        };
        match self {
            Self::Cut { way } => inflict(Fault::Cut { way: way.way(lab)? }),
            Self::Loss { way, share } => inflict(Fault::Loss { way: way.way(lab)?, per_mille: *share }),
            Self::Delay { way, delay } => inflict(Fault::Delay { way: way.way(lab)?, delay: *delay }),
            Self::Flap { way, period } => inflict(Fault::Flap { way: way.way(lab)?, period: *period }),
            Self::Pause { machines } => each(machines, |machine| Fault::Paused { machine }),
            Self::Kill { machines } => each(machines, |machine| Fault::Down { machine }),
            Self::Stop { machines } => {
                for machine in machines::parse(lab.spec(), machines)? {
                    lab.terminate(&machine)?;
                }
                each(machines, |machine| Fault::Down { machine })
            }
            Self::Start { machines } => {
                lab.start_machines(&machines::parse(lab.spec(), machines)?)?;
                Ok(format!("{machines}: started"))
            }
            Self::Address { node, address } => {
                lab.check_node(node)?;
                inflict(Fault::Address { node: node.clone(), address: *address })
            }
            Self::Reboot { node } => lab.reboot(node).map(|()| format!("{node}: rebooted")),
            Self::Etcd(EtcdCommand::Wipe { new_id }) => {
                lab.etcd_wipe(*new_id).map(|()| "etcd: wiped".to_owned())
            }
            Self::Etcd(EtcdCommand::Backup { file }) => {
                lab.etcd_backup(file).map(|()| format!("etcd: saved to {}", file.display()))
            }
            Self::Etcd(EtcdCommand::Restore { file, new_id }) => {
                lab.etcd_restore(file, *new_id).map(|()| format!("etcd: restored from {}", file.display()))
            }
            Self::Heal { which } => {
                let healed = match which.as_str() {
                    "all" => lab.heal_all()?,
                    id => vec![lab.heal(id.parse().context("heal takes the number of a fault, or all")?)?],
                };
                let lines: Vec<String> =
                    healed.iter().map(|it| format!("healed {}: {}", it.id, it.fault)).collect();
                Ok(if lines.is_empty() { "nothing to heal".to_owned() } else { lines.join("\n") })
            }
            Self::List => {
                let lines: Vec<String> =
                    lab.faults()?.iter().map(|it| format!("{:>3}  {}", it.id, it.fault)).collect();
                Ok(if lines.is_empty() { "no fault stands".to_owned() } else { lines.join("\n") })
            }
        }
    }
}

/// Parses `10%` or `0.5%`, in thousandths.
fn parse_share(text: &str) -> Result<u16, String> {
    let fail = || format!("{text:?} is no share: write 10% or 0.5%");
    let number: f64 = text.strip_suffix('%').and_then(|digits| digits.parse().ok()).ok_or_else(fail)?;
    if !(0.1..=100.0).contains(&number) {
        return Err(format!("{text}: a share is from 0.1% to 100%"));
    }
    Ok((number * 10.0).round() as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_are_parsed() {
        assert_eq!([("10%"), "0.5%", "100%"].map(|text| parse_share(text).unwrap()), [100, 5, 1_000]);
        for text in ["10", "%", "-1%", "0%", "101%", "NaN%"] {
            assert!(parse_share(text).is_err(), "{text}");
        }
    }
}
