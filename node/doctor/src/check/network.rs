//! The node's network: sysctls, the tunnel's port, device names.

use crate::{finding::Finding, gather::Machine};

/// The devices that `datapath-linux` makes once per node; the last one is the tunnel's.
const DEVICES: [&str; 3] = ["warren_host", "warren_net", "warren_vxlan"];
/// The prefixes of the names of Warren's devices: those of the node, and those of endpoints.
const NODE_PREFIX: &str = "warren_";
const ENDPOINT_PREFIX: &str = "wrn";

pub(super) fn ip_forward(machine: &Machine) -> Finding {
    const CHECK: &str = "ip-forward";
    let Some(value) = machine.ip_forward.as_deref().map(str::trim) else {
        return Finding::unknown(
            CHECK,
            "/proc/sys/net/ipv4/ip_forward cannot be read",
            "mount -t proc proc /proc",
        );
    };
    match value {
        "0" if has_device(machine, "warren_host") => Finding::fail(
            CHECK,
            "net.ipv4.ip_forward is 0: another program turned it off after warrend had turned it on",
            "sysctl -w net.ipv4.ip_forward=1; grep -r ip_forward /etc/sysctl.conf /etc/sysctl.d",
        ),
        "0" => Finding::ok(CHECK, "net.ipv4.ip_forward is 0; warrend turns it on"),
        _ => Finding::ok(CHECK, "on"),
    }
}

/// The kernel uses the greater of `all` and the device's own value, where 1 is strict and 2 loose
/// (Documentation/networking/ip-sysctl.rst). Devices of endpoints have no address, and no route to the endpoint leads back
/// through them, so that loose drops as much as strict. `warrend` moves the value of `all` to the devices of others.
pub(super) fn rp_filter(machine: &Machine) -> Finding {
    const CHECK: &str = "rp-filter";
    let number = |value: &String| value.trim().parse::<u32>().ok();
    let Some(all) = machine.rp_filter.get("all").and_then(number) else {
        return Finding::unknown(
            CHECK,
            "/proc/sys/net/ipv4/conf/all/rp_filter cannot be read",
            "mount -t proc proc /proc",
        );
    };
    if all != 0 && !has_device(machine, "warren_host") {
        return Finding::ok(
            CHECK,
            format!("net.ipv4.conf.all.rp_filter is {all}; warrend moves the value to the devices of others"),
        );
    }
    if all != 0 {
        return Finding::fail(
            CHECK,
            format!(
                "net.ipv4.conf.all.rp_filter is {all}: it overrules the 0 of Warren's devices, and packets from pods to the world are dropped"
            ),
            "sysctl -w net.ipv4.conf.all.rp_filter=0; echo net.ipv4.conf.all.rp_filter=0 > /etc/sysctl.d/90-warren-rp-filter.conf",
        );
    }
    let strict: Vec<&str> = (machine.rp_filter.iter())
        .filter(|(device, value)| is_ours(device) && number(value).unwrap_or(0) != 0)
        .map(|(device, _)| device.as_str())
        .collect();
    if strict.is_empty() {
        return Finding::ok(CHECK, "off for all and for Warren's devices");
    }
    let devices = strict.join(" ");
    Finding::fail(
        CHECK,
        format!("on for {devices}: packets from pods to the world are dropped"),
        format!(
            "for d in {devices}; do sysctl -w net.ipv4.conf.$d.rp_filter=0; done; grep -r rp_filter /etc/sysctl.d"
        ),
    )
}

