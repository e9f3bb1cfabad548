//! Who else has programs or filters where ours are: they may drop or redirect packets before ours see them.

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
        return Finding::ok(CHECK, format!("{} of ours, nobody else's", users.len()));
    };
    let names: Vec<String> = (others.iter())
        .map(|user| format!("{} at {} {} of {}", user.name, user.hook, user.direction, user.device))
        .collect();
    let HookUser { direction, device, .. } = first;
    let take_off = match (first.hook.as_str(), first.program_id) {
        ("tcx", Some(id)) => format!(
            "bpftool net detach tcx_{direction} id {id} dev {device}, or the end of the program that holds the link: bpftool link list"
        ),
        _ => format!(
            "tc filter show dev {device} {direction}, then: tc filter del dev {device} {direction} pref <its pref>"
        ),
    };
    Finding::warn(
        CHECK,
        format!("not ours, and may keep packets from us: {}", some(&names)),
        format!("if nobody needs it: {take_off}"),
    )
}

/// Whether services are translated where processes connect.
pub(super) fn sockets(programs: &[ProgramStatus]) -> Finding {
    const CHECK: &str = "sockets";
    let at_sockets = || programs.iter().filter(|program| program.hook == "cgroup");
    let idle: Vec<String> = at_sockets()
        .filter(|program| program.devices.is_empty())
        .map(|program| program.name.clone())
        .collect();
    match at_sockets().flat_map(|program| &program.devices).next() {
        _ if !idle.is_empty() => Finding::warn(
            CHECK,
            format!("not at work: {}; services are translated packet by packet", some(&idle)),
            "the agent's log says why: journalctl -u warrend | grep \"at the socket\"; then restart warrend",
        ),
        None => Finding::ok(CHECK, "services are translated packet by packet"),
        Some(cgroup) => {
            Finding::ok(CHECK, format!("services are translated where processes of {cgroup} connect"))
        }
    }
}

/// Whether the program before the stack works, where it is wanted.
pub(super) fn xdp(programs: &[ProgramStatus]) -> Finding {
    const CHECK: &str = "xdp";
    match programs.iter().find(|program| program.hook.starts_with(CHECK)) {
        None => Finding::ok(CHECK, "off: nothing is done before the stack"),
        Some(program) if program.devices.is_empty() => Finding::warn(
            CHECK,
            format!(
                "{}: not at work; networks of datapath.drop_cidrs are let in, all else is as it would be",
                program.hook
            ),
            "the agent's log says why and what to do: journalctl -u warrend | grep \"before the stack\"",
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
    fn programs_at_sockets_are_at_work_or_not() {
        let program = |name: &str, hook: &str, devices: &[&str]| ProgramStatus {
            name: name.to_owned(),
            hook: hook.to_owned(),
            devices: devices.iter().map(|device| (*device).to_owned()).collect(),
        };
        let packets = program("from_endpoint", "tcx", &[]);
        let works = program("sock_connect4", "cgroup", &["/sys/fs/cgroup"]);
        let idle = program("sock_recvmsg4", "cgroup", &[]);
        expect(sockets(std::slice::from_ref(&packets)), Ok, "packet by packet", "");
        expect(sockets(&[packets.clone(), works.clone()]), Ok, "/sys/fs/cgroup connect", "");
        expect(sockets(&[packets, works, idle]), Warn, "not at work: sock_recvmsg4", "journalctl");
    }

    #[test]
    fn the_program_before_the_stack_is_at_work_or_not() {
        let program = |devices: &[&str]| ProgramStatus {
            name: "xdp_entry".to_owned(),
            hook: "xdp native".to_owned(),
            devices: devices.iter().map(|device| (*device).to_owned()).collect(),
        };
        expect(xdp(&[]), Ok, "off", "");
        expect(xdp(&[program(&["eth0"])]), Ok, "xdp native on eth0", "");
        expect(xdp(&[program(&[])]), Warn, "not at work", "journalctl");
    }

    #[test]
    fn others_are_told_from_ours() {
        let check = |users: &[HookUser], verdict, seen, remedy| {
            expect(hooks(&Result::Ok(users.to_vec())), verdict, seen, remedy);
        };
        let ours = user("tcx", "from_endpoint", "wrn1", true);
        check(&[], Ok, "0 of ours", "");
        check(std::slice::from_ref(&ours), Ok, "1 of ours, nobody else's", "");
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
