//! The program before the stack: attached to the underlay's interface by a link that is pinned, adopted and replaced in
//! place, as those of classifiers are; and the networks that it refuses.
//!
//! What keeps it from working is a warning: packets then take the path of classifiers, which answers the same. Only
//! networks are then not refused.

use std::{
    io,
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use aya::programs::Xdp;

use crate::{
    bpf,
    config::{XdpConfig, XdpMode},
    datapath::Datapath,
    descriptor::Answer,
    error::DatapathError,
    hook::{Hooks, LinkPin},
    netlink::Link,
    object::{self, XDP_PROGRAM},
    pins,
};

/// Before the device's name in that of a link's pin.
const fn pin_prefix(mode: XdpMode) -> &'static str {
    match mode {
        XdpMode::Native => "xdp-native-",
        XdpMode::Generic => "xdp-generic-",
    }
}

impl XdpMode {
    const ALL: [Self; 2] = [Self::Native, Self::Generic];

    /// As programs' hooks are called in listings.
    pub(crate) const fn hook(self) -> &'static str {
        match self {
            Self::Native => "xdp native",
            Self::Generic => "xdp generic",
        }
    }

    /// `XDP_FLAGS_*` of `linux/if_link.h`.
    const fn flags(self) -> u32 {
        match self {
            Self::Generic => 1 << 1,
            Self::Native => 1 << 2,
        }
    }
}

/// Whether a pin among the links is that of the program before the stack.
pub(crate) fn is_pin(name: &str) -> bool {
    XdpMode::ALL.iter().any(|mode| name.starts_with(pin_prefix(*mode))) && LinkPin::parse(name).is_none()
}

impl Datapath {
    /// Puts the program to work on the underlay's interface, where it is wanted and can be.
    pub(crate) fn put_before_stack(&mut self, underlay: &Link) {
        let Some(XdpConfig { mode, .. }) = self.config.xdp else { return };
        let device = &underlay.name;
        self.without_xdp = None;
        if let Err(error) = self.hooks.attach_xdp(device, underlay.index, mode) {
            tracing::warn!(device, error = error.chain(), "nothing is done before the stack");
            self.without_xdp = Some(underlay.index);
        } else if mode == XdpMode::Native && underlay.kind == "veth" {
            tracing::warn!(
                device,
                "a veth loses what is carried before the stack, unless its other end runs an XDP program too: set \
                 datapath.xdp = \"generic\""
            );
        }
    }

    /// What is not as it was made, or wanted now and not before. Who cannot is not asked at each look.
    pub(crate) fn missing_before_stack(&self, underlay: &Link) -> Option<String> {
        let mode = self.config.xdp.as_ref()?.mode;
        let works = self.hooks.is_before_stack(&underlay.name, underlay.index, mode)
            || self.without_xdp == Some(underlay.index);
        (!works).then(|| format!("{}: program {XDP_PROGRAM} is not attached", underlay.name))
    }
}

impl Hooks {
    /// Loads the program and gives it to an earlier agent's links of that mode, in place; takes other links away.
    pub(crate) fn adopt_xdp(&mut self, config: Option<&XdpConfig>) -> Answer {
        let wanted = config.map(|config| pin_prefix(config.mode));
        for name in self.xdp_pins()? {
            if wanted.is_none_or(|prefix| !name.starts_with(prefix)) {
                end(&self.pins.links().join(name))?;
            }
        }
        if wanted.is_none() {
            return Ok(());
        }
        object::load_xdp(self.xdp()?).map_err(|error| fail("load", error))?;
        for name in self.xdp_pins()? {
            let path = self.pins.links().join(name);
            let link = bpf::pinned(&path).map_err(|error| fail("adopt the link of", error))?;
            if let Err(error) = bpf::update_link(link.as_fd(), self.xdp_fd()?) {
                // Its device has gone.
                tracing::debug!(pin = %path.display(), %error, "a link before the stack is made anew");
                pins::remove(&path)?;
            }
        }
        Ok(())
    }

