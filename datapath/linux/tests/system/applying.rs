//! What is applied is what is observed, and applying it again changes nothing.

use datapath_plan::{Observed, Tables};

use crate::stage::{Namespace, Stage, base, endpoint, endpoint_ops, foundations, must};

/// The tables that [`foundations`] and one endpoint make.
fn wanted(ops: &[datapath_plan::Op]) -> Tables {
    use datapath_plan::Op;
    let mut tables = Tables::default();
    for op in ops.iter().cloned() {
        match op {
            Op::PutBase(base) => tables.base = Some(base),
            Op::PutNode(index, value) => drop(tables.nodes.insert(index, value)),
            Op::PutIpcache(prefix, value) => drop(tables.ipcache.insert(prefix, value)),
            Op::PutRoute(prefix, value) => drop(tables.routes.insert(prefix, value)),
            Op::PutEndpoint(id, value) => {
                tables.endpoints.insert(id, datapath_plan::EndpointValue { attachment: None, ..value });
            }
            other => panic!("{other:?} makes nothing"),
        }
    }
    tables
}

#[test]
fn what_is_applied_is_observed() {
    let Some(stage) = Stage::new() else { return };
    let workload = Namespace::new("one");
    stage.play(async || {
        let mut datapath = stage.open().await;
        assert_eq!(datapath.observe().await.expect("observe"), Observed::default());

        let (id, value) = endpoint(1, 1, &workload.path());
        let mut ops = foundations(1);
        ops.extend(endpoint_ops(id, &value));
        must(&mut datapath, ops.clone()).await;

        let observed = datapath.observe().await.expect("observe");
        let expected = Observed { tables: wanted(&ops), broken: vec![], endpoint_devices: vec![id] };
        assert_eq!(observed, expected);
        assert_eq!(observed.tables.base, Some(base(1)));
    });
}
