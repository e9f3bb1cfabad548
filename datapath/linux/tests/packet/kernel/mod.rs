//! The kernel side of a packet test: loaded programs, their maps, and test runs.

mod maps;

use std::{
    sync::{LazyLock, Mutex, PoisonError},
    time::Duration,
};

use aya::{
    Ebpf, EbpfError, EbpfLoader, TestRun,
    maps::ProgramArray,
    programs::{ProgramFd, ProgramInfo, SchedClassifier, TestRunOptions, Xdp, XdpMode},
};
use datapath_abi::{V4, map_name};
use datapath_linux::object::{self, OBJECT, Program, SocketProgram, XDP_PROGRAM};

/// Verdicts of classifiers (`linux/pkt_cls.h`).
pub const TC_ACT_UNSPEC: u32 = -1_i32 as u32;
pub const TC_ACT_OK: u32 = 0;
pub const TC_ACT_SHOT: u32 = 2;
pub const TC_ACT_REDIRECT: u32 = 7;
/// Verdicts of XDP programs (`linux/bpf.h`).
pub const XDP_DROP: u32 = 1;
pub const XDP_PASS: u32 = 2;
pub const XDP_TX: u32 = 3;

/// Programs that only tests load: `datapath/ebpf/src/test.rs`.
static TEST_OBJECT: &[u8] = aya::include_bytes_aligned!(env!("WARREN_BPF_TEST_OBJECT"));

/// Where `struct __sk_buff` has `ingress_ifindex` and `cb`, and its size.
const INGRESS_OFFSET: usize = 36;
const CB_OFFSET: usize = 48;
const SK_BUFF_BYTES: usize = 192;
/// Where `struct xdp_md` has `data_end` and `ingress_ifindex`, and its size.
const DATA_END_OFFSET: usize = 4;
const INGRESS_XDP_OFFSET: usize = 12;
const XDP_MD_BYTES: usize = 24;
/// Bytes by which a program may lengthen a packet.
const HEADROOM: usize = 256;

/// Entries of most maps: each test creates all maps, and many tests run at once.
const SMALL_MAP: u32 = 256;

/// Programs and maps of one test.
pub struct Kernel {
    ebpf: Ebpf,
    test: Ebpf,
    /// `ingress_ifindex` of the packets of test runs: where they entered the node, 0 for its own.
    pub ingress_ifindex: u32,
}

/// The origin in a tunnel packet's outer headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// The VNI.
    pub identity: u32,
    /// The sending node.
    pub underlay: V4,
}

/// The result of a test run.
#[derive(Debug, PartialEq, Eq)]
pub struct Ran {
    pub code: u32,
    pub bytes: Vec<u8>,
}

/// What a program can be run on.
pub trait Packet {
    fn to_bytes(&self) -> Vec<u8>;
}

impl Packet for [u8] {
    fn to_bytes(&self) -> Vec<u8> {
        self.to_vec()
    }
}

impl Packet for Vec<u8> {
    fn to_bytes(&self) -> Vec<u8> {
        self.clone()
    }
}

/// A kernel with empty maps; `None`, with the reason printed, if BPF cannot be used.
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

