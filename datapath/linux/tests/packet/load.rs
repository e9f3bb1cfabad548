//! The kernel's verifier takes every program, with room to grow.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use aya::programs::SchedClassifier;
use datapath_linux::object::{Program, SocketProgram, XDP_PROGRAM};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use crate::kernel::kernel_or_skip;

/// The verifier gives up at a million; policy is still to come.
const MAX_VERIFIED_INSTRUCTIONS: u32 = 200_000;

#[test]
fn verifier_takes_every_program() {
    let Some(mut kernel) = kernel_or_skip() else { return };
    for program in Program::ALL {
        let classifier: &mut SchedClassifier = kernel.load(program);
        let info = classifier.info().expect("a loaded program has an id");
        let instructions = info.verified_instruction_count().expect("since Linux 5.16");
        println!("{}: {instructions} verified instructions", program.name());
        assert!(instructions < MAX_VERIFIED_INSTRUCTIONS, "{}: {instructions}", program.name());
    }
    for program in SocketProgram::ALL {
        let info = kernel.load_socket(program);
        let instructions = info.verified_instruction_count().expect("since Linux 5.16");
        println!("{}: {instructions} verified instructions", program.name());
        assert!(instructions < MAX_VERIFIED_INSTRUCTIONS, "{}: {instructions}", program.name());
    }
    let info = kernel.load_xdp().info().expect("a loaded program has an id");
    let instructions = info.verified_instruction_count().expect("since Linux 5.16");
    println!("{XDP_PROGRAM}: {instructions} verified instructions");
    assert!(instructions < MAX_VERIFIED_INSTRUCTIONS, "{XDP_PROGRAM}: {instructions}");
}

/// The verifier gives up when its thread has a signal waiting. Here one comes each millisecond.
#[test]
fn signals_do_not_keep_programs_from_being_loaded() {
    extern "C" fn nothing(_: libc::c_int) {}
    let Some(mut kernel) = kernel_or_skip() else { return };
    // Who does not ask for this signal ignores it: other tests notice nothing.
    let action = SigAction::new(SigHandler::Handler(nothing), SaFlags::SA_RESTART, SigSet::empty());
    // SAFETY: the handler does nothing.
    unsafe { sigaction(Signal::SIGURG, &action) }.expect("a handler");
    // SAFETY: no arguments, cannot fail.
    let loader = unsafe { libc::pthread_self() };
    let is_done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            // Ends by itself where loading fails.
            for _ in 0..20_000 {
                if is_done.load(Ordering::Relaxed) {
                    return;
                }
                // SAFETY: the thread waits for this one, and is there.
                assert_eq!(unsafe { libc::pthread_kill(loader, libc::SIGURG) }, 0);
                thread::sleep(Duration::from_millis(1));
            }
        });
        kernel.load(Program::FromEndpoint);
        is_done.store(true, Ordering::Relaxed);
    });
}

#[test]
fn every_program_asks_for_a_configuration() {
    use crate::{check::*, frame::Frame, world::*};

    for program in Program::ALL {
        let Some(mut kernel) = kernel_or_skip() else { return };
        let frame = Frame::udp(&A, &R, 1000, 2000);
        let direction = direction_of(program);
        // Empty, then of another version.
        for config in [None, Some(datapath_abi::NodeConfig { abi_version: 99, ..CONFIG })] {
            if let Some(config) = config {
                kernel.set(datapath_abi::map_name::CONFIG, &0u32, &config);
            }
            // On the underlay interface nearly everything is the node's own.
            let expected = match program {
                Program::FromNetdev | Program::ToNetdev => Expected::left(&frame.bytes(), direction),
                _ => Expected::dropped(&frame, datapath_abi::DropReason::NotConfigured, direction)
                    .without_addresses()
                    .origin(None),
            };
            check(&mut kernel, program, &frame.bytes(), expected);
        }
    }
}
