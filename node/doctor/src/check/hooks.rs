//! Programs and filters of others at the same hooks: they may drop or redirect packets before Warren's programs see them.

use node_api::{HookUser, ProgramStatus};

use super::text::some;
use crate::finding::Finding;

pub(super) fn hooks(users: &Result<Vec<HookUser>, String>) -> Finding {
    const CHECK: &str = "hooks";
    let users = match users {
        Err(error) => return Finding::unknown(CHECK, error, "bpftool net show"),
        Ok(users) => users,
    };
    let others: Vec<&HookUser> = users.iter().filter(|user| !user.ours).collect();
    let Some(first) = others.first() else {
        return Finding::ok(CHECK, format!("{} of Warren's programs, no others", users.len()));
    };
    let names: Vec<String> = (others.iter())
        .map(|user| format!("{} at {} {} of {}", user.name, user.hook, user.direction, user.device))
        .collect();
    let HookUser { direction, device, .. } = first;
    let detach = match (first.hook.as_str(), first.program_id) {
        ("tcx", Some(id)) => format!(
            "bpftool net detach tcx_{direction} id {id} dev {device}, or end the program that holds the link: bpftool link list"
        ),
        _ => format!(
            "tc filter show dev {device} {direction}, then: tc filter del dev {device} {direction} pref <its pref>"
        ),
    };
    Finding::warn(
        CHECK,
        format!("not Warren's, and may take packets first: {}", some(&names)),
        format!("if it is not needed: {detach}"),
    )
}

/// Whether services are translated at sockets.
pub(super) fn sockets(programs: &[ProgramStatus]) -> Finding {
    const CHECK: &str = "sockets";
    let of_sockets = || programs.iter().filter(|program| program.hook == "cgroup");
    let idle: Vec<String> = of_sockets()
        .filter(|program| program.devices.is_empty())
        .map(|program| program.name.clone())
        .collect();
    match of_sockets().flat_map(|program| &program.devices).next() {
        _ if !idle.is_empty() => Finding::warn(
            CHECK,
            format!("not attached: {}; services are translated per packet", some(&idle)),
            "the agent's log says why: journalctl -u warrend | grep socket; then restart warrend",
        ),
        None => Finding::ok(CHECK, "services are translated per packet"),
        Some(cgroup) => {
            Finding::ok(CHECK, format!("services are translated at sockets of processes in {cgroup}"))
        }
    }
}

/// Whether the XDP program is attached, if it is configured.
pub(super) fn xdp(programs: &[ProgramStatus]) -> Finding {
    const CHECK: &str = "xdp";
    match programs.iter().find(|program| program.hook.starts_with(CHECK)) {
        None => Finding::ok(CHECK, "off: no XDP program"),
        Some(program) if program.devices.is_empty() => Finding::warn(
            CHECK,
            format!(
                "{}: not attached; packets from datapath.drop_cidrs are not dropped, and all others take the slower path",
                program.hook
            ),
            "the agent's log has the reason and the remedy: journalctl -u warrend | grep -i xdp",
        ),
        Some(program) => Finding::ok(CHECK, format!("{} on {}", program.hook, some(&program.devices))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        check::expect::expect,
        finding::Verdict::{Ok, Unknown, Warn},
    };

    fn user(hook: &str, name: &str, device: &str, ours: bool) -> HookUser {
        HookUser {
            device: device.to_owned(),
            direction: "ingress".to_owned(),
            hook: hook.to_owned(),
            name: name.to_owned(),
            program_id: (name != "matchall").then_some(17),
            ours,
        }
    }

    #[test]
    fn socket_programs_are_attached_or_not() {
        let program = |name: &str, hook: &str, devices: &[&str]| ProgramStatus {
            name: name.to_owned(),
            hook: hook.to_owned(),
            devices: devices.iter().map(|device| (*device).to_owned()).collect(),
        };
        let packets = program("from_endpoint", "tcx", &[]);
        let works = program("sock_connect4", "cgroup", &["/sys/fs/cgroup"]);
        let idle = program("sock_recvmsg4", "cgroup", &[]);
        expect(sockets(std::slice::from_ref(&packets)), Ok, "per packet", "");
        expect(sockets(&[packets.clone(), works.clone()]), Ok, "processes in /sys/fs/cgroup", "");
        expect(sockets(&[packets, works, idle]), Warn, "not attached: sock_recvmsg4", "journalctl");
    }

    #[test]
    fn xdp_program_is_attached_or_not() {
        let program = |devices: &[&str]| ProgramStatus {
            name: "xdp_entry".to_owned(),
            hook: "xdp native".to_owned(),
            devices: devices.iter().map(|device| (*device).to_owned()).collect(),
        };
        expect(xdp(&[]), Ok, "off", "");
        expect(xdp(&[program(&["eth0"])]), Ok, "xdp native on eth0", "");
        expect(xdp(&[program(&[])]), Warn, "not attached", "journalctl");
    }

    #[test]
    fn hooks_of_others_are_reported() {
        let check = |users: &[HookUser], verdict, seen, remedy| {
            expect(hooks(&Result::Ok(users.to_vec())), verdict, seen, remedy);
        };
        let ours = user("tcx", "from_endpoint", "wrn1", true);
        check(&[], Ok, "0 of Warren's", "");
        check(std::slice::from_ref(&ours), Ok, "1 of Warren's programs, no others", "");
        check(
            &[user("tcx", "cil_from_netdev", "eth0", false), ours.clone()],
            Warn,
            "cil_from_netdev at tcx ingress of eth0",
            "bpftool net detach tcx_ingress id 17 dev eth0",
        );
        check(
            &[ours, user("tc", "matchall", "wrn1", false)],
            Warn,
            "matchall at tc ingress of wrn1",
            "tc filter del dev wrn1 ingress",
        );
        expect(hooks(&Err("broke".to_owned())), Unknown, "broke", "bpftool net show");
    }
}