    /// Puts the program to work before the stack of a device, and takes it off every other one. Repeating it changes
    /// nothing.
    ///
    /// # Errors
    /// [`DatapathError::Conflict`] where somebody else's program is; [`DatapathError::Unsupported`] where the driver
    /// cannot; both say what to do.
    pub(crate) fn attach_xdp(&mut self, device: &str, ifindex: u32, mode: XdpMode) -> Answer {
        let name = format!("{}{device}", pin_prefix(mode));
        let path = self.pins.links().join(&name);
        for other in self.xdp_pins()?.iter().filter(|other| **other != name) {
            end(&self.pins.links().join(other))?;
        }
        if self.is_before_stack(device, ifindex, mode) {
            return Ok(());
        }
        // Of a device that had this name.
        end(&path)?;
        let link = bpf::create_device_link(self.xdp_fd()?, ifindex, mode.flags());
        let link = link.map_err(|error| refusal(device, mode, error))?;
        bpf::pin(link.as_fd(), &path).map_err(|error| fail("pin the link of", error))
    }

    /// Whether our present program works before the stack of a device.
    pub(crate) fn is_before_stack(&self, device: &str, ifindex: u32, mode: XdpMode) -> bool {
        let asked = || -> Option<bool> {
            let own = self.ebpf.program(XDP_PROGRAM)?.info().ok()?.id();
            let path: PathBuf = self.pins.links().join(format!("{}{device}", pin_prefix(mode)));
            let info = bpf::device_link(bpf::pinned(&path).ok()?.as_fd()).ok()?;
            Some(info.program_id == own && info.ifindex == ifindex)
        };
        asked().unwrap_or(false)
    }

    fn xdp_pins(&self) -> Result<Vec<String>, DatapathError> {
        let mut names = pins::names(&self.pins.links())?;
        names.retain(|name| is_pin(name));
        Ok(names)
    }

    fn xdp(&mut self) -> Result<&mut Xdp, DatapathError> {
        let missing = || fail("find", io::Error::from(io::ErrorKind::NotFound));
        let program = self.ebpf.program_mut(XDP_PROGRAM).ok_or_else(missing)?;
        program.try_into().map_err(|error: aya::programs::ProgramError| fail("find", error))
    }

    fn xdp_fd(&mut self) -> Result<std::os::fd::BorrowedFd<'_>, DatapathError> {
        Ok(self.xdp()?.fd().map_err(|error| fail("load", error))?.as_fd())
    }
}

/// Ends a link and takes its pin away. Without the pin alone the kernel ends it later, and a link of the other mode that is
/// made until then is refused.
fn end(path: &Path) -> Answer {
    if let Ok(link) = bpf::pinned(path)
        && let Err(error) = bpf::detach_link(link.as_fd())
    {
        // It ends with its pin.
        tracing::debug!(pin = %path.display(), %error, "a link before the stack ends later");
    }
    pins::remove(path)
}

fn refusal(device: &str, mode: XdpMode, error: io::Error) -> DatapathError {
    match (error.raw_os_error(), mode) {
        (Some(libc::EBUSY), _) => DatapathError::Conflict(format!(
            "another XDP program is on {device} (bpftool net show dev {device}): take it off, or set datapath.xdp = \"off\""
        )),
        (_, XdpMode::Native) => DatapathError::Unsupported(format!(
            "the driver of {device} does not run XDP programs, or not with its present MTU or offloads ({error}; dmesg may \
             say more): set datapath.xdp = \"generic\" or \"off\""
        )),
        (_, XdpMode::Generic) => fail(&format!("attach to {device}"), error),
    }
}

fn fail(operation: &str, source: impl std::error::Error + Send + Sync + 'static) -> DatapathError {
    DatapathError::program(XDP_PROGRAM, operation, source)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_are_told_from_those_of_others() {
        for (name, expected) in [
            ("xdp-native-eth0", true),
            ("xdp-generic-my-device", true),
            ("eth0-from_netdev", false),
            ("xdp-native-x-from_netdev", false),
            ("cgroup-sock_connect4", false),
        ] {
            assert_eq!(is_pin(name), expected, "{name}");
        }
    }

    #[test]
    fn who_cannot_is_told_what_to_do() {
        let check = |errno, mode, expected: &str| {
            let text = refusal("eth0", mode, io::Error::from_raw_os_error(errno)).to_string();
            assert!(text.contains(expected) && text.contains("eth0"), "{text}");
        };
        check(libc::EOPNOTSUPP, XdpMode::Native, "set datapath.xdp = \"generic\"");
        check(libc::EBUSY, XdpMode::Native, "bpftool net show");
        check(libc::EBUSY, XdpMode::Generic, "bpftool net show");
    }
}
