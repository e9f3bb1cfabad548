//! Network managers, which may take over devices and routes of other programs.

use crate::{finding::Finding, gather::Machine};

const NETWORKD_FOLDER: &str = "/etc/systemd/networkd.conf.d";
/// Stops systemd-networkd from removing routes and rules of other programs.
const NETWORKD_DROP_IN: &str = "[Network]\nManageForeignRoutes=no\nManageForeignRoutingPolicyRules=no\n";
const NETWORK_MANAGER_FOLDER: &str = "/etc/NetworkManager/conf.d";
/// Makes NetworkManager ignore Warren's devices.
const NETWORK_MANAGER_DROP_IN: &str =
    "[keyfile]\nunmanaged-devices+=interface-name:warren_*;interface-name:wrn*\n";

/// systemd-networkd removes routes and rules of others when it starts or a link changes (cilium#18706,
/// flannel#1155), unless both settings are off; both are on by default (networkd.conf(5)).
pub(super) fn networkd(machine: &Machine) -> Finding {
    const CHECK: &str = "systemd-networkd";
    // The kernel truncates names of programs to 15 bytes.
    if !machine.programs.contains("systemd-network") {
        return Finding::ok(CHECK, "does not run");
    }
    let keeps = |key: &str| {
        let values = settings(&machine.networkd, "Network", key);
        let last = values.into_iter().map(|(value, _)| value).rfind(|value| !value.is_empty());
        last.is_some_and(|value| {
            ["no", "false", "off", "0", "n", "f"].contains(&&*value.to_ascii_lowercase())
        })
    };
    let open: Vec<&str> = ["ManageForeignRoutes", "ManageForeignRoutingPolicyRules"]
        .into_iter()
        .filter(|key| !keeps(key))
        .collect();
    if open.is_empty() {
        return Finding::ok(CHECK, "runs, and keeps routes and rules of others");
    }
    Finding::warn(
        CHECK,
        format!("runs, and may remove Warren's routes: {} is not off", open.join(" and ")),
        write_drop_in(NETWORKD_FOLDER, NETWORKD_DROP_IN, "systemctl restart systemd-networkd"),
    )
}

/// NetworkManager may configure any device that it is not told to ignore.
pub(super) fn network_manager(machine: &Machine) -> Finding {
    const CHECK: &str = "network-manager";
    if !machine.programs.contains("NetworkManager") {
        return Finding::ok(CHECK, "does not run");
    }
    let mut patterns = Vec::new();
    for (value, appends) in settings(&machine.network_manager, "keyfile", "unmanaged-devices") {
        if !appends {
            patterns.clear();
        }
        patterns.extend(value.split([';', ',']).filter_map(|one| one.trim().strip_prefix("interface-name:")));
    }
    let is_unmanaged = |device: &str| patterns.iter().any(|pattern| matches(pattern, device));
    // One device of each kind represents its kind.
    let managed: Vec<&str> =
        ["warren_host", "warren_vxlan", "wrn1"].into_iter().filter(|device| !is_unmanaged(device)).collect();
    if managed.is_empty() {
        return Finding::ok(CHECK, "runs, and ignores Warren's devices");
    }
    Finding::warn(
        CHECK,
        format!("runs, and manages devices such as {}", managed.join(" ")),
        write_drop_in(NETWORK_MANAGER_FOLDER, NETWORK_MANAGER_DROP_IN, "systemctl reload NetworkManager"),
    )
}

/// A shell command that writes the drop-in and reloads the configuration.
fn write_drop_in(folder: &str, text: &str, reload: &str) -> String {
    let text = text.replace('\n', "\\n");
    format!("mkdir -p {folder} && printf '{text}' > {folder}/90-warren.conf && {reload}")
}

/// Matches a pattern of `interface-name:`: `=` in front of a literal name, or `*` at the end. Other wildcards are rare, and
/// match nothing here, which at worst causes a needless warning.
fn matches(pattern: &str, device: &str) -> bool {
    match (pattern.strip_prefix('='), pattern.strip_suffix('*')) {
        (Some(literal), _) => device == literal,
        (None, Some(start)) => device.starts_with(start),
        (None, None) => device == pattern,
    }
}

