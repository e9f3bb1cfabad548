//! The kernel side of a packet test: programs, their maps, runs.

use std::{
    collections::BTreeMap,
    mem::size_of,
    sync::{LazyLock, Mutex, PoisonError},
    time::Duration,
};

use aya::{
    Ebpf, EbpfError, EbpfLoader, Pod, TestRun,
    maps::{Array, HashMap, LpmTrie, Map, PerCpuArray, ProgramArray, RingBuf, lpm_trie::Key},
    programs::{ProgramFd, ProgramInfo, SchedClassifier, TestRunOptions, Xdp, XdpMode},
};
use datapath_abi::{
    AbiBytes, BackendEntry, COUNTER_SLOTS, Counter, EPOCH_SHARDS, EndpointEntry, Event, FlowEntry, FlowKey,
    FrontendEntry, FrontendKey, IpcacheEntry, LpmKey, NodeConfig, NodeEntry, ServiceEntry, SlotBlock,
    SlotsKey, Source, V4, map_name,
};
use datapath_linux::object::{self, OBJECT, Program, SocketProgram, XDP_PROGRAM};

/// What only tests load: see `datapath/ebpf/src/test.rs`.
static TEST_OBJECT: &[u8] = aya::include_bytes_aligned!(env!("WARREN_BPF_TEST_OBJECT"));

/// Where `struct __sk_buff` has `ingress_ifindex` and `cb`, and its size.
const INGRESS_OFFSET: usize = 36;
const CB_OFFSET: usize = 48;
const SK_BUFF_BYTES: usize = 192;
/// Where `struct xdp_md` has `data_end` and `ingress_ifindex`, and its size.
const DATA_END_OFFSET: usize = 4;
const INGRESS_XDP_OFFSET: usize = 12;
const XDP_MD_BYTES: usize = 24;
/// A packet may grow by as much.
const HEADROOM: usize = 256;

/// The tables of a test are small: it makes them all, and many run at once.
const SMALL: u32 = 256;

/// Map values as aya wants them.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct Raw<T>(T);
// SAFETY: `AbiBytes`: `repr(C)`, no implicit padding, every bit pattern valid; the wrapper is transparent.
unsafe impl<T: AbiBytes> Pod for Raw<T> {}

/// Programs and maps of one test.
pub struct Kernel {
    ebpf: Ebpf,
    test: Ebpf,
    /// Interface by which packets have come to the node, 0 for its own: for programs at egress.
    pub ingress_ifindex: u32,
}

/// Where a tunnel packet says that it comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// The VNI.
    pub identity: u32,
    /// The sending node.
    pub underlay: V4,
}

/// What a run did to its packet.
pub struct Ran {
    pub code: u32,
    pub bytes: Vec<u8>,
}

/// The state of all maps that anybody but the programs reads, times left out.
#[derive(Debug, PartialEq, Eq)]
pub struct Snapshot {
    pub flows: BTreeMap<FlowKey<V4>, FlowEntry>,
    /// Sum over the CPUs, by slot; without those that are 0.
    pub counters: BTreeMap<u32, (u64, u64)>,
    /// What user space wrote, in words.
    pub written: BTreeMap<String, String>,
}

/// A kernel with empty maps; `None`, after saying so, where BPF cannot be used.
pub fn kernel_or_skip() -> Option<Kernel> {
    // SAFETY: no arguments, cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        println!("skipped: BPF programs need root");
        return None;
    }
    match (load_object(OBJECT), load_object(TEST_OBJECT)) {
        (Ok(ebpf), Ok(test)) => Some(Kernel { ebpf, test, ingress_ifindex: 0 }),
        (Err(error), _) | (_, Err(error)) => {
            // Only a kernel without BPF is a reason to skip; a broken object is a reason to fail.
            assert!(!bpf_works(), "the object does not load: {error}");
            println!("skipped: no BPF here: {error}");
            None
        }
    }
}

