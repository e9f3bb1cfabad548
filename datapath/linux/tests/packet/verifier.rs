//! The kernel's verifier accepts every program, with room to grow.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use aya::programs::{ProgramInfo, SchedClassifier};
use datapath_abi::{DropReason, NodeConfig};
use datapath_linux::object::{Program, SocketProgram, XDP_PROGRAM};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use crate::{
    check::check,
    expected::Expected,
    frame::Frame,
    kernel::kernel_or_skip,
    world::{A, CONFIG, R, configure},
};

/// The verifier's limit is a million; policy is still to come.
const MAX_VERIFIED_INSTRUCTIONS: u32 = 200_000;

#[test]
fn verifier_accepts_every_program() {
    let Some(mut kernel) = kernel_or_skip() else { return };
    for program in Program::ALL {
        let classifier: &mut SchedClassifier = kernel.load(program);
        check_complexity(program.name(), &classifier.info().expect("a loaded program has an id"));
    }
    for program in SocketProgram::ALL {
        check_complexity(program.name(), &kernel.load_socket(program));
    }
    check_complexity(XDP_PROGRAM, &kernel.load_xdp().info().expect("a loaded program has an id"));
}

#[track_caller]
fn check_complexity(program: &str, info: &ProgramInfo) {
    let instructions = info.verified_instruction_count().expect("since Linux 5.16");
    println!("{program}: {instructions} verified instructions");
    assert!(instructions < MAX_VERIFIED_INSTRUCTIONS, "{program}: {instructions}");
}

/// The verifier aborts when its thread has a signal pending. In this test a signal comes each millisecond.
#[test]
fn program_loading_survives_signals() {
    extern "C" fn nothing(_: libc::c_int) {}
    let Some(mut kernel) = kernel_or_skip() else { return };
    // The default action of this signal is to be ignored: other tests are not affected.
    let action = SigAction::new(SigHandler::Handler(nothing), SaFlags::SA_RESTART, SigSet::empty());
    // SAFETY: the handler does nothing.
    unsafe { sigaction(Signal::SIGURG, &action) }.expect("a handler");
    // SAFETY: no arguments, cannot fail.
    let loader = unsafe { libc::pthread_self() };
    let is_done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            // Ends by itself if loading fails.
            for _ in 0..20_000 {
                if is_done.load(Ordering::Relaxed) {
                    return;
                }
                // SAFETY: the loading thread waits for this one, so it exists.
                assert_eq!(unsafe { libc::pthread_kill(loader, libc::SIGURG) }, 0);
                thread::sleep(Duration::from_millis(1));
            }
        });
        kernel.load(Program::FromEndpoint);
        is_done.store(true, Ordering::Relaxed);
    });
}

#[test]
fn program_without_a_configuration_drops_all_but_underlay_packets() {
    for program in Program::ALL {
        let Some(mut kernel) = kernel_or_skip() else { return };
        let frame = Frame::udp(&A, &R, 1000, 2000);
        // No configuration, then one of another ABI version.
        for config in [None, Some(NodeConfig { abi_version: 99, ..CONFIG })] {
            if let Some(config) = config {
                configure(&mut kernel, config);
            }
            // Most packets at the underlay device are the host's own.
            let expected = match program {
                Program::FromNetdev | Program::ToNetdev => Expected::unspec(&frame),
                _ => Expected::dropped(&frame, DropReason::NotConfigured).without_addresses(),
            };
            check(&mut kernel, program, &frame, expected);
        }
    }
}
