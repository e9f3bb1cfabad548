//! Which of our programs work where, asked of the kernel.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::{
    config::XdpConfig,
    datapath::Datapath,
    error::DatapathError,
    hook::{AttachMode, UNDERLAY_PROGRAMS, programs_of},
    object::{Program, SocketProgram, XDP_PROGRAM},
};

/// A program and the devices where it is at work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ProgramInfo {
    /// Its name in the object.
    pub name: String,
    /// How it is attached: `tcx`, `clsact`, `cgroup`, `xdp native` or `xdp generic`.
    pub hook: &'static str,
    /// The devices, sorted; of one at sockets its cgroup.
    pub devices: Vec<String>,
}

impl Datapath {
    /// All programs of the object with the devices where the present ones work. Two questions to the
    /// kernel for each device.
    ///
    /// # Errors
    /// [`DatapathError::Netlink`] or [`DatapathError::Program`] if the kernel refuses to answer.
    pub async fn programs(&self) -> Result<Vec<ProgramInfo>, DatapathError> {
        let mut devices: BTreeMap<&str, Vec<String>> =
            Program::ALL.into_iter().map(|program| (program.name(), Vec::new())).collect();
        let underlay = self.maps.config.get(&0)?.map_or(0, |config| config.underlay_ifindex);
        for link in &self.netlink.links().await? {
            let programs = match link.is_ours() {
                true => programs_of(&link.name),
                false if link.index == underlay => UNDERLAY_PROGRAMS,
                false => continue,
            };
            for program in programs {
                if self.hooks.is_attached(&self.netlink, link, *program).await? {
                    devices.entry(program.name()).or_default().push(link.name.clone());
                }
            }
        }
        let hook = match self.hooks.mode {
            AttachMode::Tcx => "tcx",
            AttachMode::Clsact => "clsact",
        };
        let info = |(name, mut devices): (&str, Vec<String>)| {
            devices.sort();
            ProgramInfo { name: name.to_owned(), hook, devices }
        };
        let mut programs: Vec<ProgramInfo> = devices.into_iter().map(info).collect();
        if let Some(XdpConfig { mode, .. }) = self.config.xdp {
            let links = self.netlink.links().await?;
            let works = links
                .iter()
                .filter(|link| link.index == underlay && self.hooks.has_xdp(&link.name, link.index, mode));
            programs.push(ProgramInfo {
                name: XDP_PROGRAM.to_owned(),
                hook: mode.hook(),
                devices: works.map(|link| link.name.clone()).collect(),
            });
        }
        if let Some(wanted) = &self.config.sockets {
            let at = self.sockets.cgroup.as_ref();
            programs.extend(SocketProgram::ALL.iter().map(|program| {
                ProgramInfo {
                    name: program.name().to_owned(),
                    hook: "cgroup",
                    devices: at
                        .filter(|_| self.hooks.is_at_sockets(*program, &wanted.cgroup))
                        .map(|cgroup| vec![cgroup.display().to_string()])
                        .unwrap_or_default(),
                }
            }));
        }
        Ok(programs)
    }
}
