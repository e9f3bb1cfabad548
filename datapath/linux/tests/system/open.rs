//! Opening a datapath: what is adopted from an earlier agent or build, and what is refused.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem::offset_of,
    net::UdpSocket,
    path::Path,
    time::{Duration, Instant},
};

use aya::{
    maps::{Array, HashMap, Map, MapData},
    programs::{LinkOrder, SchedClassifier, TcAttachType, links::FdLink, tc::TcAttachOptions},
};
use datapath_abi::{ABI_VERSION, FlowEntry, FlowKey, NodeConfig, V4, map_name};
use datapath_linux::{Datapath, DatapathError, Flow, FlowFilter, LinuxConfig, cleanup};

use crate::stage::{Namespace, Stage, address, base_ops, gateway, must, node_with_endpoint, run};

fn map_ids(datapath: &Datapath) -> BTreeMap<String, u32> {
    datapath.map_list().expect("maps").into_iter().map(|map| (map.name, map.id)).collect()
}

#[test]
fn datapath_is_send() {
    fn is_send<T: Send>(_: T) {}
    is_send(async |mut datapath: Datapath| {
        datapath.observe().await?;
        let plan = datapath_plan::Plan::new(datapath_plan::Generation(1), Vec::new(), |_| None);
        drop(datapath.apply(plan).await);
        cleanup(&LinuxConfig::default(), true).await.map(drop)
    });
}

#[test]
fn pin_directory_has_one_owner() {
    let Some(stage) = Stage::new() else { return };
    stage.block_on(async || {
        let first = stage.open().await;
        let second = Datapath::open(stage.config()).await.expect_err("the directory has an owner");
        assert!(matches!(second, DatapathError::Conflict(_)), "{second}");
        assert!(second.to_string().contains("an agent is at work"), "{second}");
        cleanup(&stage.config(), false).await.expect_err("the owner is running");
        drop(first);
        stage.open().await;
    });
}

#[test]
fn open_requires_bpffs() {
    let Some(stage) = Stage::new() else { return };
    let elsewhere = tempfile::tempdir().expect("a folder");
    stage.block_on(async || {
        let refused =
            Datapath::open(LinuxConfig::at(elsewhere.path())).await.expect_err("no BPF file system");
        assert!(matches!(refused, DatapathError::NoBpffs { .. }), "{refused}");
        assert!(refused.to_string().contains("mount -t bpf"), "{refused}");
    });
}

#[test]
fn open_requires_root() {
    let Some(stage) = Stage::new() else { return };
    stage.block_on(async || {
        const NOBODY: libc::uid_t = 65534;
        // SAFETY: the call takes integers only. Unlike the wrapper in libc, it changes this thread alone, and the
        // thread ends with the test.
        assert_eq!(unsafe { libc::syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY) }, 0);
        let refused = Datapath::open(stage.config()).await.expect_err("an unprivileged user");
        assert!(matches!(refused, DatapathError::NotPermitted(_)), "{refused}");
        assert!(refused.to_string().starts_with("needs root"), "{refused}");
    });
}

#[test]
fn handover_takes_over_maps_of_another_version() {
    let Some(stage) = Stage::new() else { return };
    let workload = Namespace::new("one");
    stage.block_on(async || {
        let mut first = stage.open().await;
        must(&mut first, node_with_endpoint(&workload)).await;
        let (before, whole) = (map_ids(&first), first.observe().await.expect("observe"));
        drop(first);

        set_version(&stage, ABI_VERSION + 1);
        let mut second = stage.open().await;
        let new: BTreeSet<_> = map_ids(&second)
            .into_iter()
            .filter(|(name, id)| before[name] != *id)
            .map(|(name, _)| name)
            .collect();
        // Every build creates these maps itself; the layout of the others is the same.
        let own = [map_name::CONFIG, map_name::EVENTS, map_name::BUDGETS, map_name::SCRATCH];
        assert_eq!(new, own.map(String::from).into());
        assert_eq!(second.observe().await.expect("observe"), whole, "everything is there before any plan");
        assert!(workload.pings(gateway(1)), "the new programs find their configuration");
    });
}

#[test]
fn restart_bumps_all_epochs() {
    let Some(stage) = Stage::new() else { return };
    let workload = Namespace::new("one");
    stage.block_on(async || {
        let mut first = stage.open().await;
        must(&mut first, node_with_endpoint(&workload)).await;
        assert!(workload.pings(gateway(1)));
        assert!(flows(&first).iter().all(|flow| flow.current));
        drop(first);

        // The first agent may have written an entry and died before it bumped the epochs: no flow is valid.
        let second = stage.open().await;
        assert!(flows(&second).iter().all(|flow| !flow.current), "all flows are decided again");
        assert!(workload.pings(gateway(1)));
    });
}

