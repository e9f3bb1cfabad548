//! Attaching programs to devices: by TCX links pinned under their device's and program's names, or by clsact
//! filters where the kernel is older than 6.6.
//!
//! A link is never made twice: one that is pinned gets the new program in place, without a packet in between
//! that meets none (FACTS: 100 swaps under load, no loss).

use std::{fs, io, os::fd::AsFd, path::PathBuf, thread};

use aya::{
    Ebpf,
    programs::{
        LinkOrder, ProgramError, SchedClassifier, TcAttachType,
        links::{FdLink, LinkError, PinnedLink},
        tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle, qdisc_add_clsact},
    },
};

use datapath_abi::map_name;
use nix::net::if_::if_nametoindex;

use crate::{
    bpf, cgroup, clsact,
    descriptor::MAPS,
    device::{ENDPOINT_PREFIX, HOST_DEVICE, VXLAN_DEVICE},
    error::DatapathError,
    netlink::{Link, Netlink},
    object::{self, Program},
    pins,
    pins::Pins,
    xdp,
};

/// Our filter's place at a clsact hook: fixed, so that it is found and replaced.
const CLSACT_PRIORITY: u16 = 1;
const CLSACT_HANDLE: TcHandle = TcHandle::new(0, 1);

/// How programs are attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AttachMode {
    Tcx,
    Clsact,
}

impl AttachMode {
    /// What this kernel can do: asked, not told from its version.
    pub(crate) fn probe() -> Self {
        match SchedClassifier::query_tcx("lo", TcAttachType::Ingress) {
            Ok(_) => Self::Tcx,
            Err(_) => Self::Clsact,
        }
    }
}

impl Program {
    pub(crate) const fn direction(self) -> TcAttachType {
        match self {
            Self::FromEndpoint | Self::FromTunnel | Self::FromNetdev => TcAttachType::Ingress,
            Self::ToEndpoint | Self::FromHost | Self::ToNetdev => TcAttachType::Egress,
        }
    }

    /// Whether the kernel calls a program so: it keeps 15 bytes of a name.
    fn is_named(self, name: &str) -> bool {
        let length = self.name().len().min(15);
        name == &self.name()[..length]
    }

    fn fail(
        self,
        operation: impl Into<String>,
        source: impl std::error::Error + Send + Sync + 'static,
    ) -> DatapathError {
        DatapathError::program(self.name(), operation, source)
    }
}

/// Which programs belong on a device of ours.
pub(crate) fn programs_of(device: &str) -> &'static [Program] {
    match device {
        HOST_DEVICE => &[Program::FromHost],
        VXLAN_DEVICE => &[Program::FromTunnel],
        _ if device.starts_with(ENDPOINT_PREFIX) => &[Program::ToEndpoint, Program::FromEndpoint],
        _ => &[],
    }
}

/// The programs of the underlay's interface, which is not ours.
pub(crate) const UNDERLAY_PROGRAMS: &[Program] = &[Program::FromNetdev, Program::ToNetdev];

/// The loaded programs, and where they are attached.
#[derive(Debug)]
pub(crate) struct Hooks {
    pub ebpf: Ebpf,
    pub pins: Pins,
    pub mode: AttachMode,
}

/// A pinned link by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LinkPin {
    pub device: String,
    pub program: Program,
}

/// A program at one of our hooks.
#[derive(Debug)]
pub(crate) struct AtWork {
    pub program_id: u32,
    /// The device, and which of our programs belongs there; `None` for what this build does not know.
    hook: Option<(String, Program)>,
    place: Place,
}

/// Where a program is attached.
#[derive(Debug)]
enum Place {
    /// By the pinned link of this name.
    Link(String),
    /// By our filter on this device.
    Filter(String, TcAttachType),
}

/// Whether a program is of a build of ours: all of them read the configuration.
fn is_of_ours(program_id: u32) -> Result<bool, DatapathError> {
    let fail = |source| DatapathError::program("at clsact", "ask for the maps of", source);
    for id in bpf::program_map_ids(program_id).map_err(fail)? {
        let map = bpf::map_by_id(id).map_err(fail)?;
        let info = bpf::map_info(map.as_fd()).map_err(fail)?;
        if bpf::is_named(&info, map_name::CONFIG) {
            return Ok(true);
        }
    }
    Ok(false)
}

