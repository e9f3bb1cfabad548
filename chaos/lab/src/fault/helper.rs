//! Faults that need a process as long as they are active: a flapping link, delayed packets.
//!
//! This kernel has no netem. The bridge drops a delayed packet; the helper has seen it come in, and sends it out of
//! the other port at its time. The copy through user space is slow (some 50,000 packets a second), and the sender's
//! offloads are off meanwhile: delays are for correctness, not for throughput.

use std::{
    fs,
    io::{self, Write},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::PathBuf,
    process::Command,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::sys::socket::{setsockopt, sockopt};

use super::{Fault, Way};
use crate::{
    Lab, cgroup, process,
    spec::{underlay_address, underlay_mac},
    wait::{self, Hopeless},
};

/// What a helper prints when it is ready.
const READY: &str = "ready\n";
/// How long it may take to start.
const READY_LIMIT: Duration = Duration::from_secs(10);
/// Bytes of frames that may wait to be read: 50 ms at a few Gbit/s.
const SOCKET_BUFFER_BYTES: usize = 32 << 20;
/// The longest frame: a segment of the largest MTU in use and its headers.
const FRAME_BYTES: usize = 65_536 + 256;

impl Lab {
    pub(super) fn start_helper(&self, id: u32, fault: &Fault) -> Result<()> {
        let machine = format!("fault{id}");
        let mut command = Command::new(own_program()?);
        command.args([
            "--name",
            self.name().as_str(),
            "helper",
            &id.to_string(),
            &serde_json::to_string(fault)?,
        ]);
        let cgroup = cgroup::create(self.name(), &machine)?;
        let log = self.log_path(&machine);
        if log.exists() {
            fs::remove_file(&log).with_context(|| format!("remove {}", log.display()))?;
        }
        process::start_daemon(command, &self.name().underlay_namespace(), &cgroup, &log)?;
        wait::until(&format!("the helper of fault {id}"), READY_LIMIT, || {
            let text = fs::read_to_string(&log)?;
            if text == READY {
                return Ok(());
            }
            if cgroup::processes(&cgroup)?.is_empty() {
                return Err(Hopeless(format!("it has ended: {text}")).into());
            }
            bail!("it is not ready");
        })
    }

    pub(super) fn stop_helper(&self, id: u32) -> Result<()> {
        cgroup::destroy(&cgroup::lab_folder(self.name())?.join(format!("fault{id}"))).map(drop)
    }
}

/// `warren-lab`: this program, or for a test the one beside or above it.
fn own_program() -> Result<PathBuf> {
    let program = std::env::current_exe()?;
    let mut places = program.ancestors().skip(1).take(2).map(|folder| folder.join("warren-lab"));
    places.find(|path| path.is_file()).context("warren-lab is not beside this program: build it")
}

/// The main function of a helper process, which runs until it is killed.
///
/// # Errors
/// When the kernel refuses what it needs.
pub fn run(lab: &Lab, id: u32, fault: &str) -> Result<()> {
    let fault: Fault = serde_json::from_str(fault).context("decode the fault")?;
    match fault {
        Fault::Flap { way, period } => flap(lab, id, &way, period / 2),
        Fault::Delay { way, delay } => {
            let threads = way
                .pairs()
                .into_iter()
                .map(|(from, to)| carry(from, to, delay))
                .collect::<Result<Vec<_>>>()?;
            print!("{READY}");
            io::stdout().flush()?;
            for thread in threads {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            }
            Ok(())
        }
        other => bail!("{other}: that needs no helper"),
    }
}

fn flap(lab: &Lab, id: u32, way: &Way, half: Duration) -> Result<()> {
    lab.write_flap_rules(id, way)?;
    print!("{READY}");
    io::stdout().flush()?;
    let mut next = Instant::now();
    loop {
        lab.write_flap_rules(id, way)?;
        next += half;
        thread::sleep(next.saturating_duration_since(Instant::now()));
        lab.remove_flap_rules(id)?;
        next += half;
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
}

/// Forwards frames from one port of the bridge to another. One thread receives them, another one sends them at their
/// time.
fn carry(from: &str, to: &str, delay: Duration) -> Result<thread::JoinHandle<Result<()>>> {
    let target = underlay_mac(underlay_address(to));
    let arrivals = packet_socket(from, true)?;
    setsockopt(&arrivals, sockopt::RcvBufForce, &SOCKET_BUFFER_BYTES)?;
    let departures = packet_socket(to, false)?;
    let (sender, receiver) = mpsc::channel::<(Instant, Vec<u8>)>();
    thread::spawn(move || {
        for (due, frame) in receiver {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            // A port that is down or gone loses frames, as a wire would.
            let _lost =
                nix::sys::socket::send(departures.as_raw_fd(), &frame, nix::sys::socket::MsgFlags::empty());
        }
    });
    Ok(thread::spawn(move || {
        let mut buffer = vec![0; FRAME_BYTES];
        loop {
            let Some(length) = receive(&arrivals, &mut buffer)? else { continue };
            if buffer[..length].starts_with(&target) {
                let due = Instant::now() + delay;
                sender.send((due, buffer[..length].to_vec())).context("the sending thread has ended")?;
            }
        }
    }))
}

/// A socket for whole frames on a device of this thread's namespace.
fn packet_socket(device: &str, receives: bool) -> Result<OwnedFd> {
    let index = nix::net::if_::if_nametoindex(device).with_context(|| format!("find port {device}"))?;
    let protocol = if receives { (libc::ETH_P_ALL as u16).to_be() } else { 0 };
    // SAFETY: a plain system call; the result is checked.
    let raw = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol.into()) };
    if raw < 0 {
        return Err(io::Error::last_os_error()).context("make a packet socket");
    }
    // SAFETY: the descriptor is new, and owned by nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(raw) };
    // SAFETY: all zeros is a valid value of this plain structure.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = protocol;
    address.sll_ifindex = index as i32;
    // SAFETY: the address outlives the call, and its size is given.
    let result = unsafe {
        libc::bind(raw, (&raw const address).cast(), size_of::<libc::sockaddr_ll>() as libc::socklen_t)
    };
    if result < 0 {
        return Err(io::Error::last_os_error()).with_context(|| format!("bind a packet socket to {device}"));
    }
    Ok(socket)
}

/// The length of the next frame that came in at the port; `None` for one that went out.
fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> Result<Option<usize>> {
    // SAFETY: all zeros is a valid value of this plain structure.
    let mut from: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    let mut size = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: buffer and address outlive the call, and their sizes are given.
    let length = unsafe {
        libc::recvfrom(
            socket.as_raw_fd(),
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            0,
            (&raw mut from).cast(),
            &raw mut size,
        )
    };
    match usize::try_from(length) {
        Ok(length) => Ok((from.sll_pkttype != libc::PACKET_OUTGOING).then_some(length)),
        Err(_) => {
            let error = io::Error::last_os_error();
            // The port is down, and may come up again.
            if error.raw_os_error() == Some(libc::ENETDOWN) || error.kind() == io::ErrorKind::Interrupted {
                return Ok(None);
            }
            Err(error).context("receive a frame")
        }
    }
}
