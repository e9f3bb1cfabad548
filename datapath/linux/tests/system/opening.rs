//! Opening: what is adopted, what is refused.

use std::collections::BTreeMap;

use aya::maps::{Array, Map, MapData};
use datapath_abi::{ABI_VERSION, map_name};
use datapath_linux::{Datapath, DatapathError, LinuxConfig, cleanup};

use crate::stage::{Namespace, Stage, endpoint, endpoint_ops, foundations, gateway, must};

fn map_ids(datapath: &Datapath) -> BTreeMap<String, u32> {
    datapath.map_list().expect("maps").into_iter().map(|map| (map.name, map.id)).collect()
}

#[test]
fn a_datapath_can_be_moved_to_a_task() {
    fn is_send<T: Send>(_: T) {}
    is_send(async |mut datapath: Datapath| {
        datapath.observe().await?;
        let plan = datapath_plan::Plan { generation: datapath_plan::Generation(1), ops: vec![] };
        drop(datapath.apply(plan).await);
        cleanup(&LinuxConfig::default(), true).await.map(drop)
    });
}

#[test]
fn one_folder_has_one_owner() {
    let Some(stage) = Stage::new() else { return };
    stage.play(async || {
        let first = stage.open().await;
        let second = Datapath::open(stage.config()).await.expect_err("the folder is taken");
        assert!(matches!(second, DatapathError::Conflict(_)), "{second}");
        assert!(second.to_string().contains("an agent is at work"), "{second}");
        cleanup(&stage.config(), false).await.expect_err("its owner is at work");
        drop(first);
        stage.open().await;
    });
}

#[test]
fn pins_need_a_bpf_file_system() {
    let Some(stage) = Stage::new() else { return };
    let elsewhere = tempfile::tempdir().expect("a folder");
    stage.play(async || {
        let refused =
            Datapath::open(LinuxConfig::at(elsewhere.path())).await.expect_err("no BPF file system");
        assert!(matches!(refused, DatapathError::NoBpffs { .. }), "{refused}");
        assert!(refused.to_string().contains("mount -t bpf"), "{refused}");
    });
}

#[test]
fn opening_needs_root() {
    let Some(stage) = Stage::new() else { return };
    stage.play(async || {
        const NOBODY: libc::uid_t = 65534;
        // SAFETY: plain numbers. The system call, unlike its wrapper in libc, changes this thread alone, and the
        // thread ends with the test.
        assert_eq!(unsafe { libc::syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY) }, 0);
        let refused = Datapath::open(stage.config()).await.expect_err("nobody may not");
        assert!(matches!(refused, DatapathError::NotPermitted(_)), "{refused}");
        assert!(refused.to_string().starts_with("needs root"), "{refused}");
    });
}

#[test]
fn maps_of_another_version_are_remade() {
    let Some(stage) = Stage::new() else { return };
    let workload = Namespace::new("one");
    stage.play(async || {
        let mut first = stage.open().await;
        let (id, value) = endpoint(1, 1, &workload.path());
        let mut ops = foundations(1);
        ops.extend(endpoint_ops(id, &value));
        must(&mut first, ops.clone()).await;
        let (before, whole) = (map_ids(&first), first.observe().await.expect("observe"));
        drop(first);

        let mut config = config_map(&stage);
        let mut other = config.get(&0, 0).expect("its entry");
        let ours = other;
        other[0] = ABI_VERSION + 1;
        config.set(0, other, 0).expect("write it");
        let mut second = stage.open().await;
        // The old programs are content with the old version, which is ours.
        config.set(0, ours, 0).expect("write it");
        let after = map_ids(&second);
        assert!(before.iter().all(|(name, number)| after[name] != *number), "{before:?} {after:?}");
        let empty = second.observe().await.expect("observe");
        assert_eq!(empty.tables.base, None);
        assert_eq!(empty.tables.endpoints, BTreeMap::new());
        assert!(workload.pings(gateway(1)), "the old programs are still at work");

        must(&mut second, ops).await;
        assert_eq!(second.observe().await.expect("observe"), whole);
        assert!(workload.pings(gateway(1)), "and now the new ones");
    });
}

/// The configuration map as words; the version is the first.
fn config_map(stage: &Stage) -> Array<MapData, [u32; 7]> {
    let pin = stage.pin_root.join("maps").join(map_name::CONFIG);
    let map = Map::from_map_data(MapData::from_pin(pin).expect("the pinned map")).expect("a map");
    map.try_into().expect("an array of 28 bytes")
}