/// By one loader for all tests of a process: a new one reads the types of the whole kernel again.
fn load_object(object: &[u8]) -> Result<Ebpf, EbpfError> {
    static LOADER: LazyLock<Mutex<EbpfLoader<'static>>> = LazyLock::new(|| {
        let mut loader = EbpfLoader::new();
        for name in [
            map_name::ENDPOINTS_BY_IFINDEX,
            map_name::ENDPOINTS_V4,
            map_name::IPCACHE_V4,
            map_name::IPCACHE_LPM_V4,
            map_name::NODE_BY_ADDRESS_V4,
            map_name::NODES,
            map_name::FLOWS_V4,
            map_name::FRAGMENTS_V4,
            map_name::FRONTENDS_V4,
            map_name::SERVICES,
            map_name::SLOTS,
            map_name::BACKENDS_V4,
            map_name::NAMESPACES,
            map_name::SOCKETS_V4,
            map_name::SOURCES_LPM_V4,
            map_name::AFFINITY,
        ] {
            loader.map_max_entries(name, SMALL);
        }
        Mutex::new(loader)
    });
    LOADER.lock().unwrap_or_else(PoisonError::into_inner).load(object)
}

fn bpf_works() -> bool {
    aya::sys::is_map_supported(aya::maps::MapType::Hash).unwrap_or(false)
}

impl Kernel {
    /// The program, loaded.
    pub fn load(&mut self, program: Program) -> &mut SchedClassifier {
        load(&mut self.ebpf, program.name())
    }

    /// Loads a program at sockets; what the kernel says of it.
    pub fn load_socket(&mut self, program: SocketProgram) -> ProgramInfo {
        let loaded = self.ebpf.program_mut(program.name()).expect("the object has the program");
        object::load_socket(loaded).unwrap_or_else(|error| panic!("{}: {error}", program.name()));
        loaded.info().expect("it is loaded")
    }

    /// The program before the stack, loaded.
    pub fn load_xdp(&mut self) -> &mut Xdp {
        let program = self.ebpf.program_mut(XDP_PROGRAM).expect("the object has the program");
        let program: &mut Xdp = program.try_into().expect("it is of that kind");
        if program.fd().is_err() {
            object::load_xdp(program).unwrap_or_else(|error| panic!("{XDP_PROGRAM}: {error:#?}"));
        }
        program
    }

    /// Puts the program to work before the stack of a veth: only there a test run can claim to come from.
    pub fn attach_xdp(&mut self, ifindex: u32) {
        self.load_xdp().attach_to_if_index(ifindex, XdpMode::Driver).expect("a veth can");
    }

    /// Runs the program before the stack on a frame that comes in there.
    pub fn run_xdp(&mut self, frame: &[u8], ifindex: u32) -> Ran {
        let mut bytes = vec![0; frame.len() + HEADROOM];
        let mut options = TestRunOptions::new();
        let context = xdp_context(frame, ifindex);
        options.data_in = Some(frame);
        options.ctx_in = Some(&context);
        options.data_out = Some(&mut bytes);
        let result = self.load_xdp().test_run(options).expect("BPF_PROG_TEST_RUN");
        bytes.truncate(result.data_size_out as usize);
        Ran { code: result.return_value, bytes }
    }

    /// The time of one run of it.
    pub fn time_xdp(&mut self, frame: &[u8], ifindex: u32) -> Duration {
        time_xdp(self.load_xdp(), frame, ifindex)
    }

    /// The time of one run of a program before the stack that does nothing.
    pub fn time_nothing_early(&mut self, frame: &[u8], ifindex: u32) -> Duration {
        let program = self.test.program_mut("nothing_early").expect("in the test object");
        let program: &mut Xdp = program.try_into().expect("it is of that kind");
        if program.fd().is_err() {
            object::load_xdp(program).expect("it loads");
        }
        time_xdp(program, frame, ifindex)
    }

