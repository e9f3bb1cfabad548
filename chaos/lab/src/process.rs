//! Starting programs inside a lab: in a machine's network namespace and cgroup.
//!
//! Only the network namespace is entered: `ip netns exec` would mount a new `/sys` and hide bpffs.

use std::{
    fs::{File, OpenOptions},
    os::unix::process::{CommandExt, ExitStatusExt},
    path::Path,
    process::{Command, ExitStatus, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::namespace;

/// Makes a command's child process enter a network namespace, and a cgroup if one is given.
///
/// # Errors
/// When either does not exist.
pub fn enter(command: &mut Command, namespace: &str, cgroup: Option<&Path>) -> Result<()> {
    let netns = namespace::open(namespace)?;
    let procs = cgroup
        .map(|folder| {
            let path = folder.join("cgroup.procs");
            OpenOptions::new().write(true).open(&path).with_context(|| format!("open {}", path.display()))
        })
        .transpose()?;
    // SAFETY: between fork and exec the closure makes only raw system calls on descriptors that it owns; it neither
    // allocates nor locks.
    unsafe {
        command.pre_exec(move || enter_here(&netns, procs.as_ref()));
    }
    Ok(())
}

fn enter_here(netns: &File, procs: Option<&File>) -> std::io::Result<()> {
    if let Some(procs) = procs {
        nix::unistd::write(procs, b"0")?;
    }
    nix::sched::setns(netns, nix::sched::CloneFlags::CLONE_NEWNET)?;
    Ok(())
}

/// Starts a program that outlives this one, and appends its output to a file.
///
/// # Errors
/// When the program cannot be started. Later failures show in its log and in what it serves.
pub fn start_daemon(mut command: Command, namespace: &str, cgroup: &Path, log: &Path) -> Result<()> {
    let output = OpenOptions::new()
        .create(true)
        .append(true)
        .open(log)
        .with_context(|| format!("open log {}", log.display()))?;
    enter(&mut command, namespace, Some(cgroup))?;
    // SAFETY: setsid is a raw system call.
    unsafe {
        command.pre_exec(|| nix::unistd::setsid().map(drop).map_err(Into::into));
    }
    command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
    let mut child =
        command.spawn().with_context(|| format!("start {}", command.get_program().to_string_lossy()))?;
    // A child that ends while this program runs is a zombie until it is waited for.
    std::thread::spawn(move || child.wait());
    Ok(())
}

/// Runs a program to its end inside a namespace, and returns its standard output.
///
/// # Errors
/// When the program exits with a code other than 0; the text holds both outputs.
pub fn run(namespace: &str, program: &str, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    enter(&mut command, namespace, None)?;
    let output = command.output().with_context(|| format!("run {program}"))?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("{program} {} in {namespace}: {}: {stdout}{stderr}", arguments.join(" "), output.status);
    }
    Ok(stdout)
}

/// The exit code that a shell would report.
pub fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    u8::try_from(code).unwrap_or(1)
}

/// Sends a signal.
///
/// # Errors
/// When the process is gone.
pub fn signal(pid: i32, signal: nix::sys::signal::Signal) -> Result<()> {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal)
        .with_context(|| format!("send {signal} to process {pid}"))
}
