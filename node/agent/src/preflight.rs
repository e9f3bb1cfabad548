//! What the agent needs of its environment, checked before anything is changed.

use std::{fs, path::Path};

use nix::unistd::Uid;
use node_api::Capability;

/// Everything that is missing, each as a text with what to do.
pub fn missing() -> Vec<String> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    judge(Uid::effective().is_root(), &status, Path::new("/sys/kernel/btf/vmlinux").exists())
}

fn judge(root: bool, status: &str, btf: bool) -> Vec<String> {
    let mut missing = Vec::new();
    if !root {
        missing.push("warrend must run as root: start it through its systemd unit, or with sudo".to_owned());
    } else if let Some(effective) = effective_capabilities(status) {
        missing.extend(Capability::missing(effective).map(|Capability { name, purpose, .. }| {
            format!("{name} is missing (for {purpose}): give it to the container or unit")
        }));
    }
    if !btf {
        missing.push(
            "/sys/kernel/btf/vmlinux is missing: use a kernel with CONFIG_DEBUG_INFO_BTF, as all of Debian's since 11"
                .to_owned(),
        );
    }
    missing
}

fn effective_capabilities(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn preflight_names_everything_missing_with_what_to_do() {
        let check = |root: bool, capabilities: u64, btf: bool, expected: &[&str]| {
            let missing = judge(root, &format!("Name:\twarrend\nCapEff:\t{capabilities:016x}\n"), btf);
            assert_eq!(missing.len(), expected.len(), "{missing:?}");
            for (text, word) in missing.iter().zip(expected) {
                assert!(text.contains(word), "{text}");
            }
        };
        check(true, u64::MAX, true, &[]);
        check(false, 0, true, &["as root"]);
        check(true, !(1 << 12), true, &["CAP_NET_ADMIN"]);
        check(true, 0, false, &["CAP_NET_ADMIN", "CAP_SYS_ADMIN", "CAP_BPF", "CONFIG_DEBUG_INFO_BTF"]);
    }

    #[test]
    fn preflight_capabilities_are_those_that_the_unit_grants() {
        let unit = include_str!("../../../deploy/warrend.service");
        let granted = unit.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet=")).unwrap();
        for Capability { name, .. } in node_api::CAPABILITIES {
            assert!(granted.split(' ').any(|capability| capability == name), "{name}");
        }
    }
}
