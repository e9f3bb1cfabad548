//! The kernel: version, mounts, JIT compiler, clock.

use crate::{
    finding::Finding,
    gather::{Clock, Machine},
};

/// The oldest supported kernel, the first with `bpf_ktime_get_coarse_ns`.
const OLDEST: (u32, u32) = (5, 11);
/// The first kernel with TCX, whose pinned links replace programs without a gap.
const TCX: (u32, u32) = (6, 6);

pub(super) fn version(machine: &Machine) -> Finding {
    const CHECK: &str = "kernel";
    let Some(release) = machine.kernel_release.as_deref().map(str::trim) else {
        return Finding::unknown(
            CHECK,
            "/proc/sys/kernel/osrelease cannot be read",
            "mount -t proc proc /proc",
        );
    };
    match major_minor(release) {
        None => Finding::unknown(CHECK, format!("{release}: not a version"), "uname -r"),
        Some(version) if version < OLDEST => Finding::fail(
            CHECK,
            format!("{release}: the programs need {}.{} or newer", OLDEST.0, OLDEST.1),
            "install a newer kernel and boot it (Debian 11: apt-get install -t bullseye-backports linux-image-amd64)",
        ),
        Some(version) if version < TCX => {
            Finding::ok(CHECK, format!("{release}: programs attach by clsact (TCX from {}.{})", TCX.0, TCX.1))
        }
        Some(_) => Finding::ok(CHECK, format!("{release}: programs attach by TCX")),
    }
}

/// `6.1.0-28-amd64` is (6, 1).
fn major_minor(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|byte: char| !byte.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

pub(super) fn btf(machine: &Machine) -> Finding {
    const CHECK: &str = "btf";
    if machine.btf {
        return Finding::ok(CHECK, "/sys/kernel/btf/vmlinux exists");
    }
    Finding::fail(
        CHECK,
        "/sys/kernel/btf/vmlinux is missing: warrend does not start without it",
        "use a kernel with CONFIG_DEBUG_INFO_BTF=y, as Debian has since 11: grep BTF /boot/config-$(uname -r)",
    )
}

pub(super) fn bpffs(machine: &Machine) -> Finding {
    const CHECK: &str = "bpffs";
    match mounted(machine, "bpf") {
        None => no_mounts(CHECK),
        Some(places) if places.is_empty() => Finding::warn(
            CHECK,
            "no BPF file system is mounted; warrend mounts one when it starts",
            "mount -t bpf bpf /sys/fs/bpf",
        ),
        Some(places) => Finding::ok(CHECK, format!("mounted at {}", places.join(" "))),
    }
}

pub(super) fn cgroup2(machine: &Machine) -> Finding {
    const CHECK: &str = "cgroup2";
    match mounted(machine, "cgroup2") {
        None => no_mounts(CHECK),
        Some(places) if places.is_empty() => Finding::warn(
            CHECK,
            "no cgroup2 is mounted: services are translated per packet, not at sockets",
            "boot with systemd.unified_cgroup_hierarchy=1, or: mkdir -p /run/warren/cgroup && mount -t cgroup2 none /run/warren/cgroup",
        ),
        Some(places) => Finding::ok(CHECK, format!("mounted at {}", places.join(" "))),
    }
}

/// The mount points of a type of file system; `None` if `/proc/mounts` cannot be read.
pub(super) fn mounted<'a>(machine: &'a Machine, file_system: &str) -> Option<Vec<&'a str>> {
    let mut places = Vec::new();
    for line in machine.mounts.as_ref()?.lines() {
        let mut words = line.split(' ');
        if let (Some(_), Some(place), Some(kind)) = (words.next(), words.next(), words.next())
            && kind == file_system
        {
            places.push(place);
        }
    }
    Some(places)
}

fn no_mounts(check: &'static str) -> Finding {
    Finding::unknown(check, "/proc/mounts cannot be read", "mount -t proc proc /proc")
}

