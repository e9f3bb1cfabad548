//! The list of active faults: a file in the lab's directory, changed by one program at a time.

use std::{
    fs::{File, OpenOptions},
    io::{Read, Seek, Write},
};

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::Fault;
use crate::Lab;

/// An active fault, with the number that heals it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActiveFault {
    /// Unique among the active faults.
    pub id: u32,
    /// The fault.
    #[serde(flatten)]
    pub fault: Fault,
}

/// The list, locked as long as this value lives.
struct Registry {
    file: Flock<File>,
    active: Vec<ActiveFault>,
}

impl Registry {
    fn open(lab: &Lab) -> Result<Self> {
        let path = lab.name().folder().join("faults.json");
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let file = file.with_context(|| format!("open {}", path.display()))?;
        let mut file = Flock::lock(file, FlockArg::LockExclusive)
            .map_err(|(_, error)| error)
            .with_context(|| format!("lock {}", path.display()))?;
        let mut text = String::new();
        file.read_to_string(&mut text).with_context(|| format!("read {}", path.display()))?;
        let active = if text.is_empty() {
            Vec::new()
        } else {
            serde_json::from_str(&text).with_context(|| format!("decode {}", path.display()))?
        };
        Ok(Self { file, active })
    }

    fn save(&mut self) -> Result<()> {
        let text = serde_json::to_vec_pretty(&self.active)?;
        self.file.set_len(0)?;
        self.file.rewind()?;
        self.file.write_all(&text).context("write the list of faults")
    }
}

impl Lab {
    /// The active faults, oldest first.
    ///
    /// # Errors
    /// When their list cannot be read.
    pub fn faults(&self) -> Result<Vec<ActiveFault>> {
        Ok(Registry::open(self)?.active)
    }

    /// Inflicts a fault, and returns the number that heals it. An active fault is left as it is.
    ///
    /// # Errors
    /// When the fault cannot be inflicted; it is not listed then.
    pub fn inflict(&self, fault: Fault) -> Result<u32> {
        let mut registry = Registry::open(self)?;
        if let Some(same) = registry.active.iter().find(|active| active.fault == fault) {
            return Ok(same.id);
        }
        let id = registry.active.iter().map(|active| active.id).max().unwrap_or(0) + 1;
        registry.active.push(ActiveFault { id, fault: fault.clone() });
        // The fault is listed first, so that it can be healed whatever happens to this program.
        registry.save()?;
        let result = self.begin(id, &fault, &registry.active);
        if let Err(error) = result {
            registry.active.pop();
            registry.save()?;
            // What was done of it is undone.
            let undone = self.end_fault(id, &fault, &registry.active);
            return Err(undone
                .err()
                .map_or(error.context(format!("inflict: {fault}")), |second| error_and(&fault, &second)));
        }
        Ok(id)
    }

    /// Heals the wanted faults, newest first, and returns them. Goes on past failures.
    ///
    /// # Errors
    /// With all faults that could not be healed; they stay listed.
    pub fn heal_where(&self, wanted: impl Fn(&ActiveFault) -> bool) -> Result<Vec<ActiveFault>> {
        let mut registry = Registry::open(self)?;
        let (mut healed, mut failures) = (Vec::new(), Vec::new());
        let chosen: Vec<ActiveFault> =
            registry.active.iter().rev().filter(|it| wanted(it)).cloned().collect();
        for active in chosen {
            let others: Vec<ActiveFault> =
                registry.active.iter().filter(|it| it.id != active.id).cloned().collect();
            match self.end_fault(active.id, &active.fault, &others) {
                Ok(()) => {
                    registry.active = others;
                    registry.save()?;
                    healed.push(active);
                }
                Err(error) => failures.push(format!("heal {} ({}): {error:#}", active.id, active.fault)),
            }
        }
        if failures.is_empty() { Ok(healed) } else { bail!("{}", failures.join("\n")) }
    }

    /// Heals one fault.
    ///
    /// # Errors
    /// When there is no fault with this number, or it cannot be healed.
    pub fn heal(&self, id: u32) -> Result<ActiveFault> {
        let healed = self.heal_where(|active| active.id == id)?;
        healed.into_iter().next().with_context(|| {
            format!(
                "no fault {id} stands: `warren-lab --name {} fault list` shows those that do",
                self.name().as_str()
            )
        })
    }

    /// Heals all faults.
    ///
    /// # Errors
    /// With all faults that could not be healed.
    pub fn heal_all(&self) -> Result<Vec<ActiveFault>> {
        self.heal_where(|_| true)
    }

    /// A rebooted machine has a new port: the faults of the old one are inflicted on it.
    pub(super) fn inflict_again(&self, node: &str) -> Result<()> {
        for ActiveFault { id, fault } in self.faults()? {
            match &fault {
                Fault::Delay { way, .. } if way.from.iter().chain(&way.to).any(|it| it == node) => {
                    self.stop_helper(id)?;
                    self.offloads(&fault, false)?;
                    self.start_helper(id, &fault)?;
                }
                Fault::Address { node: whose, address } if whose == node => {
                    self.change_address(node, *address)?;
                }
                // Rules name ports, and the new port has the same name.
                _ => {}
            }
        }
        Ok(())
    }

    fn begin(&self, id: u32, fault: &Fault, all: &[ActiveFault]) -> Result<()> {
        match fault {
            Fault::Cut { .. } | Fault::Loss { .. } => self.write_rules(all),
            Fault::Delay { .. } => {
                self.offloads(fault, false)?;
                // No packet is lost meanwhile: some arrive twice, at once and delayed.
                self.start_helper(id, fault)?;
                self.write_rules(all)
            }
            Fault::Flap { .. } => self.start_helper(id, fault),
            Fault::Paused { machine } => self.pause(machine),
            Fault::Down { machine } => self.kill(machine),
            Fault::Address { node, address } => self.change_address(node, *address),
        }
    }

    /// Undoes a fault, whether or not all of it was done; `others` stay active.
    fn end_fault(&self, id: u32, fault: &Fault, others: &[ActiveFault]) -> Result<()> {
        match fault {
            Fault::Cut { .. } | Fault::Loss { .. } => self.write_rules(others),
            Fault::Delay { delay, .. } => {
                self.write_rules(others)?;
                // Delayed packets that are on their way arrive.
                std::thread::sleep(*delay);
                self.stop_helper(id)?;
                self.offloads(fault, true)
            }
            Fault::Flap { .. } => {
                self.stop_helper(id)?;
                self.remove_flap_rules(id)
            }
            Fault::Paused { machine } => self.resume(machine),
            Fault::Down { machine } => self.start_machine(machine),
            Fault::Address { node, .. } => self.restore_address(node),
        }
    }
}

fn error_and(fault: &Fault, second: &anyhow::Error) -> anyhow::Error {
    anyhow::anyhow!("inflict: {fault}: it failed, and undoing it failed too: {second:#}")
}
