//! The checks: pure functions from facts to findings. They do no I/O.

mod agent;
mod etcd;
mod hooks;
mod kernel;
mod managers;
mod network;
mod peers;
mod security;
mod text;

pub use agent::FULL_MAP_PERCENT;

use crate::{
    finding::Finding,
    gather::{Agent, Clock, Machine, tunnels},
};

/// All checks: those of the machine, then those of the agent. `tunnel_port` is used if no agent reports the fleet's.
pub(crate) fn all(machine: &Machine, clock: Option<Clock>, agent: &Agent, tunnel_port: u16) -> Vec<Finding> {
    let base = match agent {
        Agent::Answers(answers) => answers.base.as_ref().ok().and_then(Option::as_ref),
        _ => None,
    };
    let tunnel_port = base.map_or(tunnel_port, |base| base.tunnel_port);
    let tunnel = base.is_none_or(tunnels);
    let mut findings = vec![
        kernel::version(machine),
        security::privileges(machine),
        kernel::btf(machine),
        kernel::bpffs(machine),
        kernel::cgroup2(machine),
        kernel::jit(machine),
        security::lockdown(machine),
        security::modules(machine),
        network::ip_forward(machine),
        network::rp_filter(machine),
        network::tunnel_port(machine, tunnel_port, tunnel),
        network::devices(machine, tunnel),
        managers::networkd(machine),
        managers::network_manager(machine),
        kernel::clock(clock),
    ];
    findings.extend(agent::all(agent));
    findings
}

/// Expectations on findings, for the tests of the checks.
#[cfg(test)]
pub(crate) mod expect {
    use crate::finding::{Finding, Verdict};

    /// Checks the verdict, a part of the observation, and a part of the remedy (empty: no remedy).
    #[track_caller]
    pub(crate) fn expect(finding: Finding, verdict: Verdict, seen: &str, remedy: &str) {
        assert_eq!(finding.verdict, verdict, "{finding:?}");
        assert!(finding.seen.contains(seen), "{seen:?} is not in {finding:?}");
        assert!(!finding.seen.contains('\n'), "more than a line: {finding:?}");
        match &finding.remedy {
            None => assert!(verdict == Verdict::Ok && remedy.is_empty(), "{finding:?}"),
            Some(text) => {
                assert!(verdict != Verdict::Ok && !text.contains('\n'), "{finding:?}");
                assert!(!remedy.is_empty() && text.contains(remedy), "{remedy:?} is not in {finding:?}");
            }
        }
    }
}