/// Loads with one loader per process: a new one would parse the BTF of the whole kernel again.
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
            loader.map_max_entries(name, SMALL_MAP);
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

    /// Loads a socket program; returns the kernel's information about it.
    pub fn load_socket(&mut self, program: SocketProgram) -> ProgramInfo {
        let loaded = self.ebpf.program_mut(program.name()).expect("the object has the program");
        object::load_socket(loaded).unwrap_or_else(|error| panic!("{}: {error}", program.name()));
        loaded.info().expect("it is loaded")
    }

    /// The XDP program, loaded.
    pub fn load_xdp(&mut self) -> &mut Xdp {
        let program = self.ebpf.program_mut(XDP_PROGRAM).expect("the object has the program");
        let program: &mut Xdp = program.try_into().expect("it is of that kind");
        if program.fd().is_err() {
            object::load_xdp(program).unwrap_or_else(|error| panic!("{XDP_PROGRAM}: {error:#?}"));
        }
        program
    }

    /// Attaches the XDP program to a veth: a test run may only name a device that has an XDP program.
    pub fn attach_xdp(&mut self, ifindex: u32) {
        self.load_xdp().attach_to_if_index(ifindex, XdpMode::Driver).expect("a veth can");
    }

    /// Runs the XDP program on a frame that comes in at a device with the program attached.
    pub fn run_xdp(&mut self, frame: &(impl Packet + ?Sized), ifindex: u32) -> Ran {
        let frame = &frame.to_bytes();
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

    /// The time of one run of the XDP program.
    pub fn time_xdp(&mut self, frame: &[u8], ifindex: u32) -> Duration {
        time_xdp(self.load_xdp(), frame, ifindex)
    }

    /// The time of one run of an XDP program that does nothing.
    pub fn time_nothing_xdp(&mut self, frame: &[u8], ifindex: u32) -> Duration {
        let program = self.test.program_mut("nothing_early").expect("in the test object");
        let program: &mut Xdp = program.try_into().expect("it is of that kind");
        if program.fd().is_err() {
            object::load_xdp(program).expect("it loads");
        }
        time_xdp(program, frame, ifindex)
    }

    /// Runs a program on a packet; with a tunnel, as a packet that comes out of it.
    pub fn run(&mut self, program: Program, packet: &(impl Packet + ?Sized), tunnel: Option<Tunnel>) -> Ran {
        let packet = &packet.to_bytes();
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

    /// Runs a program on the same packet many times (a run sees the edits of the runs before it), and returns the
    /// mean time of a run.
    pub fn time(&mut self, program: Program, packet: &[u8], tunnel: Option<Tunnel>, times: u32) -> Duration {
        time(self.classifier(program, tunnel), packet, tunnel, times)
    }

    /// The mean time of a classifier that does nothing: the cost of measuring.
    pub fn time_nothing(&mut self, packet: &[u8], tunnel: Option<Tunnel>, times: u32) -> Duration {
        let nothing =
            load(&mut self.test, "nothing").fd().expect("loaded").try_clone().expect("a descriptor");
        let classifier = match tunnel {
            None => load(&mut self.test, "nothing"),
            Some(_) => self.wrap(nothing, "through_tunnel"),
        };
        time(classifier, packet, tunnel, times)
    }

    /// Runs a program and returns the tunnel key that it set on the packet.
    pub fn run_for_tunnel_key(&mut self, program: Program, packet: &(impl Packet + ?Sized)) -> Tunnel {
        let packet = &packet.to_bytes();
        let mut context = [0u8; SK_BUFF_BYTES];
        let mut options = TestRunOptions::new();
        options.data_in = Some(packet);
        options.ctx_in = Some(&[0u8; SK_BUFF_BYTES]);
        options.ctx_out = Some(&mut context);
        // The first run is the program's, the second one reads the key that the program left on the packet.
        options.repeat = 2;
        let fd = self.fd(program);
        self.wrap(fd, "then_tunnel_key").test_run(options).expect("BPF_PROG_TEST_RUN");
        let word = |index: usize| {
            let bytes = &context[CB_OFFSET + 4 * index..][..4];
            u32::from_ne_bytes(bytes.try_into().expect("4 bytes"))
        };
        Tunnel { identity: word(1), underlay: word(2).to_be_bytes() }
    }

    /// The program; for a tunnel packet, the wrapper that sets the tunnel key and tail-calls the program.
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

    /// A program of the test object that tail-calls the given one.
    fn wrap(&mut self, inner: ProgramFd, wrapper: &str) -> &SchedClassifier {
        let map = self.test.map_mut("TEST_PROGRAMS").expect("in the test object");
        let mut programs = ProgramArray::try_from(map).expect("a program array");
        programs.set(0, &inner, 0).expect("a slot");
        load(&mut self.test, wrapper)
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
