//! Carries out plans: each step goes to the descriptor of its table.

use std::{mem::discriminant, net::IpAddr};

use datapath_abi::epoch_shard_v4;
use datapath_plan::{Entry, EpochScope, Op, OpFailure, Plan, PlanOutcome, TableKey};

use crate::{
    datapath::Datapath,
    descriptor::{Answer, KernelTable, Progress, first_failure},
    rows::BATCH_ENTRIES,
};

impl Datapath {
    /// Carries out the steps in order. Steps of one kind on one table that follow one another go to the kernel together; a
    /// step that fails is named in the outcome and stops neither its neighbours nor the steps after it. Applying a plan
    /// twice changes nothing, but that epochs rise.
    pub async fn apply(&mut self, plan: Plan) -> PlanOutcome {
        let mut failures = Vec::new();
        if let Err(error) = self.slot_tables.clear(&self.maps) {
            // They are tried again with the next plan; nothing leads there.
            tracing::warn!(error = error.chain(), "slots that are no longer used stay");
        }
        let runs = plan.ops.chunk_by(go_together);
        // The rows and answers of a run are made whole: not of 100,000 at once.
        for run in runs.flat_map(|run| run.chunks(BATCH_ENTRIES as usize)) {
            let progress = Progress { slot_tables: &plan.slot_tables, failures: &failures };
            let answers = self.step(run, &progress).await;
            for (op, answer) in run.iter().zip(answers) {
                if let Err(error) = answer {
                    failures.push(OpFailure { op: op.clone(), error: error.into() });
                }
            }
        }
        self.sockets.end_orphans(&self.maps, &plan.ops);
        PlanOutcome { generation: plan.generation, failures }
    }

    /// Carries out steps of one kind on one table.
    async fn step<'ops>(&mut self, run: &'ops [Op], progress: &Progress<'_>) -> Vec<Answer> {
        macro_rules! by_table {
            (() $(#[doc = $doc:literal] $Variant:ident $field:ident [$Table:ident] $Key:ty => $Row:ty;)+) => {
                match &run[0] {
                    Op::BumpEpochs(scope) => vec![self.bump_epochs(scope)],
                    $(Op::Put(Entry::$Variant(..)) => {
                        let row = |op: &'ops Op| match op {
                            Op::Put(Entry::$Variant(key, row)) => Some((*key, row)),
                            _ => None,
                        };
                        let rows: Vec<($Key, &$Row)> = run.iter().filter_map(row).collect();
                        <$Row>::put(self, &rows, progress).await
                    }
                    Op::Delete(TableKey::$Variant(_)) => {
                        let key = |op: &Op| match op {
                            Op::Delete(TableKey::$Variant(key)) => Some(*key),
                            _ => None,
                        };
                        let keys: Vec<$Key> = run.iter().filter_map(key).collect();
                        <$Row>::delete(self, &keys).await
                    })+
                }
            };
        }
        datapath_plan::kernel_tables!(by_table!())
    }

    pub(crate) fn bump_epochs(&self, scope: &EpochScope) -> Answer {
        let mut epochs = match scope {
            EpochScope::All => self.maps.epochs.dump()?,
            EpochScope::Addresses(addresses) => {
                let mut shards: Vec<u32> = Vec::with_capacity(addresses.len());
                for address in addresses {
                    // No flow of another family is in any table: there is nothing to raise, and nothing that fails.
                    if let IpAddr::V4(address) = address {
                        shards.push(epoch_shard_v4(address.octets()));
                    }
                }
                shards.sort_unstable();
                shards.dedup();
                let mut epochs = Vec::with_capacity(shards.len());
                for shard in shards {
                    epochs.push((shard, self.maps.epochs.get(&shard)?.unwrap_or_default()));
                }
                epochs
            }
        };
        for (_, epoch) in &mut epochs {
            *epoch = epoch.wrapping_add(1);
        }
        first_failure(self.maps.epochs.put_all(&epochs))
    }
}

fn go_together(a: &Op, b: &Op) -> bool {
    match (a, b) {
        (Op::Put(a), Op::Put(b)) => discriminant(a) == discriminant(b),
        (Op::Delete(a), Op::Delete(b)) => discriminant(a) == discriminant(b),
        _ => false,
    }
}