/// Whether the tunnel's port is in use by `warren_vxlan`, or free, if a tunnel is configured.
pub(super) fn tunnel_port(machine: &Machine, port: u16, tunnel: bool) -> Finding {
    const CHECK: &str = "tunnel-port";
    if !tunnel {
        return Finding::ok(CHECK, "not used: datapath.mode is native");
    }
    if machine.udp.is_empty() {
        return Finding::unknown(CHECK, "/proc/net/udp cannot be read", "mount -t proc proc /proc");
    }
    if has_device(machine, "warren_vxlan") {
        return Finding::ok(CHECK, format!("UDP {port} is in use by warren_vxlan"));
    }
    match machine.udp.iter().flat_map(|table| table.lines()).find_map(|line| socket_user(line, port)) {
        None => Finding::ok(CHECK, format!("UDP {port} is free")),
        Some(user) => Finding::fail(
            CHECK,
            format!("UDP {port} is in use by a socket of user {user}: warren_vxlan cannot be created"),
            format!(
                "stop the program (ss -ulpn sport = :{port}) or delete the tunnel device (ip -d link show type vxlan) that uses it, or choose another fleet.tunnel_port before the fleet is created"
            ),
        ),
    }
}

/// The user whose socket has the port, from a line of `/proc/net/udp`: number, local address and port in hexadecimal, remote
/// ones, state, queues, timer, retransmits, user. Sockets of tunnel devices have user 0.
fn socket_user(line: &str, port: u16) -> Option<&str> {
    let mut words = line.split_whitespace().skip(1);
    let local_port = words.next()?.rsplit_once(':')?.1;
    if u16::from_str_radix(local_port, 16) != Ok(port) {
        return None;
    }
    words.nth(5)
}

/// Whether the node has all of Warren's devices or none, and no other device has such a name.
pub(super) fn devices(machine: &Machine, tunnel: bool) -> Finding {
    const CHECK: &str = "devices";
    let wanted = if tunnel { &DEVICES[..] } else { &DEVICES[..2] };
    if machine.devices.is_none() {
        return Finding::unknown(CHECK, "/proc/net/dev cannot be read", "mount -t proc proc /proc");
    }
    let (ours, foreign): (Vec<&str>, Vec<&str>) = device_names(machine)
        .filter(|name| name.starts_with(NODE_PREFIX))
        .partition(|name| DEVICES.contains(name));
    if let Some(first) = foreign.first() {
        return Finding::warn(
            CHECK,
            format!("not Warren's, but named like its devices: {}", foreign.join(" ")),
            format!("ip link set {first} down && ip link set {first} name other0"),
        );
    }
    match ours.len() {
        0 => Finding::ok(CHECK, "none yet, and no other device has their names"),
        count if count < wanted.len() => Finding::warn(
            CHECK,
            format!("only {} of {}", ours.join(" "), wanted.join(" ")),
            "start warrend, which creates the missing ones; to remove the others: warrend cleanup",
        ),
        _ => Finding::ok(CHECK, ours.join(" ")),
    }
}

fn is_ours(device: &str) -> bool {
    DEVICES.contains(&device) || device.starts_with(ENDPOINT_PREFIX)
}

fn has_device(machine: &Machine, name: &str) -> bool {
    device_names(machine).any(|device| device == name)
}

