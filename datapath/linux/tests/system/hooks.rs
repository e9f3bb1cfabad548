//! Programs at the hooks of our devices: ours, and foreign ones.

use aya::{
    Ebpf,
    programs::{SchedClassifier, TcAttachType},
};
use datapath_linux::HookUser;

use crate::stage::{Namespace, Stage, must, node_with_endpoint};

/// Programs that only tests load: `datapath/ebpf/src/test.rs`.
static TEST_OBJECT: &[u8] = aya::include_bytes_aligned!(env!("WARREN_BPF_TEST_OBJECT"));

/// `name at direction of device`, either of our programs or of foreign ones.
fn names(users: &[HookUser], ours: bool) -> Vec<String> {
    let chosen = users.iter().filter(|user| user.ours == ours);
    chosen.map(|user| format!("{} at {} of {}", user.name, user.direction, user.device)).collect()
}

#[test]
fn hook_users_distinguish_foreign_programs() {
    let Some(stage) = Stage::new() else { return };
    let workload = Namespace::new("one");
    stage.block_on(async || {
        let mut datapath = stage.open().await;
        must(&mut datapath, node_with_endpoint(&workload)).await;
        let own = datapath.hook_users(&[]).await.expect("hooks");
        let expected = [
            "from_host at egress of warren_host",
            "from_tunnel at ingress of warren_vxlan",
            "from_endpoint at ingress of wrn1",
            "to_endpoint at egress of wrn1",
        ];
        assert_eq!(names(&own, true), expected);
        assert_eq!(names(&own, false), [""; 0]);

        let mut other = Ebpf::load(TEST_OBJECT).expect("load the test object");
        let nothing: &mut SchedClassifier =
            other.program_mut("nothing").expect("in the object").try_into().expect("a classifier");
        nothing.load().expect("load");
        nothing.attach("wrn1", TcAttachType::Ingress).expect("attach");
        // Without TCX a device needs the qdisc first; our devices have it in that case.
        stage.node.run("tc", &["qdisc", "add", "dev", "lo", "clsact"]);
        nothing.attach("lo", TcAttachType::Egress).expect("attach to a foreign device");
        let with = datapath.hook_users(&[]).await.expect("hooks");
        assert_eq!(names(&with, true), expected);
        assert_eq!(names(&with, false), ["nothing at ingress of wrn1"]);
        let with = datapath.hook_users(&["lo".to_owned()]).await.expect("hooks");
        assert_eq!(names(&with, false), ["nothing at egress of lo", "nothing at ingress of wrn1"]);

        // A filter without a program, beside TCX if the kernel has it.
        stage.node.run("tc", &["qdisc", "add", "dev", "warren_net", "clsact"]);
        let filter = [
            "filter",
            "add",
            "dev",
            "warren_net",
            "egress",
            "bpf",
            "bytecode",
            "1,6 0 0 4294967295",
            "classid",
            "1:1",
        ];
        stage.node.run("tc", &filter);
        let with = datapath.hook_users(&[]).await.expect("hooks");
        assert_eq!(names(&with, false), ["bpf at egress of warren_net", "nothing at ingress of wrn1"]);
    });
}
