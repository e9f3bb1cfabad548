//! A store, the records that most protocols need, and a machine run to its end.

use identity::{Identity, Labels, NodeName};
use kvstore_claims::{
    ClaimError, FleetJoin, FleetView, Machine, NodeRegistration, Protocol, ServiceRemoval, ServiceWrite, Step,
};
use kvstore_claims::{Expected, ServiceOutcome};
use kvstore_schema::{
    KvFailure, KvOp, KvRequest, KvResponse, Revision, Schema, StoreIdentity, Txn,
    record::{EndpointRecord, FleetRecord, Life, NodeRecord, Record},
    service::ServiceSpec,
};
use kvstore_store::MemState;

/// How many answers a machine may need.
const MOST_ANSWERS: u64 = 100;

#[derive(Clone)]
pub struct Bench {
    pub store: MemState,
    pub schema: Schema,
}

impl Bench {
    /// An empty store.
    pub fn empty() -> Self {
        Self { store: MemState::new(StoreIdentity(1)), schema: Schema::new(&"t".parse().unwrap()) }
    }

    /// A fleet of these pools with the nodes `n1` and `n2`, both at 192.0.2.1.
    pub fn fleet(pool: &str, service_pools: &[&str]) -> Self {
        let mut bench = Self::empty();
        bench.run(FleetJoin::start(&bench.schema, fleet(pool, service_pools))).unwrap();
        for name in ["n1", "n2"] {
            bench.run(NodeRegistration::start(&bench.schema, node(name), record(name, 1), None)).unwrap();
        }
        bench
    }

    pub fn view(&self) -> FleetView {
        let mut view = FleetView::new(self.schema.clone());
        view.apply_list(self.store.list(&self.schema.root(), None, None, usize::MAX).unwrap());
        view
    }

    /// Runs a machine to its end, with a view of this moment.
    pub fn run<P: Protocol>(&mut self, started: (Machine<P>, KvRequest)) -> Result<P::Output, ClaimError> {
        let view = self.view();
        self.run_with(started, &view, |_, _| false)
    }

    /// Runs a machine to its end. `lose`: whether the answer to the request of this number is lost after the request
    /// was carried out.
    pub fn run_with<P: Protocol>(
        &mut self,
        (mut machine, first): (Machine<P>, KvRequest),
        view: &FleetView,
        lose: impl Fn(&mut MemState, u64) -> bool,
    ) -> Result<P::Output, ClaimError> {
        let mut step = Step::Ask(first);
        for draw in 0..MOST_ANSWERS {
            step = match step {
                Step::Ask(request) => {
                    let answer = self.store.execute(&request);
                    let lost = lose(&mut self.store, draw);
                    let answer = if lost { Err(KvFailure::Ambiguous("lost".to_owned())) } else { answer };
                    machine.on_outcome(answer, view, draw)
                }
                Step::Wait { .. } => machine.resume(),
                Step::Done(output) => return Ok(output),
                Step::Failed(error) => return Err(error),
            };
        }
        panic!("the machine does not end")
    }

    pub fn succeeded(&mut self, request: &KvRequest) -> bool {
        matches!(self.store.execute(request), Ok(KvResponse::Txn(answer)) if answer.succeeded)
    }

    /// Writes the fleet's record with this life, as a member that founds the store anew does.
    pub fn set_life(&mut self, life: Life) {
        let fleet = self.view().fleet().expect("there is a fleet").record.clone();
        let value = FleetRecord { life, ..fleet }.encode();
        let put = KvOp::Put { key: self.schema.fleet(), value, lease: None };
        assert!(self.succeeded(&KvRequest::Txn(Txn::new().then(put))));
    }

    /// Writes a service; what became of it, and its virtual IP.
    pub fn write(
        &mut self,
        service: &str,
        spec: ServiceSpec,
    ) -> Result<(ServiceOutcome, String), ClaimError> {
        let started = ServiceWrite::start(&self.view(), service.parse().unwrap(), spec, Expected::Any);
        let written = self.run(started)?;
        Ok((written.outcome, written.record.virtual_ip.to_string()))
    }

    pub fn delete(&mut self, service: &str) -> Result<bool, ClaimError> {
        self.run(ServiceRemoval::start(&self.schema, service.parse().unwrap(), Expected::Any))
    }
}

pub fn node(name: &str) -> NodeName {
    name.parse().unwrap()
}

pub fn fleet(pool: &str, service_pools: &[&str]) -> FleetRecord {
    FleetRecord {
        fleet_id: format!("of {pool}"),
        pools: vec![pool.parse().unwrap()],
        service_pools: service_pools.iter().map(|pool| pool.parse().unwrap()).collect(),
        block_prefix_v4: 24,
        block_prefix_v6: 64,
        tunnel_port: 8472,
        life: Life::default(),
        unknown: Default::default(),
    }
}

pub fn record(machine: &str, incarnation: u64) -> NodeRecord {
    NodeRecord {
        underlay: vec!["192.0.2.1".parse().unwrap()],
        moves: 0,
        datapath_mode: Some("tunnel".to_owned()),
        cidrs: Vec::new(),
        gateway: None,
        gossip_port: 7946,
        labels: Labels::default(),
        boot_id: "b".to_owned(),
        machine_id: machine.to_owned(),
        incarnation,
        agent_version: "t".to_owned(),
        unknown: Default::default(),
    }
}

pub fn endpoint(name: &str) -> EndpointRecord {
    EndpointRecord {
        name: name.parse().unwrap(),
        identity: Identity::FLEET_MIN,
        labels_digest: Labels::default().digest(),
        labels: Labels::default(),
        terminating: false,
        unknown: Default::default(),
    }
}

/// The life that a store begins when it is founded anew.
pub fn restoring(number: u64) -> Life {
    Life { number, founded_on: Revision(1), restoring: true }
}

/// A service of one port; `virtual_ip`: `auto` or an address.
pub fn spec(virtual_ip: &str, port: u16) -> ServiceSpec {
    let json = format!(r#"{{"virtualIp":"{virtual_ip}","ports":[{{"port":{port}}}],"selector":{{}}}}"#);
    let spec: ServiceSpec = serde_json::from_str(&json).unwrap();
    spec.normalised()
}