impl LinkPin {
    pub(crate) fn parse(name: &str) -> Option<Self> {
        let (device, program) = name.rsplit_once('-')?;
        let program = Program::ALL.into_iter().find(|candidate| candidate.name() == program)?;
        Some(Self { device: device.into(), program })
    }
}

impl Hooks {
    /// Loads the programs into the kernel, where they are checked: all at once, as that is what the start of an agent
    /// waits for.
    pub(crate) fn load(mut ebpf: Ebpf, pins: Pins, mode: AttachMode) -> Result<Self, DatapathError> {
        for program in Program::ALL {
            classifier(&mut ebpf, program)?;
        }
        thread::scope(|scope| {
            let classifiers = ebpf.programs_mut().filter_map(|(name, loaded)| {
                let program = Program::ALL.into_iter().find(|program| program.name() == name)?;
                Some((program, <&mut SchedClassifier>::try_from(loaded).ok()?))
            });
            let loads: Vec<_> = classifiers
                .map(|(program, classifier)| (program, scope.spawn(|| object::load(classifier))))
                .collect();
            loads.into_iter().try_for_each(|(program, load)| {
                let result = load.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                result.map_err(|error| program.fail("load", error))
            })
        })?;
        Ok(Self { ebpf, pins, mode })
    }

    /// Pins what was loaded in the place of an earlier build's: the maps that were made beside its, and the
    /// programs. What this build does not know goes.
    pub(crate) fn pin(&mut self) -> Result<(), DatapathError> {
        for map in pins::names(&self.pins.next())? {
            self.pins.take_over(&map)?;
        }
        for map in pins::names(&self.pins.maps())? {
            if !MAPS.iter().any(|(name, _)| *name == map) {
                pins::remove(&self.pins.maps().join(map))?;
            }
        }
        for program in pins::names(&self.pins.programs())? {
            pins::remove(&self.pins.programs().join(program))?;
        }
        for program in Program::ALL {
            let path = self.pins.programs().join(program.name());
            let classifier = classifier(&mut self.ebpf, program)?;
            classifier.pin(path).map_err(|error| program.fail("pin", error))?;
        }
        Ok(())
    }

    /// What works at this node's hooks now; `links` are the node's devices.
    pub(crate) async fn at_work(
        &self,
        netlink: &Netlink,
        links: &[Link],
    ) -> Result<Vec<AtWork>, DatapathError> {
        let mut found = Vec::new();
        match self.mode {
            AttachMode::Tcx => {
                for name in pins::names(&self.pins.links())? {
                    if cgroup::is_pin(&name) || xdp::is_pin(&name) {
                        continue;
                    }
                    let fail = |error: LinkError| DatapathError::program(&name, "ask the link of", error);
                    let pinned = PinnedLink::from_pin(self.pins.links().join(&name)).map_err(fail)?;
                    let program_id = FdLink::from(pinned).info().map_err(fail)?.program_id();
                    let hook = LinkPin::parse(&name).map(|pin| (pin.device, pin.program));
                    found.push(AtWork { program_id, hook, place: Place::Link(name) });
                }
            }
            AttachMode::Clsact => {
                for link in links {
                    for direction in [TcAttachType::Ingress, TcAttachType::Egress] {
                        for filter in clsact::filters(netlink, link, direction).await? {
                            let Some(program_id) = filter.program_id else { continue };
                            if is_of_ours(program_id)? {
                                let known = Program::ALL.into_iter().find(|program| {
                                    program.direction() == direction && program.is_named(&filter.name)
                                });
                                let hook = known.map(|program| (link.name.clone(), program));
                                let place = Place::Filter(link.name.clone(), direction);
                                found.push(AtWork { program_id, hook, place });
                            }
                        }
                    }
                }
            }
        }
        Ok(found)
    }

    /// Puts to work on a device the programs that belong there; what is attached is replaced in place.
    pub(crate) fn attach(&mut self, device: &str) -> Result<(), DatapathError> {
        programs_of(device).iter().try_for_each(|program| self.attach_one(device, *program))
    }