pub(super) fn jit(machine: &Machine) -> Finding {
    const CHECK: &str = "bpf-jit";
    match machine.jit.as_deref().map(str::trim) {
        None => Finding::unknown(
            CHECK,
            "only visible in the initial network namespace",
            "nsenter --target 1 --net sysctl net.core.bpf_jit_enable",
        ),
        Some("0") => Finding::warn(
            CHECK,
            "off: programs are interpreted, several times slower",
            "sysctl -w net.core.bpf_jit_enable=1; echo net.core.bpf_jit_enable=1 > /etc/sysctl.d/90-warren-jit.conf",
        ),
        Some("2") => Finding::warn(
            CHECK,
            "on, and prints every program to the kernel log: for debugging only",
            "sysctl -w net.core.bpf_jit_enable=1",
        ),
        Some(_) => Finding::ok(CHECK, "on"),
    }
}

pub(super) fn clock(clock: Option<Clock>) -> Finding {
    const CHECK: &str = "clock";
    let Some(clock) = clock else {
        return Finding::unknown(CHECK, "adjtimex failed", "timedatectl timesync-status");
    };
    let error_ms = clock.max_error_us / 1_000;
    if clock.synchronised {
        return Finding::ok(CHECK, format!("synchronised, at most {error_ms} ms off"));
    }
    Finding::warn(
        CHECK,
        "not synchronised: times of events and logs drift apart between nodes",
        "timedatectl set-ntp true, or: apt-get install chrony",
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
    fn kernel_version_suffices_or_not() {
        let check = |release: Option<&str>, verdict, seen, remedy| {
            let kernel_release = release.map(str::to_owned);
            expect(version(&Machine { kernel_release, ..Machine::default() }), verdict, seen, remedy);
        };
        check(Some("6.18.44-fc-v657\n"), Ok, "6.18.44-fc-v657: programs attach by TCX", "");
        check(Some("6.6.0"), Ok, "TCX", "");
        check(Some("6.1.0-28-cloud-amd64"), Ok, "clsact", "");
        check(Some("5.11"), Ok, "clsact", "");
        check(Some("5.10.0-33-amd64\n"), Fail, "5.10.0-33-amd64: the programs need 5.11", "apt-get install");
        check(Some("4.19.0"), Fail, "5.11", "newer kernel");
        check(Some("next"), Unknown, "next", "uname -r");
        check(None, Unknown, "osrelease", "mount");
    }

    #[test]
    fn kernel_mounts() {
        let machine =
            |mounts: Option<&str>| Machine { mounts: mounts.map(str::to_owned), ..Machine::default() };
        let here = "bpf /sys/fs/bpf bpf rw 0 0\ncgroup /sys/fs/cgroup/cpu cgroup rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n";
        let none = "bpf /mnt/cgroup2 ext4 rw 0 0\n";
        for (mounts, verdict, seen, remedy) in [
            (Some(here), Ok, "/sys/fs/bpf", ""),
            (Some(none), Warn, "no BPF file system", "mount -t bpf bpf /sys/fs/bpf"),
            (None, Unknown, "/proc/mounts", "mount -t proc"),
        ] {
            expect(bpffs(&machine(mounts)), verdict, seen, remedy);
        }
        for (mounts, verdict, seen, remedy) in [
            (Some(here), Ok, "mounted at /sys/fs/cgroup", ""),
            (Some(none), Warn, "no cgroup2", "mount -t cgroup2"),
            (None, Unknown, "/proc/mounts", "mount -t proc"),
        ] {
            expect(cgroup2(&machine(mounts)), verdict, seen, remedy);
        }
    }

    #[test]
    fn kernel_jit_and_btf() {
        for (jit_text, verdict, seen, remedy) in [
            (Some("1\n"), Ok, "on", ""),
            (Some("2\n"), Warn, "log", "bpf_jit_enable=1"),
            (Some("0\n"), Warn, "off", "bpf_jit_enable=1"),
            (None, Unknown, "initial network namespace", "nsenter"),
        ] {
            let machine = Machine { jit: jit_text.map(str::to_owned), ..Machine::default() };
            expect(jit(&machine), verdict, seen, remedy);
        }
        expect(btf(&Machine { btf: true, ..Machine::default() }), Ok, "exists", "");
        expect(btf(&Machine::default()), Fail, "does not start without", "CONFIG_DEBUG_INFO_BTF");
    }

    #[test]
    fn clock_synchronisation() {
        let at = |synchronised| Some(Clock { synchronised, max_error_us: 12_345 });
        expect(super::clock(at(true)), Ok, "at most 12 ms", "");
        expect(super::clock(at(false)), Warn, "drift", "timedatectl set-ntp true");
        expect(super::clock(None), Unknown, "adjtimex", "timedatectl");
    }
}
