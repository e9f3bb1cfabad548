//! What is said once of each kernel table: its name, its limits, what a change of it means for flows.

use std::{fmt, net::IpAddr};

use serde::{Deserialize, Serialize};

use crate::{Base, Epochs, Prune, tables::Stored};

/// A row of one kernel table. The name of the type is what the tables' list ([`crate::kernel_tables!`]) calls the row.
///
/// Everything that is done with tables (plans, differences, capacity, dumps, `/v1/state`, metrics) follows from this
/// trait and the list; how rows lie in the kernel is said in `datapath-linux`.
pub trait Row: Stored + Clone + PartialEq + fmt::Display + Serialize {
    /// The table's name, in plans, differences, metrics and on the command line.
    const NAME: &'static str;
    /// The kernel maps whose limits rows count against. Empty: the kernel has no limit of ours.
    const ROOMS: &'static [Room];
    /// False for a row that stays for as long as its node lives, because everything else depends on it.
    const REMOVABLE: bool = true;
    /// Making a row takes milliseconds. Epochs that earlier steps of a plan owe are raised before the first of them, so
    /// that those flows need not wait.
    const IS_SLOW: bool = false;

    /// Which of [`Row::ROOMS`] a row counts against.
    fn room(_: &Self::Key) -> usize {
        0
    }

    /// Whether everything that belongs into the table is known, so that a row that nobody wants may go.
    fn may_be_pruned(prune: &Prune) -> bool;

    /// Whether the kernel cannot tell the two apart.
    fn is_same(&self, other: &Self) -> bool {
        self == other
    }

    /// An address under which the kernel finds the row, too. No two rows of a table share one, so a row that goes
    /// makes room before another one takes its address over.
    fn unique_address(&self) -> Option<IpAddr> {
        None
    }

    /// The flows that a change of a row concerns: they are decided again after the change.
    fn concerns(change: &Change<'_, Self>, epochs: &mut Epochs);
}

/// The rows before and after a step.
pub struct Change<'a, R: Row> {
    /// The key of both.
    pub key: R::Key,
    /// The row that the kernel is believed to hold.
    pub had: Option<&'a R>,
    /// The row that it will hold; `None` when it is removed.
    pub wanted: Option<&'a R>,
    /// The base before and after the plan.
    pub bases: [Option<&'a Base>; 2],
}

/// A limit on the number of rows: that of a kernel map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// The table's name; of a table in several maps with the part.
    pub name: &'static str,
    /// The number of rows that the kernel map can hold.
    pub max: usize,
}

/// Counts what a node wants: raised with every change of its desired state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Generation(pub u64);