    /// Puts the underlay's programs to work on its interface, then takes them off every other one.
    pub(crate) async fn attach_underlay(
        &mut self,
        netlink: &Netlink,
        device: &str,
    ) -> Result<(), DatapathError> {
        let links = netlink.links().await?;
        for pin in self.link_pins()?.iter().filter(|pin| UNDERLAY_PROGRAMS.contains(&pin.program)) {
            let path = self.link_path(device, pin.program);
            // Gone, or another name of this one: a hook takes a program once.
            if links.iter().all(|link| link.name != pin.device) && !path.exists() {
                let former = self.link_path(&pin.device, pin.program);
                fs::rename(&former, path).map_err(|source| DatapathError::file("rename", former, source))?;
            }
        }
        UNDERLAY_PROGRAMS.iter().try_for_each(|program| self.attach_one(device, *program))?;
        let is_former = |work: &&AtWork| {
            let hook = work.hook.as_ref();
            hook.is_some_and(|(other, program)| other != device && UNDERLAY_PROGRAMS.contains(program))
        };
        let at_work = self.at_work(netlink, &links).await?;
        at_work.iter().filter(is_former).try_for_each(|work| self.take_away(&work.place))
    }

    fn take_away(&self, place: &Place) -> Result<(), DatapathError> {
        match place {
            Place::Link(name) => pins::remove(&self.pins.links().join(name)),
            Place::Filter(device, direction) => {
                clsact::remove(device, *direction, CLSACT_PRIORITY, CLSACT_HANDLE)
            }
        }
    }

    fn attach_one(&mut self, device: &str, program: Program) -> Result<(), DatapathError> {
        match self.mode {
            AttachMode::Tcx => {
                if !self.replace_link(device, program)? {
                    self.make_link(device, program)?;
                }
                Ok(())
            }
            AttachMode::Clsact => self.put_filter(device, program),
        }
    }

