//! Who uses the hooks of our devices: our programs, and anybody else's, who may see packets before us.

use aya::programs::{SchedClassifier, TcAttachType};
use serde::Serialize;

use crate::{clsact, datapath::Datapath, error::DatapathError, hook::AttachMode, netlink::Link};

/// Something at a hook of a device.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct HookUser {
    /// The device.
    pub device: String,
    /// `ingress` or `egress`, as the device sees it.
    pub direction: &'static str,
    /// How it is attached: `tcx` or `tc` (a filter).
    pub hook: &'static str,
    /// The program's name, as short as the kernel keeps it; of a filter without a program its kind.
    pub name: String,
    /// The kernel's number of the program; `None` for a filter without one.
    pub program_id: Option<u32>,
    /// Whether it is a program that this agent has loaded.
    pub ours: bool,
}

impl Datapath {
    /// What is at the hooks of our devices and of those named, in the order in which it runs: TCX before
    /// filters. Four questions to the kernel for each device; a device that goes meanwhile is left out.
    ///
    /// # Errors
    /// [`DatapathError::Netlink`] or [`DatapathError::Program`] if the kernel refuses to answer.
    pub async fn hook_users(&self, others: &[String]) -> Result<Vec<HookUser>, DatapathError> {
        let own = self.hooks.program_ids()?;
        let mut users = Vec::new();
        let links = self.netlink.links().await?;
        for link in links.iter().filter(|link| link.is_ours() || others.contains(&link.name)) {
            for direction in [TcAttachType::Ingress, TcAttachType::Egress] {
                match self.users_of(link, direction).await {
                    Ok(found) => users.extend(found),
                    Err(_) if self.netlink.link(&link.name).await?.is_none() => {}
                    Err(error) => return Err(error),
                }
            }
        }
        for user in &mut users {
            user.ours = user.program_id.is_some_and(|id| own.contains(&id));
        }
        users.sort_by(|a, b| a.device.cmp(&b.device));
        Ok(users)
    }

    async fn users_of(&self, link: &Link, direction: TcAttachType) -> Result<Vec<HookUser>, DatapathError> {
        let user = |hook, name: String, program_id| HookUser {
            device: link.name.clone(),
            direction: if direction == TcAttachType::Ingress { "ingress" } else { "egress" },
            hook,
            name,
            program_id,
            ours: false,
        };
        let mut users = Vec::new();
        if self.hooks.mode == AttachMode::Tcx {
            let (_, attached) = SchedClassifier::query_tcx(&link.name, direction).map_err(|error| {
                DatapathError::program("of others", format!("ask {} for", link.name), error)
            })?;
            users.extend(attached.iter().map(|info| {
                let name = String::from_utf8_lossy(info.name()).into_owned();
                user("tcx", name, Some(info.id()))
            }));
        }
        let filters = clsact::filters(&self.netlink, link, direction).await?;
        users.extend(filters.into_iter().map(|filter| user("tc", filter.name, filter.program_id)));
        Ok(users)
    }
}