/// The names in `/proc/net/dev`: the words before a colon, which the heading does not have.
fn device_names(machine: &Machine) -> impl Iterator<Item = &str> {
    let lines = machine.devices.iter().flat_map(|text| text.lines());
    lines.filter_map(|line| Some(line.split_once(':')?.0.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        check::expect::expect,
        finding::Verdict::{Fail, Ok, Unknown, Warn},
    };

    fn with_devices(names: &[&str]) -> Machine {
        let heading = "Inter-|   Receive\n face |bytes\n".to_owned();
        let devices = names.iter().fold(heading, |text, name| text + &format!("  {name}: 0 0 0\n"));
        Machine { devices: Some(devices), ..Machine::default() }
    }

    #[test]
    fn ip_forward_is_turned_on_by_the_agent() {
        let check = |value: &str, devices: &[&str], verdict, seen, remedy| {
            let machine = Machine { ip_forward: Some(value.to_owned()), ..with_devices(devices) };
            expect(ip_forward(&machine), verdict, seen, remedy);
        };
        check("1\n", &["lo"], Ok, "on", "");
        check("0\n", &["lo"], Ok, "warrend turns it on", "");
        check("0\n", &["lo", "warren_host"], Fail, "turned it off", "sysctl -w net.ipv4.ip_forward=1");
        expect(ip_forward(&Machine::default()), Unknown, "ip_forward", "mount");
    }

    #[test]
    fn rp_filter_is_the_greater_of_all_and_the_devices() {
        let check = |values: &[(&str, &str)], verdict, seen, remedy| {
            let ours: Vec<&str> = values.iter().map(|(name, _)| *name).chain(["warren_host"]).collect();
            let own = |(device, value): &(&str, &str)| ((*device).to_owned(), (*value).to_owned());
            let rp_filter_of = values.iter().map(own).collect();
            expect(
                rp_filter(&Machine { rp_filter: rp_filter_of, ..with_devices(&ours) }),
                verdict,
                seen,
                remedy,
            );
        };
        check(&[("all", "0\n"), ("eth0", "1\n"), ("wrn1", "0\n")], Ok, "off for all", "");
        check(&[("all", "2\n"), ("wrn1", "0\n")], Fail, "is 2: it overrules", "all.rp_filter=0");
        check(&[("all", "0\n"), ("wrn1", "2\n")], Fail, "on for wrn1", "for d in wrn1; do");
        check(&[("all", "1\n"), ("wrn1", "0\n")], Fail, "overrules", "all.rp_filter=0");
        check(&[("all", "0"), ("wrn1", "1"), ("wrn2", "1")], Fail, "wrn1 wrn2", "for d in wrn1 wrn2; do");
        check(&[("eth0", "1")], Unknown, "cannot be read", "mount");
        let strict = [("all".to_owned(), "1\n".to_owned())].into();
        let before_start = Machine { rp_filter: strict, ..with_devices(&["lo"]) };
        expect(rp_filter(&before_start), Ok, "is 1; warrend moves the value", "");
    }

    #[test]
    fn tunnel_port_is_free_or_used_by_the_tunnel() {
        const HEADING: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops\n";
        let line = |port: &str, user: u32| {
            format!(
                "{HEADING}  1: 00000000:{port} 00000000:0000 07 00000000:00000000 00:00000000 00000000 {user} 0 99 2 0 0\n"
            )
        };
        let check = |table: String, devices: &[&str], verdict, seen, remedy| {
            let machine = Machine { udp: vec![HEADING.to_owned(), table], ..with_devices(devices) };
            expect(tunnel_port(&machine, 8472, true), verdict, seen, remedy);
        };
        check(line("2118", 0), &["warren_vxlan"], Ok, "in use by warren_vxlan", "");
        check(line("2119", 0), &["lo"], Ok, "UDP 8472 is free", "");
        check(line("2118", 0), &["flannel.1"], Fail, "user 0", "ip -d link show type vxlan");
        check(line("2118", 1000), &["lo"], Fail, "a socket of user 1000", "ss -ulpn sport = :8472");
        expect(tunnel_port(&with_devices(&[]), 8472, true), Unknown, "/proc/net/udp", "mount");
        expect(tunnel_port(&with_devices(&[]), 8472, false), Ok, "native", "");
    }

    #[test]
    fn device_names_are_warrens_or_others() {
        let check = |names: &[&str], verdict, seen, remedy| {
            expect(devices(&with_devices(names), true), verdict, seen, remedy);
        };
        check(&["lo", "eth0"], Ok, "none yet", "");
        check(&["lo", "warren_host", "warren_net", "warren_vxlan", "wrn1"], Ok, "warren_host warren_net", "");
        check(&["warren_host", "warren_net"], Warn, "only warren_host warren_net of", "start warrend");
        check(
            &["warren_br0", "lo"],
            Warn,
            "named like its devices: warren_br0",
            "ip link set warren_br0 down",
        );
        expect(devices(&Machine::default(), true), Unknown, "/proc/net/dev", "mount");
        expect(devices(&with_devices(&["warren_host", "warren_net"]), false), Ok, "warren_net", "");
    }
}