    /// Gives the program to the pinned link of that name. False if there is none, or its device is gone (the
    /// pin then goes too).
    fn replace_link(&mut self, device: &str, program: Program) -> Result<bool, DatapathError> {
        let path = self.link_path(device, program);
        let fail = |error: LinkError| program.fail(format!("adopt the link of {device} for"), error);
        let pinned = match PinnedLink::from_pin(&path) {
            Ok(pinned) => pinned,
            Err(LinkError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => {
                return Ok(false);
            }
            Err(error) => return Err(fail(error)),
        };
        let link = SchedClassifierLink::try_from(FdLink::from(pinned)).map_err(fail)?;
        let classifier = classifier(&mut self.ebpf, program)?;
        match classifier.attach_to_link(link) {
            Ok(id) => {
                // The pin holds the link; this handle on it is not needed.
                drop(classifier.take_link(id).map_err(|error| program.fail("release the link of", error))?);
                Ok(true)
            }
            Err(ProgramError::SyscallError(error))
                if error.io_error.raw_os_error() == Some(libc::ENOLINK) =>
            {
                pins::remove(&path)?;
                Ok(false)
            }
            Err(error) => Err(program.fail(format!("replace on {device}"), error)),
        }
    }

    fn make_link(&mut self, device: &str, program: Program) -> Result<(), DatapathError> {
        let path = self.link_path(device, program);
        let fail = |error: ProgramError| program.fail(format!("attach to {device}"), error);
        let classifier = classifier(&mut self.ebpf, program)?;
        let options = TcAttachOptions::TcxOrder(LinkOrder::default());
        let id = classifier.attach_with_options(device, program.direction(), options).map_err(fail)?;
        let link = FdLink::try_from(classifier.take_link(id).map_err(fail)?)
            .map_err(|error| program.fail("take the link of", error))?;
        link.pin(path).map_err(|error| program.fail("pin the link of", error))?;
        Ok(())
    }

    fn put_filter(&mut self, device: &str, program: Program) -> Result<(), DatapathError> {
        match qdisc_add_clsact(device) {
            Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(libc::EEXIST) => {}
            other => other.map_err(|error| program.fail(format!("prepare {device} for"), error))?,
        }
        let fail = |error: ProgramError| program.fail(format!("attach to {device}"), error);
        let classifier = classifier(&mut self.ebpf, program)?;
        let options = NlOptions { priority: CLSACT_PRIORITY, handle: CLSACT_HANDLE, classid: None };
        let attached =
            classifier.attach_with_options(device, program.direction(), TcAttachOptions::Netlink(options));
        let id = match attached {
            Err(ProgramError::TcError(TcError::NetlinkError(error)))
                if error.raw_os_error() == Some(libc::EEXIST) =>
            {
                let link = SchedClassifierLink::attached(
                    device,
                    program.direction(),
                    CLSACT_PRIORITY,
                    CLSACT_HANDLE,
                    None,
                )
                .map_err(|error| program.fail(format!("find {device} for"), error))?;
                classifier.attach_to_link(link).map_err(fail)?
            }
            other => other.map_err(fail)?,
        };
        // Dropped, the handle would detach the filter, which must outlive the agent.
        std::mem::forget(classifier.take_link(id).map_err(fail)?);
        Ok(())
    }

    /// Gives our programs to the hooks where an earlier agent's are at work, and takes away those that this build
    /// does not know: they are of another, and nobody would keep their maps. Pins whose device is gone are
    /// removed. Returns how many hooks there were.
    pub(crate) fn adopt(&mut self, at_work: &[AtWork]) -> Result<usize, DatapathError> {
        let mut adopted = 0;
        for AtWork { hook, place, .. } in at_work {
            match (hook, place) {
                (Some((device, program)), Place::Link(_)) => {
                    adopted += usize::from(self.replace_link(device, *program)?);
                }
                (Some((device, program)), Place::Filter(..)) => {
                    self.put_filter(device, *program)?;
                    adopted += 1;
                }
                (None, Place::Filter(device, direction)) => {
                    tracing::info!(?place, "a program of another build is replaced or taken away");
                    let successor =
                        programs_of(device).iter().find(|program| program.direction() == *direction);
                    match successor {
                        Some(program) => self.put_filter(device, *program)?,
                        None => self.take_away(place)?,
                    }
                }
                (None, Place::Link(name)) => {
                    tracing::info!(?place, "a program of another build is taken away");
                    // What belongs on the device works there before the other program goes: no packet meets none.
                    if let Some((device, _)) = name.rsplit_once('-')
                        && if_nametoindex(device).is_ok()
                    {
                        self.attach(device)?;
                    }
                    self.take_away(place)?;
                }
            }
        }
        Ok(adopted)
    }

    /// Which links are pinned.
    pub(crate) fn link_pins(&self) -> Result<Vec<LinkPin>, DatapathError> {
        Ok(pins::names(&self.pins.links())?.iter().filter_map(|name| LinkPin::parse(name)).collect())
    }

    /// Takes the programs off a device by removing their links' pins. (Clsact filters go with the device.)
    pub(crate) fn detach(&self, device: &str) -> Result<(), DatapathError> {
        programs_of(device).iter().try_for_each(|program| pins::remove(&self.link_path(device, *program)))
    }

    /// Whether our present program works at its hook on the device. On one that has gone since it was listed (with a
    /// workload's namespace, at any moment) nothing does.
    pub(crate) async fn is_attached(
        &self,
        netlink: &Netlink,
        link: &Link,
        program: Program,
    ) -> Result<bool, DatapathError> {
        match self.works_at(netlink, link, program).await {
            Err(_) if if_nametoindex(link.name.as_str()) != Ok(link.index) => Ok(false),
            answer => answer,
        }
    }

    async fn works_at(
        &self,
        netlink: &Netlink,
        link: &Link,
        program: Program,
    ) -> Result<bool, DatapathError> {
        let id = self.program_id(program)?;
        match self.mode {
            AttachMode::Tcx => {
                let (_, attached) = SchedClassifier::query_tcx(&link.name, program.direction())
                    .map_err(|error| program.fail(format!("ask {} for", link.name), error))?;
                let pinned = self.link_path(&link.name, program).exists();
                Ok(pinned && attached.iter().any(|info| info.id() == id))
            }
            AttachMode::Clsact => {
                Ok(clsact::programs(netlink, link, program.direction()).await?.contains(&id))
            }
        }
    }

    /// The kernel's numbers of all our present programs.
    pub(crate) fn program_ids(&self) -> Result<Vec<u32>, DatapathError> {
        Program::ALL.into_iter().map(|program| self.program_id(program)).collect()
    }

    fn program_id(&self, program: Program) -> Result<u32, DatapathError> {
        let loaded = self.ebpf.program(program.name()).ok_or_else(|| missing(program))?;
        let info = loaded.info().map_err(|error| program.fail("ask for", error))?;
        Ok(info.id())
    }

    fn link_path(&self, device: &str, program: Program) -> PathBuf {
        self.pins.links().join(format!("{device}-{}", program.name()))
    }
}

fn classifier(ebpf: &mut Ebpf, program: Program) -> Result<&mut SchedClassifier, DatapathError> {
    let loaded = ebpf.program_mut(program.name()).ok_or_else(|| missing(program))?;
    loaded.try_into().map_err(|error: ProgramError| program.fail("find", error))
}

fn missing(program: Program) -> DatapathError {
    program.fail("find", io::Error::from(io::ErrorKind::NotFound))
}
