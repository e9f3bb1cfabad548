//! The XDP program: attached to the underlay's interface by a pinned link, which is adopted and replaced in place like
//! the links of classifiers.
//!
//! A program that cannot be attached is a warning: packets then take the path of the classifiers, with the same outcome,
//! except that no network is dropped.

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

/// The prefix of a pin's name; the device's name follows.
const fn pin_prefix(mode: XdpMode) -> &'static str {
    match mode {
        XdpMode::Native => "xdp-native-",
        XdpMode::Generic => "xdp-generic-",
    }
}

impl XdpMode {
    const ALL: [Self; 2] = [Self::Native, Self::Generic];

    /// The name of the hook in listings.
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

/// Whether a pinned link is that of the XDP program.
pub(crate) fn is_pin(name: &str) -> bool {
    XdpMode::ALL.iter().any(|mode| name.starts_with(pin_prefix(*mode))) && LinkPin::parse(name).is_none()
}

impl Datapath {
    /// Attaches the program to the underlay's interface, where the configuration wants it and the device can run it.
    pub(crate) fn attach_xdp_to_underlay(&mut self, underlay: &Link) {
        let Some(XdpConfig { mode, .. }) = self.config.xdp else { return };
        let device = &underlay.name;
        self.without_xdp = None;
        if let Err(error) = self.hooks.attach_xdp(device, underlay.index, mode) {
            tracing::warn!(device, error = error.chain(), "XDP is not used");
            self.without_xdp = Some(underlay.index);
        } else if mode == XdpMode::Native && underlay.kind == "veth" {
            tracing::warn!(
                device,
                "a veth loses packets that XDP sends, unless its other end runs an XDP program, too: set \
                 datapath.xdp = \"generic\""
            );
        }
    }

    /// A program that should be attached and is not. A device that cannot run the program is not reported.
    pub(crate) fn missing_xdp(&self, underlay: &Link) -> Option<String> {
        let mode = self.config.xdp.as_ref()?.mode;
        let works = self.hooks.has_xdp(&underlay.name, underlay.index, mode)
            || self.without_xdp == Some(underlay.index);
        (!works).then(|| format!("{}: program {XDP_PROGRAM} is not attached", underlay.name))
    }
}

impl Hooks {
    /// Loads the program and replaces the program of an earlier agent's links of that mode in place; removes other links.
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
                // The link's device has gone.
                tracing::debug!(pin = %path.display(), %error, "an XDP link is made anew");
                pins::remove(&path)?;
            }
        }
        Ok(())
    }

    /// Attaches the program to a device, and detaches it from every other device. Repeating it changes nothing.
    ///
    /// # Errors
    /// [`DatapathError::Conflict`] where another owner's program is attached; [`DatapathError::Unsupported`] where the driver
    /// cannot run the program; both say what to do.
    pub(crate) fn attach_xdp(&mut self, device: &str, ifindex: u32, mode: XdpMode) -> Answer {
        let name = format!("{}{device}", pin_prefix(mode));
        let path = self.pins.links().join(&name);
        for other in self.xdp_pins()?.iter().filter(|other| **other != name) {
            end(&self.pins.links().join(other))?;
        }
        if self.has_xdp(device, ifindex, mode) {
            return Ok(());
        }
        // The pin of an earlier device with this name.
        end(&path)?;
        let link = bpf::create_device_link(self.xdp_fd()?, ifindex, mode.flags());
        let link = link.map_err(|error| refusal(device, mode, error))?;
        bpf::pin(link.as_fd(), &path).map_err(|error| fail("pin the link of", error))
    }

    /// Whether our present program is attached to a device.
    pub(crate) fn has_xdp(&self, device: &str, ifindex: u32, mode: XdpMode) -> bool {
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

/// Detaches a link and removes its pin. When only the pin is removed, the kernel detaches the link later, and refuses a link
/// of the other mode until then.
fn end(path: &Path) -> Answer {
    if let Ok(link) = bpf::pinned(path)
        && let Err(error) = bpf::detach_link(link.as_fd())
    {
        // The link ends with its pin.
        tracing::debug!(pin = %path.display(), %error, "an XDP link ends later");
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
