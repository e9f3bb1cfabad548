//! What is added in one place is added in all: the checks of `docs/CONTRIBUTING.md` that no compiler and no other test makes.

use datapath_abi::DropReason;
use deploy_xtask::{unmentioned, variants};

/// Drop reasons that no packet test provokes, and why.
const NOT_PROVOKED: [(&str, &str); 1] =
    [("FlowTableFull", "an LRU table takes every entry, unless the kernel has no memory")];

#[test]
fn drop_reasons_are_raised_by_a_program_and_provoked_by_a_packet_test() {
    let reasons: Vec<String> = DropReason::ALL.iter().map(|reason| format!("{reason:?}")).collect();
    assert_eq!(unmentioned("DropReason", &reasons, "datapath/ebpf/src"), [""; 0], "no program raises them");
    let expected: Vec<&str> = NOT_PROVOKED.iter().map(|(reason, _)| *reason).collect();
    assert_eq!(
        unmentioned("DropReason", &reasons, "datapath/linux/tests"),
        expected,
        "no test provokes them"
    );
}

/// Events that are neither fuzzed nor simulated, and why.
const ONLY_IN_THE_LAB: [(&str, &str); 1] = [(
    "ExternallyModified",
    "only the lab modifies a kernel from outside; a further draw would change what the inputs in chaos/fuzz/corpora/handle mean",
)];

#[test]
fn core_events_are_sent_by_the_agent_fuzzed_and_simulated() {
    let events = variants("node/core/src", "Event");
    assert_eq!(unmentioned("Event", &events, "node/agent/src"), [""; 0], "the agent never sends them");
    let expected: Vec<&str> = ONLY_IN_THE_LAB.iter().map(|(event, _)| *event).collect();
    assert_eq!(unmentioned("Event", &events, "chaos/fuzz/src"), expected, "they are not fuzzed");
    assert_eq!(unmentioned("Event", &events, "chaos/sim/src"), expected, "they are not simulated");
}

#[test]
fn core_commands_are_carried_out_by_the_agent_and_simulated() {
    let commands = variants("node/core/src", "Command");
    assert_eq!(unmentioned("Command", &commands, "node/agent/src"), [""; 0], "the agent ignores them");
    assert_eq!(unmentioned("Command", &commands, "chaos/sim/src"), [""; 0], "they are not simulated");
}

#[test]
fn core_calls_have_a_path_of_the_api_and_are_fuzzed() {
    let calls = variants("node/core/src", "Call");
    assert_eq!(unmentioned("Call", &calls, "node/agent/src/http"), [""; 0], "no request leads to them");
    assert_eq!(unmentioned("Call", &calls, "chaos/fuzz/src"), [""; 0], "they are not fuzzed");
}

#[test]
fn etcd_keys_are_parsed_by_a_test_and_handled_by_the_view() {
    let keys = variants("kvstore/schema/src", "ParsedKey");
    assert_eq!(unmentioned("ParsedKey", &keys, "kvstore/schema/tests"), [""; 0], "no test parses them");
    assert_eq!(unmentioned("ParsedKey", &keys, "kvstore/claims/src"), [""; 0], "the view ignores them");
}

#[test]
fn planted_bugs_are_in_the_list_that_the_checkers_must_find() {
    for (folder, lists) in
        [("kvstore/claims/tests", "kvstore/claims/tests"), ("chaos/sim/src", "chaos/sim/src")]
    {
        let bugs = variants(folder, "Bug");
        // The switch itself says `Self::`, so that `Bug::` stands in the list alone.
        assert_eq!(unmentioned("Bug", &bugs, lists), [""; 0], "{folder}: nothing looks for them");
    }
}
