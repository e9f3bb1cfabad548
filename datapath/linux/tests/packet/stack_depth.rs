//! No chain of calls uses more stack than the oldest supported kernels allow. Computed from the object, as newer
//! kernels may allow more: Linux 6.18 accepted what 6.1 rejected (`combined stack size of 5 calls is 544`).

use std::collections::{BTreeMap, HashSet};

use aya_obj::{Object, generated::bpf_insn};
use datapath_linux::object::{OBJECT, Program, SocketProgram, XDP_PROGRAM};

/// `MAX_BPF_STACK`: the limit of all frames of a call chain together.
const MAX_STACK_BYTES: u64 = 512;
/// Frames are rounded up to this: 32 before Linux 6.8, which rounds to 16 if the JIT does (`round_up_stack_depth` in
/// kernel/bpf/verifier.c).
const FRAME_BYTES: u64 = 32;

const FRAME_POINTER: u8 = 10;
const CALL: u8 = 0x85;
/// In the source register of a call: the callee is a function of the program, not a helper (BPF_PSEUDO_CALL).
const OWN_FUNCTION: u8 = 1;
const MOVE: u8 = 0xbf;
const ADD_CONSTANT: u8 = 0x07;
/// Mask of an instruction's class, and the classes that access memory: BPF_LDX, BPF_ST, BPF_STX.
const CLASS: u8 = 0x07;
const MEMORY: [u8; 3] = [1, 2, 3];
const LOADS: u8 = 1;

/// A function of a linked program.
#[derive(Default)]
struct Frame {
    bytes: u64,
    calls: HashSet<usize>,
}

/// The functions of a program by their first instruction; the main function is at 0.
fn frames(code: &[bpf_insn]) -> BTreeMap<usize, Frame> {
    let target = |at: usize| {
        let is_call = code[at].code == CALL && code[at].src_reg() == OWN_FUNCTION;
        is_call.then(|| (at as i64 + i64::from(code[at].imm) + 1) as usize)
    };
    let mut frames: BTreeMap<usize, Frame> =
        (0..code.len()).filter_map(target).chain([0]).map(|start| (start, Frame::default())).collect();
    for at in 0..code.len() {
        let (_, frame) = frames.range_mut(..=at).next_back().expect("the program begins at 0");
        frame.calls.extend(target(at));
        frame.bytes = frame.bytes.max(depth(code, at));
    }
    frames
}

/// How far below the frame pointer an instruction reaches: by a memory access, or by computing an address.
fn depth(code: &[bpf_insn], at: usize) -> u64 {
    let one = &code[at];
    let class = one.code & CLASS;
    let base = if class == LOADS { one.src_reg() } else { one.dst_reg() };
    let offset = if MEMORY.contains(&class) && base == FRAME_POINTER {
        i64::from(one.off)
    } else if at > 0 && one.code == ADD_CONSTANT {
        let before = &code[at - 1];
        let is_address =
            before.code == MOVE && before.src_reg() == FRAME_POINTER && before.dst_reg() == one.dst_reg();
        if is_address { i64::from(one.imm) } else { 0 }
    } else {
        0
    };
    offset.min(0).unsigned_abs()
}

/// The call chain that uses most stack: bytes of all its frames rounded up, and the bytes of each frame.
fn deepest(frames: &BTreeMap<usize, Frame>, start: usize) -> (u64, Vec<u64>) {
    let frame = &frames[&start];
    let below = frame.calls.iter().map(|called| deepest(frames, *called)).max().unwrap_or_default();
    let own = frame.bytes.max(1).next_multiple_of(FRAME_BYTES);
    (own + below.0, [vec![frame.bytes], below.1].concat())
}

#[test]
fn stack_of_every_program_fits_old_kernels() {
    let mut object = Object::parse(OBJECT).expect("the object parses");
    let sections = object.functions.keys().map(|(section, _)| *section).collect();
    object.relocate_calls(&sections).expect("the object links");
    let at_sockets = SocketProgram::ALL.iter().map(|program| program.name());
    for program in Program::ALL.iter().map(|program| program.name()).chain(at_sockets).chain([XDP_PROGRAM]) {
        let key = object.programs[program].function_key();
        let frames = frames(&object.functions[&key].instructions);
        let (bytes, chain) = deepest(&frames, 0);
        println!("{program}: {bytes} bytes, {chain:?}");
        let is_small = program.starts_with("sock_") || program == XDP_PROGRAM;
        assert!(is_small || chain.len() > 1, "{program}: its calls are found");
        assert!(bytes <= MAX_STACK_BYTES, "{program}: {bytes} bytes in frames of {chain:?}");
    }
}
