//! A network namespace for a test's thread, with routes: programs look up where the kernel would send a packet.

use std::{fs, process::Command};

/// The underlay interface in the namespace: the first one after the loopback device.
pub const UNDERLAY_IFINDEX: u32 = 2;
/// An address that the kernel routes out of another interface than the underlay's.
pub const BEHIND_ANOTHER_DEVICE: [u8; 4] = [198, 18, 0, 9];
/// The node's address on that other interface.
pub const OTHER_ADDRESS: [u8; 4] = [198, 18, 0, 1];
/// An address with an `unreachable` route.
pub const UNREACHABLE: [u8; 4] = [198, 19, 0, 9];

/// Moves the calling thread into a network namespace of its own, which ends with the thread. Call it before anything
/// else: programs, test runs, sockets and routes are then of the same namespace. Returns false, with the reason printed,
/// if the system does not allow it.
pub fn enter() -> bool {
    // SAFETY: no memory is concerned.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        println!("skipped: no network namespace: {}", std::io::Error::last_os_error());
        return false;
    }
    if Command::new("ip").arg("-V").output().is_err() {
        println!("skipped: needs ip (iproute2)");
        return false;
    }
    for line in [
        "link set lo up",
        "link add under0 index 2 type veth peer name under1 index 3",
        "addr add 192.0.2.1/24 dev under0",
        "link set under0 up",
        "link set under1 up",
        "route add default via 192.0.2.254 dev under0",
        "link add other0 index 4 type veth peer name other1 index 5",
        "addr add 198.18.0.1/24 dev other0",
        "link set other0 up",
        "link set other1 up",
        "route add unreachable 198.19.0.0/16",
    ] {
        ip(line);
    }
    // `/proc/sys/net` is that of the thread's namespace.
    fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("forwarding");
    true
}

/// Runs `ip` in the calling thread's namespace.
pub fn ip(line: &str) {
    let output = Command::new("ip").args(line.split(' ')).output().expect("run ip");
    assert!(output.status.success(), "ip {line}: {}", String::from_utf8_lossy(&output.stderr));
}