/// The values of a key in a section, over all files in their order, and whether each appends (`+=`).
fn settings<'a>(files: &'a [String], section: &str, key: &str) -> Vec<(&'a str, bool)> {
    let mut values = Vec::new();
    for file in files {
        let mut inside = false;
        for line in file.lines().map(str::trim) {
            if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
                inside = name == section;
            } else if let Some((name, value)) = line.split_once('=').filter(|_| inside) {
                let (name, appends) = name.strip_suffix('+').map_or((name, false), |name| (name, true));
                if name.trim() == key {
                    values.push((value.trim(), appends));
                }
            }
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        check::expect::expect,
        finding::Verdict::{Ok, Warn},
    };

    fn machine(program: &str, files: &[&str]) -> Machine {
        let files: Vec<String> = files.iter().map(|file| (*file).to_owned()).collect();
        Machine {
            programs: [program.to_owned()].into(),
            networkd: files.clone(),
            network_manager: files,
            ..Machine::default()
        }
    }

    #[test]
    fn networkd_must_keep_routes_and_rules() {
        let check = |files: &[&str], verdict, seen, remedy| {
            expect(networkd(&machine("systemd-network", files)), verdict, seen, remedy);
        };
        let off = "[Network]\nManageForeignRoutes=no\nManageForeignRoutingPolicyRules = false\n";
        check(&[off], Ok, "keeps routes", "");
        check(&["[Network]\n#ManageForeignRoutes=yes\n", off], Ok, "keeps routes", "");
        check(&[], Warn, "ManageForeignRoutes and ManageForeignRoutingPolicyRules", "networkd.conf.d");
        check(
            &["[Network]\n#ManageForeignRoutes=no\n"],
            Warn,
            "ManageForeignRoutes and",
            "ManageForeignRoutes=no",
        );
        check(
            &[off, "[Network]\nManageForeignRoutes=yes"],
            Warn,
            ": ManageForeignRoutes is not off",
            "networkd.conf.d/90-warren.conf",
        );
        check(
            &["[Network]\nManageForeignRoutes=no"],
            Warn,
            ": ManageForeignRoutingPolicyRules is",
            "restart",
        );
        check(
            &["[DHCPv4]\nManageForeignRoutes=no\nManageForeignRoutingPolicyRules=no"],
            Warn,
            "and",
            "networkd.conf.d/90-warren.conf",
        );
        expect(networkd(&machine("systemd-udevd", &[])), Ok, "does not run", "");
    }

    #[test]
    fn network_manager_must_ignore_warrens_devices() {
        let check = |files: &[&str], verdict, seen, remedy| {
            expect(network_manager(&machine("NetworkManager", files)), verdict, seen, remedy);
        };
        let ours = "[keyfile]\nunmanaged-devices=interface-name:warren_*;interface-name:wrn*\n";
        let theirs = "[keyfile]\nunmanaged-devices=interface-name:docker0\n";
        let one = "[keyfile]\nunmanaged-devices+=interface-name:=warren_host,interface-name:warren_vxlan\n";
        check(&[ours], Ok, "ignores Warren's devices", "");
        check(&[theirs, "[keyfile]\nunmanaged-devices+=interface-name:w*"], Ok, "ignores", "");
        check(&[], Warn, "warren_host warren_vxlan wrn1", "unmanaged-devices+=interface-name:warren_*");
        check(&[ours, theirs], Warn, "warren_host warren_vxlan wrn1", "reload NetworkManager");
        check(&[theirs, one], Warn, "such as wrn1", "90-warren.conf");
        expect(network_manager(&machine("sshd", &[])), Ok, "does not run", "");
    }

    #[test]
    fn network_manager_remedies_satisfy_their_checks() {
        expect(networkd(&machine("systemd-network", &[NETWORKD_DROP_IN])), Ok, "keeps routes", "");
        expect(network_manager(&machine("NetworkManager", &[NETWORK_MANAGER_DROP_IN])), Ok, "ignores", "");
        assert_eq!(
            write_drop_in("/etc/x.d", "[A]\nb=c\n", "true"),
            r"mkdir -p /etc/x.d && printf '[A]\nb=c\n' > /etc/x.d/90-warren.conf && true"
        );
    }
}
