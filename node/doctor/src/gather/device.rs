//! The MTU of a device, by ioctl(2): `/sys/class/net` belongs to the mount namespace, and may show the devices of another
//! network namespace.

use std::{
    ffi::c_char,
    mem,
    os::{fd::AsRawFd, unix::net::UnixDatagram},
};

/// The MTU of a device in the caller's network namespace, in bytes, by `SIOCGIFMTU` (netdevice(7)). `None` if
/// there is no such device.
pub(crate) fn mtu_bytes(device: &str) -> Option<u32> {
    // SAFETY: `ifreq` is plain bytes and a union of integers, for which all bits zero is a value.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    // The last byte stays zero, as the name is terminated by zero.
    let room = request.ifr_name.len() - 1;
    if device.len() > room {
        return None;
    }
    for (to, from) in request.ifr_name.iter_mut().zip(device.bytes()) {
        *to = from as c_char;
    }
    let socket = UnixDatagram::unbound().ok()?;
    // SAFETY: the descriptor is open as long as `socket` lives; the kernel reads and writes one `ifreq` through
    // the pointer, which has no other reference, and does not keep it.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFMTU as _, &mut request) };
    if result != 0 {
        return None;
    }
    // SAFETY: after a success the kernel has written the union's `ifru_mtu`.
    let mtu = unsafe { request.ifr_ifru.ifru_mtu };
    u32::try_from(mtu).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mtu_of_the_loopback_device_and_of_none() {
        assert!(mtu_bytes("lo").is_some_and(|mtu_bytes| mtu_bytes >= 1_280));
        assert_eq!(mtu_bytes("no-such-device"), None);
        assert_eq!(mtu_bytes("a-name-longer-than-any-device"), None);
    }
}
