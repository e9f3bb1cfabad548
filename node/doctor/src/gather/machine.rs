//! Files of the machine, as texts. `/proc/net` and `/proc/sys/net` belong to the network namespace of the caller, which must be
//! the agent's. `/sys/class/net` is not used, as it belongs to the mount namespace.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

/// Folders of a program's configuration, later ones over earlier ones, as systemd.unit(5) and
/// NetworkManager.conf(5) order them.
const CONFIG_ROOTS: [&str; 3] = ["usr/lib", "run", "etc"];

/// A machine's files; `None` if a file is missing or cannot be read.
#[derive(Debug, Default)]
pub(crate) struct Machine {
    /// `/proc/sys/kernel/osrelease`
    pub(crate) kernel_release: Option<String>,
    /// `/proc/self/status`
    pub(crate) process_status: Option<String>,
    /// Whether `/sys/kernel/btf/vmlinux` exists.
    pub(crate) btf: bool,
    /// `/proc/mounts`
    pub(crate) mounts: Option<String>,
    /// `/proc/filesystems`
    pub(crate) file_systems: Option<String>,
    /// `/proc/sys/net/core/bpf_jit_enable`, which exists only in the initial network namespace
    pub(crate) jit: Option<String>,
    /// `/sys/kernel/security/lockdown`
    pub(crate) lockdown: Option<String>,
    /// `/sys/kernel/security/lsm`
    pub(crate) security_modules: Option<String>,
    /// `/sys/fs/selinux/enforce`
    pub(crate) selinux_enforce: Option<String>,
    /// `/proc/sys/net/ipv4/ip_forward`
    pub(crate) ip_forward: Option<String>,
    /// `rp_filter` by device, including `all` and `default`
    pub(crate) rp_filter: BTreeMap<String, String>,
    /// `/proc/net/dev`
    pub(crate) devices: Option<String>,
    /// `/proc/net/udp` and `/proc/net/udp6`
    pub(crate) udp: Vec<String>,
    /// Names of running programs, truncated by the kernel to 15 bytes.
    pub(crate) programs: BTreeSet<String>,
    /// systemd-networkd's configuration, in the order of effect.
    pub(crate) networkd: Vec<String>,
    /// NetworkManager's configuration, in the order of effect.
    pub(crate) network_manager: Vec<String>,
}

/// Reads all files. `root` is `/`, except in tests.
pub(crate) fn machine(root: &Path) -> Machine {
    let text = |path: &str| fs::read_to_string(root.join(path)).ok();
    Machine {
        kernel_release: text("proc/sys/kernel/osrelease"),
        process_status: text("proc/self/status"),
        btf: root.join("sys/kernel/btf/vmlinux").exists(),
        mounts: text("proc/mounts"),
        file_systems: text("proc/filesystems"),
        jit: text("proc/sys/net/core/bpf_jit_enable"),
        lockdown: text("sys/kernel/security/lockdown"),
        security_modules: text("sys/kernel/security/lsm"),
        selinux_enforce: text("sys/fs/selinux/enforce"),
        ip_forward: text("proc/sys/net/ipv4/ip_forward"),
        rp_filter: (names(&root.join("proc/sys/net/ipv4/conf")).into_iter())
            .filter_map(|name| {
                let value = text(&format!("proc/sys/net/ipv4/conf/{name}/rp_filter"))?;
                Some((name, value))
            })
            .collect(),
        devices: text("proc/net/dev"),
        udp: ["proc/net/udp", "proc/net/udp6"].into_iter().filter_map(text).collect(),
        programs: (names(&root.join("proc")).into_iter())
            .filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
            .filter_map(|process| Some(text(&format!("proc/{process}/comm"))?.trim_end().to_owned()))
            .collect(),
        networkd: configuration(root, "systemd/networkd.conf", "systemd/networkd.conf.d"),
        network_manager: configuration(root, "NetworkManager/NetworkManager.conf", "NetworkManager/conf.d"),
    }
}

/// The main file of the last folder that has one, then the drop-ins by name. A drop-in hides those of the same name in
/// earlier folders.
fn configuration(root: &Path, main: &str, drop_ins: &str) -> Vec<String> {
    let read = |path: &Path| fs::read_to_string(path).ok();
    let main = CONFIG_ROOTS.iter().rev().find_map(|folder| read(&root.join(folder).join(main)));
    let mut by_name = BTreeMap::new();
    for folder in CONFIG_ROOTS {
        let folder = root.join(folder).join(drop_ins);
        for name in names(&folder).into_iter().filter(|name| name.ends_with(".conf")) {
            let path = folder.join(&name);
            by_name.insert(name, path);
        }
    }
    main.into_iter().chain(by_name.values().filter_map(|path| read(path))).collect()
}

/// The names of a folder's entries; none if the folder cannot be read.
fn names(folder: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn machine_files_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        write(root, "proc/sys/kernel/osrelease", "6.1.0\n");
        write(root, "proc/sys/net/ipv4/conf/all/rp_filter", "1\n");
        write(root, "proc/sys/net/ipv4/conf/wrn1/rp_filter", "0\n");
        write(root, "proc/17/comm", "systemd-network\n");
        write(root, "proc/net/udp6", "six");
        write(root, "sys/kernel/btf/vmlinux", "");
        let found = machine(root);
        assert_eq!(found.kernel_release.as_deref(), Some("6.1.0\n"));
        let devices: Vec<_> = found.rp_filter.iter().map(|(name, value)| (&**name, &**value)).collect();
        assert_eq!(devices, [("all", "1\n"), ("wrn1", "0\n")]);
        assert_eq!(found.programs, BTreeSet::from(["systemd-network".to_owned()]));
        assert_eq!(found.udp, ["six"]);
        assert!(found.btf && found.lockdown.is_none());
    }

    #[test]
    fn machine_drop_ins_follow_the_main_file_and_hide_their_namesakes() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        write(root, "usr/lib/systemd/networkd.conf", "shipped");
        write(root, "etc/systemd/networkd.conf", "main");
        write(root, "usr/lib/systemd/networkd.conf.d/20-a.conf", "hidden");
        write(root, "etc/systemd/networkd.conf.d/20-a.conf", "second");
        write(root, "run/systemd/networkd.conf.d/10-b.conf", "first");
        write(root, "etc/systemd/networkd.conf.d/README", "no configuration");
        assert_eq!(machine(root).networkd, ["main", "first", "second"]);
    }

    #[test]
    fn machine_of_the_test_is_read() {
        let here = machine(Path::new("/"));
        assert!(here.kernel_release.is_some() && here.process_status.is_some() && here.mounts.is_some());
        assert!(here.devices.is_some_and(|devices| devices.contains("lo:")));
        assert!(!here.programs.is_empty() && here.rp_filter.contains_key("all"));
    }
}
