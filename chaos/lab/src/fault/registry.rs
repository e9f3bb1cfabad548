//! Which faults stand: a file in the lab's folder, changed by one program at a time.

use std::{
    fs::{File, OpenOptions},
    io::{Read, Seek, Write},
};

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::Fault;
use crate::Lab;

/// A fault that stands, with the number that heals it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// Unique among those that stand.
    pub id: u32,
    /// The fault.
    #[serde(flatten)]
    pub fault: Fault,
}

/// The list, locked for as long as it lives.
struct Registry {
    file: Flock<File>,
    standing: Vec<Standing>,
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
        let standing = if text.is_empty() {
            Vec::new()
        } else {
            serde_json::from_str(&text).with_context(|| format!("decode {}", path.display()))?
        };
        Ok(Self { file, standing })
    }

    fn save(&mut self) -> Result<()> {
        let text = serde_json::to_vec_pretty(&self.standing)?;
        self.file.set_len(0)?;
        self.file.rewind()?;
        self.file.write_all(&text).context("write the list of faults")
    }
}

impl Lab {
    /// The faults that stand, oldest first.
    ///
    /// # Errors
    /// When their list cannot be read.
    pub fn faults(&self) -> Result<Vec<Standing>> {
        Ok(Registry::open(self)?.standing)
    }

    /// Does something to the fleet, and gives the number that heals it. One that stands already is left as it
    /// is.
    ///
    /// # Errors
    /// When it cannot be done; then it is not listed.
    pub fn inflict(&self, fault: Fault) -> Result<u32> {
        let mut registry = Registry::open(self)?;
        if let Some(same) = registry.standing.iter().find(|standing| standing.fault == fault) {
            return Ok(same.id);
        }
        let id = registry.standing.iter().map(|standing| standing.id).max().unwrap_or(0) + 1;
        registry.standing.push(Standing { id, fault: fault.clone() });
        // Listed first: whatever becomes of this program, it can be healed.
        registry.save()?;
        let result = self.begin(id, &fault, &registry.standing);
        if let Err(error) = result {
            registry.standing.pop();
            registry.save()?;
            // As far as it was done, it is undone.
            let undone = self.end_fault(id, &fault, &registry.standing);
            return Err(undone
                .err()
                .map_or(error.context(format!("inflict: {fault}")), |second| error_and(&fault, &second)));
        }
        Ok(id)
    }

    /// Heals those faults that a caller wants healed, newest first, and gives them. Goes on past failures.
    ///
    /// # Errors
    /// With all that could not be healed; they stay listed.
    pub fn heal_where(&self, wanted: impl Fn(&Standing) -> bool) -> Result<Vec<Standing>> {
        let mut registry = Registry::open(self)?;
        let (mut healed, mut failures) = (Vec::new(), Vec::new());
        let chosen: Vec<Standing> = registry.standing.iter().rev().filter(|it| wanted(it)).cloned().collect();
        for standing in chosen {
            let others: Vec<Standing> =
                registry.standing.iter().filter(|it| it.id != standing.id).cloned().collect();
            match self.end_fault(standing.id, &standing.fault, &others) {
                Ok(()) => {
                    registry.standing = others;
                    registry.save()?;
                    healed.push(standing);
                }
                Err(error) => failures.push(format!("heal {} ({}): {error:#}", standing.id, standing.fault)),
            }
        }
        if failures.is_empty() { Ok(healed) } else { bail!("{}", failures.join("\n")) }
    }

    /// Heals one fault.
    ///
    /// # Errors
    /// When there is none of this number, or it cannot be healed.
    pub fn heal(&self, id: u32) -> Result<Standing> {
        let healed = self.heal_where(|standing| standing.id == id)?;
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
    /// With all that could not be healed.
    pub fn heal_all(&self) -> Result<Vec<Standing>> {
        self.heal_where(|_| true)
    }

    /// A rebooted machine has a new cable: what was done to the old one is done to it.
    pub(super) fn inflict_again(&self, node: &str) -> Result<()> {
        for Standing { id, fault } in self.faults()? {
            match &fault {
                Fault::Delay { way, .. } if way.from.iter().chain(&way.to).any(|it| it == node) => {
                    self.stop_helper(id)?;
                    self.offloads(&fault, false)?;
                    self.start_helper(id, &fault)?;
                }
                Fault::Address { node: whose, address } if whose == node => {
                    self.change_address(node, *address)?;
                }
                // Rules name ports, and the port has its name again.
                _ => {}
            }
        }
        Ok(())
    }

    fn begin(&self, id: u32, fault: &Fault, all: &[Standing]) -> Result<()> {
        match fault {
            Fault::Cut { .. } | Fault::Loss { .. } => self.write_rules(all),
            Fault::Delay { .. } => {
                self.offloads(fault, false)?;
                // Nothing is lost meanwhile: some packets come twice, at once and delayed.
                self.start_helper(id, fault)?;
                self.write_rules(all)
            }
            Fault::Flap { .. } => self.start_helper(id, fault),
            Fault::Paused { machine } => self.pause(machine),
            Fault::Down { machine } => self.kill(machine),
            Fault::Address { node, address } => self.change_address(node, *address),
        }
    }

    /// Undoes a fault, whether or not all of it was done; `others` still stand.
    fn end_fault(&self, id: u32, fault: &Fault, others: &[Standing]) -> Result<()> {
        match fault {
            Fault::Cut { .. } | Fault::Loss { .. } => self.write_rules(others),
            Fault::Delay { delay, .. } => {
                self.write_rules(others)?;
                // What is under way arrives.
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