#[test]
fn handover_carries_flows_written_meanwhile() {
    let Some(stage) = Stage::new() else { return };
    let workload = Namespace::new("one");
    stage.block_on(async || {
        let mut first = stage.open().await;
        must(&mut first, node_with_endpoint(&workload)).await;
        let node = UdpSocket::bind((gateway(1), 0)).expect("the gateway's address is here");
        node.set_read_timeout(Some(Duration::from_secs(5))).expect("a limit");
        let inside = workload.enter(|| UdpSocket::bind((address(1, 1), 0)).expect("the workload's address"));
        inside.connect(node.local_addr().expect("it is bound")).expect("connect");
        let exchange = || {
            inside.send(b"there").expect("send");
            node.recv(&mut [0; 8]).expect("it arrives");
        };
        exchange();
        let before = flows(&first);
        assert!(before.iter().all(|flow| flow.current), "{before:#?}");
        assert_eq!(before.iter().map(|flow| flow.packets).sum::<u64>(), 1);
        let before_id = map_ids(&first)[map_name::FLOWS_V4];
        drop(first);

        // As an agent leaves it that died after it had pinned its maps, and before any program used them; and what
        // an agent leaves that died earlier still.
        let maps = stage.pin_root.join("maps");
        std::fs::rename(maps.join(map_name::FLOWS_V4), stage.pin_root.join("next").join("left"))
            .expect("rename");
        let second = stage.open().await;
        assert_ne!(map_ids(&second)[map_name::FLOWS_V4], before_id);
        let names = std::fs::read_dir(stage.pin_root.join("next")).expect("the folder").count();
        assert_eq!(names, 0, "what was on its way is gone");
        let after = flows(&second);
        let told = |flow: &Flow| (flow.source, flow.packets, flow.bytes, flow.reply, flow.tcp_flags);
        assert!(after.iter().map(told).eq(before.iter().map(told)), "{before:#?} {after:#?}");
        assert!(after.iter().all(|flow| !flow.current), "none is believed: {after:#?}");
        exchange();
        let again = flows(&second);
        assert!(again.iter().all(|flow| flow.current), "{again:#?}");
        assert_eq!(again.iter().map(|flow| flow.packets).sum::<u64>(), 2, "counts go on");
        assert!(again.iter().zip(&before).all(|(now, then)| now.age_ms >= then.age_ms));
    });
}

#[test]
fn handover_carries_a_flow_entry_but_for_its_epoch() {
    let Some(stage) = Stage::new() else { return };
    stage.block_on(async || {
        let mut first = stage.open().await;
        must(&mut first, base_ops(1)).await;
        drop(first);
        // Every byte differs: a field that is not copied, or copied to another place, shows.
        let key: [u8; size_of::<FlowKey<V4>>()] = std::array::from_fn(|byte| byte as u8 + 1);
        let mut entry: [u8; size_of::<FlowEntry>()] = std::array::from_fn(|byte| byte as u8 + 100);
        let maps = stage.pin_root.join("maps");
        flow_map(&maps).insert(key, entry, 0).expect("write it");
        std::fs::rename(maps.join(map_name::FLOWS_V4), stage.pin_root.join("next").join("left"))
            .expect("rename");

        let _second = stage.open().await;
        entry[offset_of!(FlowEntry, epoch)] -= 1;
        assert_eq!(flow_map(&maps).get(&key, 0).expect("it is there"), entry);
    });
}

type FlowMap = HashMap<MapData, [u8; size_of::<FlowKey<V4>>()], [u8; size_of::<FlowEntry>()]>;

pub fn flow_map(maps: &Path) -> FlowMap {
    let data = MapData::from_pin(maps.join(map_name::FLOWS_V4)).expect("the pinned map");
    Map::from_map_data(data).expect("a map").try_into().expect("a table of flows")
}

fn flows(datapath: &Datapath) -> Vec<Flow> {
    let mut flows =
        datapath.flow_table().expect("a handle").list(usize::MAX, &FlowFilter::default()).expect("flows");
    flows.sort_unstable();
    flows
}

