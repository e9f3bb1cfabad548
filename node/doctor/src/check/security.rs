//! Privileges of the process, and restrictions by security modules.

use node_api::Capability;

use super::kernel::mounted;
use crate::{finding::Finding, gather::Machine};

/// The privileges of this process stand for those of an agent started from the same place: a container that lacks a
/// capability lacks it for both.
pub(super) fn privileges(machine: &Machine) -> Finding {
    const CHECK: &str = "privileges";
    let field = |name: &str| {
        let line = machine.process_status.as_ref()?.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().nth(usize::from(name == "Uid:"))
    };
    let capabilities = field("CapEff:").and_then(|text| u64::from_str_radix(text, 16).ok());
    let (Some(user), Some(capabilities)) = (field("Uid:"), capabilities) else {
        return Finding::unknown(CHECK, "/proc/self/status cannot be read", "mount -t proc proc /proc");
    };
    if user != "0" {
        return Finding::unknown(CHECK, format!("running as user {user}, not as root"), "sudo warren doctor");
    }
    let missing: Vec<String> = Capability::missing(capabilities)
        .map(|Capability { name, purpose, .. }| format!("{name} ({purpose})"))
        .collect();
    if missing.is_empty() {
        return Finding::ok(CHECK, "root, with all capabilities that the agent needs");
    }
    Finding::fail(
        CHECK,
        format!("root without {}", missing.join(", ")),
        "add them to the container (docker run --cap-add=BPF --cap-add=NET_ADMIN --cap-add=SYS_ADMIN) or to the unit (CapabilityBoundingSet=)",
    )
}

pub(super) fn lockdown(machine: &Machine) -> Finding {
    const CHECK: &str = "lockdown";
    let Some(text) = machine.lockdown.as_deref() else {
        return without_file(machine, CHECK, "not built into this kernel");
    };
    let mode = text.split(['[', ']']).nth(1).unwrap_or_else(|| text.trim());
    if mode != "confidentiality" {
        return Finding::ok(CHECK, format!("{mode}: no restriction"));
    }
    Finding::warn(
        CHECK,
        "confidentiality: the kernel restricts BPF, and some distributions forbid it",
        "if warrend logs `Operation not permitted` for bpf: boot without lockdown=confidentiality, or with lockdown=integrity",
    )
}

pub(super) fn modules(machine: &Machine) -> Finding {
    const CHECK: &str = "security-modules";
    let Some(text) = machine.security_modules.as_deref() else {
        return without_file(machine, CHECK, "none in this kernel");
    };
    let active = text.trim();
    if machine.selinux_enforce.as_deref().map(str::trim) == Some("1") {
        return Finding::warn(
            CHECK,
            format!("{active}; SELinux is enforcing, and may deny warrend bpf and namespaces"),
            "ps -eZ | grep warrend; ausearch -m avc -c warrend; run it unconfined: semanage permissive -a <its domain>",
        );
    }
    Finding::ok(CHECK, format!("{active}: no restriction"))
}

/// A file of securityfs is missing because the kernel lacks the feature, or because securityfs is not mounted.
fn without_file(machine: &Machine, check: &'static str, absent: &str) -> Finding {
    let is_mounted = mounted(machine, "securityfs").is_some_and(|places| !places.is_empty());
    let is_supported = machine
        .file_systems
        .as_ref()
        .is_none_or(|text| text.split_whitespace().any(|word| word == "securityfs"));
    if is_mounted || !is_supported {
        return Finding::ok(check, absent);
    }
    Finding::unknown(
        check,
        "securityfs is not mounted",
        "mount -t securityfs securityfs /sys/kernel/security && warren doctor",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        check::expect::expect,
        finding::Verdict::{Fail, Ok, Unknown, Warn},
    };

    #[test]
    fn privileges_need_root_and_every_capability() {
        let check = |user: u32, capabilities: u64, verdict, seen, remedy| {
            let status = format!("Name:\twarren\nUid:\t1000\t{user}\t0\t0\nCapEff:\t{capabilities:016x}\n");
            let machine = Machine { process_status: Some(status), ..Machine::default() };
            expect(privileges(&machine), verdict, seen, remedy);
        };
        check(0, u64::MAX, Ok, "root", "");
        check(1000, 0, Unknown, "user 1000", "sudo warren doctor");
        check(0, !(1 << 12), Fail, "without CAP_NET_ADMIN (devices and routes)", "--cap-add=NET_ADMIN");
        check(
            0,
            !(1 << 39 | 1 << 21),
            Fail,
            "CAP_SYS_ADMIN (network namespaces of endpoints and pinned objects), CAP_BPF",
            "cap-add",
        );
        expect(privileges(&Machine::default()), Unknown, "/proc/self/status", "mount");
    }

    #[test]
    fn lockdown_restricts_or_not() {
        let with = |text: &str| Machine { lockdown: Some(text.to_owned()), ..Machine::default() };
        expect(lockdown(&with("[none] integrity confidentiality\n")), Ok, "none", "");
        expect(lockdown(&with("none [integrity] confidentiality\n")), Ok, "integrity", "");
        expect(lockdown(&with("none integrity [confidentiality]\n")), Warn, "restricts BPF", "boot without");
    }

    #[test]
    fn securityfs_is_missing_or_not_mounted() {
        let check = |mounts: &str, file_systems: &str, verdict, seen, remedy| {
            let machine = Machine {
                mounts: Some(mounts.to_owned()),
                file_systems: Some(file_systems.to_owned()),
                ..Machine::default()
            };
            expect(lockdown(&machine), verdict, seen, remedy);
        };
        let here = "securityfs /sys/kernel/security securityfs rw 0 0\n";
        check(here, "nodev\tsecurityfs\n", Ok, "not built", "");
        check("", "nodev\tproc\n", Ok, "not built", "");
        check("", "nodev\tsecurityfs\n", Unknown, "not mounted", "mount -t securityfs");
        expect(modules(&Machine::default()), Unknown, "not mounted", "mount -t securityfs");
    }

    #[test]
    fn selinux_restricts_if_enforcing() {
        let check = |enforce: Option<&str>, verdict, seen, remedy| {
            let machine = Machine {
                security_modules: Some("lockdown,capability,selinux,bpf".to_owned()),
                selinux_enforce: enforce.map(str::to_owned),
                ..Machine::default()
            };
            expect(modules(&machine), verdict, seen, remedy);
        };
        check(Some("1"), Warn, "SELinux is enforcing", "ausearch");
        check(Some("0"), Ok, "lockdown,capability,selinux,bpf", "");
        check(None, Ok, "no restriction", "");
    }
}
