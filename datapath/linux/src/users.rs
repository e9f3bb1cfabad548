//! What is attached at the hooks of Warren's devices: Warren's programs, and those of others, which may see packets first.

use aya::programs::{SchedClassifier, TcAttachType};
use serde::Serialize;

use crate::{clsact, datapath::Datapath, error::DatapathError, hook::AttachMode, netlink::Link};

/// A program or filter at a hook of a device.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct HookUser {
    /// The device.
    pub device: String,
    /// `ingress` or `egress`, from the view of the device.
    pub direction: &'static str,
    /// How it is attached: `tcx` or `tc` (a filter).
    pub hook: &'static str,
    /// The program's name, cut off as in the kernel; for a filter without a program its kind.
    pub name: String,
    /// The program's id; `None` for a filter without a program.
    pub program_id: Option<u32>,
    /// Whether this agent has loaded the program.
    pub ours: bool,
}

impl Datapath {
    /// All programs and filters at the hooks of Warren's devices and of the named ones, in the order in which they run: TCX
    /// before filters. Takes four system calls for each device; a device that goes meanwhile is left out.
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