#[test]
fn handover_removes_unknown_maps_and_programs() {
    for force_clsact in [false, true] {
        let Some(stage) = Stage::new() else { return };
        let config = LinuxConfig { force_clsact, ..stage.config() };
        stage.block_on(async || {
            let mut first = stage.open_with(config.clone()).await;
            must(&mut first, base_ops(1)).await;
            // A map and a program that only the other build knows, and a hook that the program is attached to.
            run("ip", &["link", "add", "other0", "type", "veth", "peer", "name", "other1"]);
            let pin = |part: &str, name: &str| stage.pin_root.join(part).join(name);
            let map = MapData::from_pin(pin("maps", map_name::COUNTERS)).expect("a map");
            map.pin(pin("maps", "WARREN_LATER")).expect("pin it");
            let mut program = SchedClassifier::from_pin(pin("programs", "from_host")).expect("a program");
            program.pin(pin("programs", "from_later")).expect("pin it");
            // Kernels before 6.6 have no TCX.
            let clsact = force_clsact || SchedClassifier::query_tcx("lo", TcAttachType::Ingress).is_err();
            attach_other(&pin("programs", "from_later"), &pin("links", "other0-from_later"), clsact);
            assert_eq!(users(&first, "other0").await, 1, "the program is attached");
            drop(first);

            let mut second = stage.open_with(config.clone()).await;
            // The kernel detaches a link asynchronously, after its last pin is gone.
            let deadline = Instant::now() + Duration::from_secs(60);
            while users(&second, "other0").await != 0 {
                assert!(Instant::now() < deadline, "the program is still attached");
            }
            for part in ["maps", "programs", "links"] {
                let folder = std::fs::read_dir(stage.pin_root.join(part)).expect("the folder");
                let mut names =
                    folder.map(|entry| entry.expect("an entry").file_name().into_string().expect("text"));
                assert!(names.all(|name| !name.to_lowercase().contains("later")), "{part}");
            }
            assert_eq!(second.observe().await.expect("observe").broken, Vec::<String>::new());
        });
    }
}

/// Another build may have another name for the program of a hook. This build's program works there before the other one
/// is detached, and before any plan is applied.
#[test]
fn program_with_another_name_in_another_build_is_replaced_at_once() {
    let Some(stage) = Stage::new() else { return };
    let links = stage.pin_root.join("links");
    let (ours, theirs) = (links.join("warren_vxlan-from_tunnel"), links.join("warren_vxlan-from_former"));
    stage.block_on(async || {
        let mut first = stage.open().await;
        must(&mut first, base_ops(1)).await;
        drop(first);
        // Kernels before 6.6 have no links.
        if !ours.exists() {
            return;
        }
        std::fs::rename(&ours, &theirs).expect("rename the pin");
        let second = stage.open().await;
        assert!(ours.exists() && !theirs.exists());
        // The kernel takes a link down in a worker of its own, some time after its last pin has gone.
        let deadline = Instant::now() + Duration::from_secs(60);
        while users(&second, "warren_vxlan").await != 1 {
            assert!(Instant::now() < deadline, "the other program is still at work");
        }
    });
}

/// Makes the pinned configuration claim that another build wrote it.
fn set_version(stage: &Stage, version: u32) {
    const BYTES: usize = size_of::<NodeConfig>();
    let pin = stage.pin_root.join("maps").join(map_name::CONFIG);
    let map = Map::from_map_data(MapData::from_pin(pin).expect("the pinned map")).expect("a map");
    let mut map: Array<_, [u8; BYTES]> = map.try_into().expect("an array of configurations");
    let mut value = map.get(&0, 0).expect("its entry");
    value[offset_of!(NodeConfig, abi_version)..][..4].copy_from_slice(&version.to_ne_bytes());
    map.set(0, value, 0).expect("write it");
}

/// Attaches a pinned program to `other0`, as another build would attach a program that this build does not know.
fn attach_other(program: &Path, link_pin: &Path, clsact: bool) {
    if clsact {
        let program = program.display().to_string();
        // By tc, which gives the filter another name than we would.
        run("tc", &["qdisc", "add", "dev", "other0", "clsact"]);
        let filter = ["egress", "prio", "1", "handle", "1", "bpf", "da", "pinned", &program];
        run("tc", &[&["filter", "add", "dev", "other0"][..], &filter].concat());
        return;
    }
    let mut program = SchedClassifier::from_pin(program).expect("the pinned program");
    let options = TcAttachOptions::TcxOrder(LinkOrder::default());
    let id = program.attach_with_options("other0", TcAttachType::Egress, options).expect("attach");
    let link = FdLink::try_from(program.take_link(id).expect("its link")).expect("a link of TCX");
    link.pin(link_pin).expect("pin");
}

/// The number of programs at a device's hooks.
async fn users(datapath: &Datapath, device: &str) -> usize {
    let users = datapath.hook_users(&[device.to_owned()]).await.expect("hook users");
    users.iter().filter(|user| user.device == device).count()
}
