//! The maps, by the names of [`datapath_abi::map_name`]; the context of packets is in `context`.

use aya_ebpf::{
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf},
    macros::btf_map,
};
use datapath_abi::{
    AffinityEntry, AffinityKey, BackendEntry, Budget, COUNTER_SLOTS, Counter, EPOCH_SHARDS, EVENT_RING_BYTES,
    EndpointEntry, Event, FlowEntry, FlowKey, FragmentKey, FragmentPorts, FrontendEntry, FrontendKey,
    IpcacheEntry, MAX_AFFINITIES, MAX_BACKENDS, MAX_DROPPED, MAX_ENDPOINTS, MAX_FLOWS, MAX_FRAGMENTS,
    MAX_FRONTENDS, MAX_IPCACHE, MAX_IPCACHE_LPM, MAX_NODES, MAX_SERVICES, MAX_SLOT_BLOCKS, MAX_SOCKETS,
    MAX_SOURCES, MAX_UNMASQUERADED, NamespaceEntry, NodeConfig, NodeEntry, SERVICE_PORT_WORDS, ServiceEntry,
    SlotBlock, SlotsKey, SocketEntry, SocketKey, Source, V4,
};

/// Hash tables that user space fills are not allocated in advance, so that a small fleet costs little memory.
const NO_PREALLOC: usize = aya_ebpf::bindings::BPF_F_NO_PREALLOC as usize;

#[btf_map(name = "WARREN_CONFIG")]
pub static CONFIG: Array<NodeConfig, 1> = Array::new();

#[btf_map(name = "WARREN_EP_IF")]
pub static ENDPOINTS_BY_IFINDEX: HashMap<u32, EndpointEntry, { MAX_ENDPOINTS as usize }, NO_PREALLOC> =
    HashMap::new();

#[btf_map(name = "WARREN_EP_V4")]
pub static ENDPOINTS_V4: HashMap<V4, EndpointEntry, { MAX_ENDPOINTS as usize }, NO_PREALLOC> = HashMap::new();

#[btf_map(name = "WARREN_IPC_V4")]
pub static IPCACHE_V4: HashMap<V4, IpcacheEntry, { MAX_IPCACHE as usize }, NO_PREALLOC> = HashMap::new();

#[btf_map(name = "WARREN_LPM_V4")]
pub static IPCACHE_LPM_V4: LpmTrie<V4, IpcacheEntry, { MAX_IPCACHE_LPM as usize }> = LpmTrie::new();

#[btf_map(name = "WARREN_NODES")]
pub static NODES: Array<NodeEntry, { MAX_NODES as usize }> = Array::new();

#[btf_map(name = "WARREN_NODE_V4")]
pub static NODE_BY_ADDRESS_V4: HashMap<V4, u32, { MAX_NODES as usize }, NO_PREALLOC> = HashMap::new();

#[btf_map(name = "WARREN_FLOWS_V4")]
pub static FLOWS_V4: LruHashMap<FlowKey<V4>, FlowEntry, { MAX_FLOWS as usize }> = LruHashMap::new();

#[btf_map(name = "WARREN_FRAGS_V4")]
pub static FRAGMENTS_V4: LruHashMap<FragmentKey<V4>, FragmentPorts, { MAX_FRAGMENTS as usize }> =
    LruHashMap::new();

#[btf_map(name = "WARREN_FRONT_V4")]
pub static FRONTENDS_V4: HashMap<FrontendKey<V4>, FrontendEntry, { MAX_FRONTENDS as usize }, NO_PREALLOC> =
    HashMap::new();

#[btf_map(name = "WARREN_SERVICES")]
pub static SERVICES: Array<ServiceEntry, { MAX_SERVICES as usize }> = Array::new();

#[btf_map(name = "WARREN_SLOTS")]
pub static SLOTS: HashMap<SlotsKey, SlotBlock, { MAX_SLOT_BLOCKS as usize }, NO_PREALLOC> = HashMap::new();

#[btf_map(name = "WARREN_BACK_V4")]
pub static BACKENDS_V4: Array<BackendEntry<V4>, { MAX_BACKENDS as usize }> = Array::new();

#[btf_map(name = "WARREN_SRC_V4")]
pub static SOURCES_LPM_V4: LpmTrie<Source<V4>, u32, { MAX_SOURCES as usize }> = LpmTrie::new();

#[btf_map(name = "WARREN_AFFINITY")]
pub static AFFINITY: LruHashMap<AffinityKey, AffinityEntry, { MAX_AFFINITIES as usize }> = LruHashMap::new();

#[btf_map(name = "WARREN_PORTS")]
pub static SERVICE_PORTS: Array<u64, { SERVICE_PORT_WORDS as usize }> = Array::new();

/// More than there are endpoints: the node has a namespace of its own, and some are about to go.
#[btf_map(name = "WARREN_NETNS")]
pub static NAMESPACES: HashMap<u64, NamespaceEntry, { 2 * MAX_ENDPOINTS as usize }, NO_PREALLOC> =
    HashMap::new();

#[btf_map(name = "WARREN_SOCK_V4")]
pub static SOCKETS_V4: LruHashMap<SocketKey<V4>, SocketEntry<V4>, { MAX_SOCKETS as usize }> =
    LruHashMap::new();

#[btf_map(name = "WARREN_UNMASQ_V4")]
pub static UNMASQUERADED_LPM_V4: LpmTrie<V4, u32, { MAX_UNMASQUERADED as usize }> = LpmTrie::new();

#[btf_map(name = "WARREN_DROP_V4")]
pub static DROPPED_LPM_V4: LpmTrie<V4, u32, { MAX_DROPPED as usize }> = LpmTrie::new();

#[btf_map(name = "WARREN_EPOCHS")]
pub static EPOCHS: Array<u32, { EPOCH_SHARDS as usize }> = Array::new();

#[btf_map(name = "WARREN_COUNTERS")]
pub static COUNTERS: PerCpuArray<Counter, { COUNTER_SLOTS as usize }> = PerCpuArray::new();

#[btf_map(name = "WARREN_EVENTS")]
pub static EVENTS: RingBuf<Event, { EVENT_RING_BYTES as usize }> = RingBuf::new();

#[btf_map(name = "WARREN_BUDGETS")]
pub static BUDGETS: PerCpuArray<Budget, 2> = PerCpuArray::new();