    /// Writes an entry.
    pub fn set<K: AbiBytes, V: AbiBytes>(&mut self, name: &str, key: &K, value: &V) {
        let map = self.ebpf.map_mut(name).expect("the object has the map");
        let (key, value) = (Raw(*key), Raw(*value));
        let result = match map {
            Map::Array(_) => {
                // SAFETY: array keys are u32.
                let index = unsafe { std::mem::transmute_copy(&key) };
                Array::<_, Raw<V>>::try_from(map).expect("sizes agree").set(index, value, 0)
            }
            Map::HashMap(_) | Map::LruHashMap(_) => {
                HashMap::<_, Raw<K>, Raw<V>>::try_from(map).expect("sizes agree").insert(key, value, 0)
            }
            Map::LpmTrie(_) if size_of::<K>() == size_of::<LpmKey<Source<V4>>>() => {
                // SAFETY: of that size only source ranges have keys in these tests.
                let key: LpmKey<Source<V4>> = unsafe { std::mem::transmute_copy(&key) };
                let key = Key::new(key.prefix_len, Raw(key.address));
                LpmTrie::<_, Raw<Source<V4>>, Raw<V>>::try_from(map)
                    .expect("sizes agree")
                    .insert(&key, value, 0)
            }
            Map::LpmTrie(_) => {
                // SAFETY: the keys of the other tries in these tests are `LpmKey<V4>`.
                let key: LpmKey<V4> = unsafe { std::mem::transmute_copy(&key) };
                let key = Key::new(key.prefix_len, key.address);
                LpmTrie::<_, V4, Raw<V>>::try_from(map).expect("sizes agree").insert(&key, value, 0)
            }
            _ => panic!("{name} is not written by user space"),
        };
        result.unwrap_or_else(|error| panic!("{name}: {error}"));
    }

    /// Reads an entry of a hash table.
    pub fn get<K: AbiBytes, V: AbiBytes>(&self, name: &str, key: &K) -> Option<V> {
        let map = HashMap::<_, Raw<K>, Raw<V>>::try_from(self.map(name)).expect("sizes agree");
        map.get(&Raw(*key), 0).ok().map(|value| value.0)
    }

    /// Deletes an entry of a hash table.
    pub fn remove<K: AbiBytes, V: AbiBytes>(&mut self, name: &str, key: &K) {
        let map = self.ebpf.map_mut(name).expect("the object has the map");
        let mut map = HashMap::<_, Raw<K>, Raw<V>>::try_from(map).expect("sizes agree");
        map.remove(&Raw(*key)).unwrap_or_else(|error| panic!("{name}: {error}"));
    }

    /// Runs a program on a packet; `from_overlay` needs a tunnel that it comes from.
    pub fn run(&mut self, program: Program, packet: &[u8], tunnel: Option<Tunnel>) -> Ran {
        let mut bytes = vec![0; packet.len() + HEADROOM];
        let mut options = TestRunOptions::new();
        options.data_in = Some(packet);
        options.data_out = Some(&mut bytes);
        let mut context = context_of(tunnel);
        context[INGRESS_OFFSET..][..4].copy_from_slice(&self.ingress_ifindex.to_ne_bytes());
        options.ctx_in = Some(&context);
        let result = self.classifier(program, tunnel).test_run(options).expect("BPF_PROG_TEST_RUN");
        bytes.truncate(result.data_size_out as usize);
        Ran { code: result.return_value, bytes }
    }

    /// Runs a program on the same packet many times (what it writes into the packet stays), and returns the mean
    /// time of a run.
    pub fn time(&mut self, program: Program, packet: &[u8], tunnel: Option<Tunnel>, times: u32) -> Duration {
        time(self.classifier(program, tunnel), packet, tunnel, times)
    }

    /// The same of a program that does nothing: the cost of measuring.
    pub fn time_nothing(&mut self, packet: &[u8], tunnel: Option<Tunnel>, times: u32) -> Duration {
        let nothing =
            load(&mut self.test, "nothing").fd().expect("loaded").try_clone().expect("a descriptor");
        let classifier = match tunnel {
            None => load(&mut self.test, "nothing"),
            Some(_) => self.wrap(nothing, "through_tunnel"),
        };
        time(classifier, packet, tunnel, times)
    }

    /// Runs a program and returns the tunnel key that it gave the packet: VNI, and node as number.
    pub fn run_for_tunnel_key(&mut self, program: Program, packet: &[u8]) -> Tunnel {
        let mut context = [0u8; SK_BUFF_BYTES];
        let mut options = TestRunOptions::new();
        options.data_in = Some(packet);
        options.ctx_in = Some(&[0u8; SK_BUFF_BYTES]);
        options.ctx_out = Some(&mut context);
        // The first run is the program's, the second reads what it left on the packet.
        options.repeat = 2;
        let fd = self.fd(program);
        self.wrap(fd, "then_tunnel_key").test_run(options).expect("BPF_PROG_TEST_RUN");
        let word = |index: usize| {
            let bytes = &context[CB_OFFSET + 4 * index..][..4];
            u32::from_ne_bytes(bytes.try_into().expect("4 bytes"))
        };
        Tunnel { identity: word(1), underlay: word(2).to_be_bytes() }
    }

