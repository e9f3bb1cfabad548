//! Reads what the kernel holds, whole: each table by its descriptor.

use datapath_plan::Observed;

use crate::{
    datapath::Datapath,
    descriptor::{KernelTable, Observation},
    error::DatapathError,
    netlink::Link,
    object::Program,
};

impl Datapath {
    /// Reads maps, devices, routes and hooks. What is there in part is named in `broken`, and made again or removed by the
    /// difference.
    ///
    /// # Errors
    /// Any: an observation is whole or none, since absence is acted upon.
    pub async fn observe(&mut self) -> Result<Observed, DatapathError> {
        let links = self.netlink.links().await?;
        let mut observation = Observation { observed: Observed::default(), links, base: None };
        macro_rules! all_tables {
            (() $(#[doc = $doc:literal] $Variant:ident $field:ident [$Table:ident] $Key:ty => $Row:ty;)+) => {
                $(<$Row>::observe(self, &mut observation).await?;)+
            };
        }
        datapath_plan::kernel_tables!(all_tables!());
        Ok(observation.observed)
    }

    /// Names the programs that a device should have and has not.
    pub(crate) async fn check_hooks(
        &self,
        link: &Link,
        programs: &[Program],
        broken: &mut Vec<String>,
    ) -> Result<(), DatapathError> {
        for program in programs {
            if !self.hooks.is_attached(&self.netlink, link, *program).await? {
                broken.push(format!("{}: program {} is not attached", link.name, program.name()));
            }
        }
        Ok(())
    }
}
