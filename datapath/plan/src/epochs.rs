//! The flows that the changes of a plan concern, gathered while the plan is made.

use std::{collections::BTreeSet, net::IpAddr};

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::{EpochScope, Op};

/// Above this many addresses all epochs are raised: with more addresses than shards nearly every shard is hit anyway, and
/// one write of all costs less.
const MAX_ADDRESSES: usize = datapath_abi::EPOCH_SHARDS as usize;

/// Epochs that must be raised. Merges; empty at first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Epochs {
    all: bool,
    addresses: BTreeSet<IpAddr>,
}

impl Epochs {
    /// Those of an address.
    pub fn address(&mut self, address: IpAddr) {
        self.addresses.insert(address);
    }

    /// Those of every address in a prefix. A prefix of more than one address raises all epochs.
    pub fn prefix(&mut self, prefix: IpNetwork) {
        if is_exact(&prefix) {
            self.addresses.insert(prefix.ip());
        } else {
            self.all();
        }
    }

    /// All epochs.
    pub fn all(&mut self) {
        self.all = true;
    }

    pub(crate) fn scope(&mut self, scope: &EpochScope) {
        match scope {
            EpochScope::All => self.all = true,
            EpochScope::Addresses(addresses) => self.addresses.extend(addresses),
        }
    }

    /// The step that raises them, if any is to be raised.
    pub(crate) fn into_op(self) -> Option<Op> {
        if self.all || self.addresses.len() > MAX_ADDRESSES {
            Some(Op::BumpEpochs(EpochScope::All))
        } else if self.addresses.is_empty() {
            None
        } else {
            Some(Op::BumpEpochs(EpochScope::Addresses(self.addresses.into_iter().collect())))
        }
    }
}

/// Whether a prefix is a single address, which the ipcache keeps in its hash map and not in its LPM trie.
pub(crate) fn is_exact(prefix: &IpNetwork) -> bool {
    prefix.prefix() == if prefix.is_ipv4() { 32 } else { 128 }
}