    /// The program, or what makes its packets come from a tunnel and ends in it.
    fn classifier(&mut self, program: Program, tunnel: Option<Tunnel>) -> &SchedClassifier {
        match tunnel {
            None => self.load(program),
            Some(_) => {
                let fd = self.fd(program);
                self.wrap(fd, "through_tunnel")
            }
        }
    }

    fn fd(&mut self, program: Program) -> ProgramFd {
        self.load(program).fd().expect("loaded").try_clone().expect("a descriptor")
    }

    /// A program of the test object that ends in the given one.
    fn wrap(&mut self, inner: ProgramFd, wrapper: &str) -> &SchedClassifier {
        let map = self.test.map_mut("TEST_PROGRAMS").expect("in the test object");
        let mut programs = ProgramArray::try_from(map).expect("a program array");
        programs.set(0, &inner, 0).expect("a slot");
        load(&mut self.test, wrapper)
    }

    /// The events since the last call, times left out.
    pub fn events(&mut self) -> Vec<Event> {
        let map = self.ebpf.map_mut(map_name::EVENTS).expect("in the object");
        let mut ring = RingBuf::try_from(map).expect("a ring");
        let mut events = Vec::new();
        while let Some(bytes) = ring.next() {
            assert_eq!(bytes.len(), size_of::<Event>());
            // SAFETY: as many bytes as an event has, all bit patterns valid (`AbiBytes`).
            let event: Event = unsafe { bytes.as_ptr().cast::<Event>().read_unaligned() };
            assert!(event.time_ns > 0);
            events.push(Event { time_ns: 0, ..event });
        }
        events
    }

    /// The flow entry as it is, times and all.
    pub fn flow(&self, key: &FlowKey<V4>) -> Option<FlowEntry> {
        self.get(map_name::FLOWS_V4, key)
    }

    /// All maps.
    pub fn snapshot(&self) -> Snapshot {
        let mut written = BTreeMap::new();
        self.note_array::<NodeConfig>(&mut written, map_name::CONFIG, 1);
        self.note_array::<NodeEntry>(&mut written, map_name::NODES, SMALL);
        self.note_array::<u32>(&mut written, map_name::EPOCHS, EPOCH_SHARDS);
        self.note_array::<ServiceEntry>(&mut written, map_name::SERVICES, SMALL);
        self.note_array::<BackendEntry<V4>>(&mut written, map_name::BACKENDS_V4, SMALL);
        self.note_hash::<FrontendKey<V4>, FrontendEntry>(&mut written, map_name::FRONTENDS_V4);
        self.note_hash::<SlotsKey, SlotBlock>(&mut written, map_name::SLOTS);
        self.note_hash::<u32, EndpointEntry>(&mut written, map_name::ENDPOINTS_BY_IFINDEX);
        self.note_hash::<V4, EndpointEntry>(&mut written, map_name::ENDPOINTS_V4);
        self.note_hash::<V4, IpcacheEntry>(&mut written, map_name::IPCACHE_V4);
        self.note_hash::<V4, u32>(&mut written, map_name::NODE_BY_ADDRESS_V4);
        let trie = LpmTrie::<_, V4, Raw<IpcacheEntry>>::try_from(self.map(map_name::IPCACHE_LPM_V4))
            .expect("a trie");
        for row in trie.iter() {
            let (key, value) = row.expect("a row");
            written.insert(
                format!("{} {:?}/{}", map_name::IPCACHE_LPM_V4, key.data(), key.prefix_len()),
                format!("{:?}", value.0),
            );
        }
        let trie = LpmTrie::<_, V4, u32>::try_from(self.map(map_name::UNMASQUERADED_LPM_V4)).expect("a trie");
        for row in trie.iter() {
            let (key, value) = row.expect("a row");
            written.insert(
                format!("{} {:?}/{}", map_name::UNMASQUERADED_LPM_V4, key.data(), key.prefix_len()),
                format!("{value}"),
            );
        }
        Snapshot { flows: self.flows(), counters: self.counters(), written }
    }

    fn flows(&self) -> BTreeMap<FlowKey<V4>, FlowEntry> {
        let map = HashMap::<_, Raw<FlowKey<V4>>, Raw<FlowEntry>>::try_from(self.map(map_name::FLOWS_V4));
        let rows = map.expect("sizes agree");
        rows.iter()
            .map(|row| {
                let (key, entry) = row.expect("a row");
                (key.0, FlowEntry { created_ns: 0, last_seen_ns: 0, ..entry.0 })
            })
            .collect()
    }

    fn counters(&self) -> BTreeMap<u32, (u64, u64)> {
        let map =
            PerCpuArray::<_, Raw<Counter>>::try_from(self.map(map_name::COUNTERS)).expect("sizes agree");
        (0..COUNTER_SLOTS)
            .filter_map(|slot| {
                let cpus = map.get(&slot, 0).expect("a slot");
                let sum = cpus.iter().fold((0, 0), |(packets, bytes), Raw(counter)| {
                    (packets + counter.packets, bytes + counter.bytes)
                });
                (sum != (0, 0)).then_some((slot, sum))
            })
            .collect()
    }

    fn note_array<V: AbiBytes + Default + PartialEq + std::fmt::Debug>(
        &self,
        written: &mut BTreeMap<String, String>,
        name: &str,
        len: u32,
    ) {
        let map = Array::<_, Raw<V>>::try_from(self.map(name)).expect("sizes agree");
        for index in 0..len {
            let value = map.get(&index, 0).expect("an index").0;
            if value != V::default() {
                written.insert(format!("{name} {index}"), format!("{value:?}"));
            }
        }
    }

    fn note_hash<K: AbiBytes + std::fmt::Debug, V: AbiBytes + std::fmt::Debug>(
        &self,
        written: &mut BTreeMap<String, String>,
        name: &str,
    ) {
        let map = HashMap::<_, Raw<K>, Raw<V>>::try_from(self.map(name)).expect("sizes agree");
        for row in map.iter() {
            let (key, value) = row.expect("a row");
            written.insert(format!("{name} {:?}", key.0), format!("{:?}", value.0));
        }
    }

    fn map(&self, name: &str) -> &Map {
        self.ebpf.map(name).expect("the object has the map")
    }
}

fn time_xdp(program: &Xdp, frame: &[u8], ifindex: u32) -> Duration {
    let mut options = TestRunOptions::new();
    let context = xdp_context(frame, ifindex);
    options.data_in = Some(frame);
    options.ctx_in = Some(&context);
    program.test_run(options).expect("BPF_PROG_TEST_RUN").duration
}

/// `struct xdp_md` for [`Kernel::run_xdp`].
fn xdp_context(frame: &[u8], ifindex: u32) -> [u8; XDP_MD_BYTES] {
    let mut context = [0; XDP_MD_BYTES];
    context[DATA_END_OFFSET..][..4].copy_from_slice(&(frame.len() as u32).to_ne_bytes());
    context[INGRESS_XDP_OFFSET..][..4].copy_from_slice(&ifindex.to_ne_bytes());
    context
}

/// `struct __sk_buff` for [`Kernel::run`].
fn context_of(tunnel: Option<Tunnel>) -> [u8; SK_BUFF_BYTES] {
    let mut context = [0; SK_BUFF_BYTES];
    if let Some(tunnel) = tunnel {
        let underlay = u32::from_be_bytes(tunnel.underlay);
        context[CB_OFFSET..][..4].copy_from_slice(&tunnel.identity.to_ne_bytes());
        context[CB_OFFSET + 4..][..4].copy_from_slice(&underlay.to_ne_bytes());
    }
    context
}

fn time(classifier: &SchedClassifier, packet: &[u8], tunnel: Option<Tunnel>, times: u32) -> Duration {
    let context = context_of(tunnel);
    let mut options = TestRunOptions::new();
    options.data_in = Some(packet);
    options.ctx_in = Some(&context);
    options.repeat = times;
    classifier.test_run(options).expect("BPF_PROG_TEST_RUN").duration
}

fn load<'a>(ebpf: &'a mut Ebpf, name: &str) -> &'a mut SchedClassifier {
    let program: &mut SchedClassifier =
        ebpf.program_mut(name).expect("the object has the program").try_into().expect("a classifier");
    if program.fd().is_err() {
        object::load(program).unwrap_or_else(|error| panic!("{name}: {error:#?}"));
    }
    program
}
