//! The base: the node's devices, the configuration map, the networks that are treated apart, and the programs at the
//! node's devices, at the underlay's and at sockets.

use datapath_abi::{ABI_VERSION, NodeConfig, node_flags};
use datapath_plan::{Base, BaseUnderlay, HostRouting, Masquerade, Mode, Single};
use ipnetwork::IpNetwork;

use super::{Answer, KernelTable, Observation, Progress, lpm_key, network, networks, set_networks, v4};
use crate::{
    datapath::Datapath,
    device::{self, BaseDevices, HOST_DEVICE, NET_DEVICE, VXLAN_DEVICE},
    error::DatapathError,
    hook::{UNDERLAY_PROGRAMS, programs_of},
    sysctl,
};

impl KernelTable for Base {
    async fn put(datapath: &mut Datapath, rows: &[(Single, &Self)], _: &Progress<'_>) -> Vec<Answer> {
        let mut answers = Vec::with_capacity(rows.len());
        for (_, base) in rows {
            answers.push(make(datapath, base).await);
        }
        answers
    }

    /// No plan removes the base: everything stands on it. [`crate::cleanup`] takes it away.
    async fn delete(_: &mut Datapath, keys: &[Single]) -> Vec<Answer> {
        let refuse = |_| Err(DatapathError::Unsupported("the base cannot be removed".into()));
        keys.iter().map(refuse).collect()
    }

    async fn observe(datapath: &mut Datapath, observation: &mut Observation) -> Answer {
        let Observation { observed, links, base } = observation;
        *base = read(datapath).await?;
        match base {
            None if links.iter().any(|link| link.is_ours() && link.endpoint().is_none()) => {
                observed.broken.push("base: devices or configuration are there in part, or differ".into());
            }
            None => {}
            Some((base, devices)) => {
                let before = observed.broken.len();
                check(datapath, base, devices, &mut observed.broken).await?;
                if observed.broken.len() == before {
                    observed.tables.base = Some(base.clone());
                }
            }
        }
        Ok(())
    }
}

async fn make(datapath: &mut Datapath, base: &Base) -> Answer {
    let gateway_v4 = v4(base.gateway)?;
    let underlay_v4 = v4(base.underlay.address)?;
    let devices = device::prepare_base(&datapath.netlink, base).await?;
    // Nothing of IPv6 is masqueraded.
    let excluded = base.masquerade.iter().flat_map(|masquerade| &masquerade.exclude);
    let excluded = excluded.filter_map(|prefix| match prefix {
        IpNetwork::V4(network) => Some(network),
        IpNetwork::V6(_) => None,
    });
    set_networks(&datapath.maps.unmasqueraded_lpm_v4, excluded)?;
    set_networks(&datapath.maps.dropped_lpm_v4, datapath.config.dropped_networks().iter())?;
    let (first_port, last_port) =
        base.masquerade.as_ref().map_or((0, 0), |masquerade| (masquerade.first_port, masquerade.last_port));
    let config = NodeConfig {
        abi_version: ABI_VERSION,
        flags: flags(base),
        host_ifindex: devices.host.index,
        net_ifindex: devices.net.index,
        vxlan_ifindex: devices.vxlan.as_ref().map_or(0, |vxlan| vxlan.index),
        underlay_ifindex: base.underlay.ifindex,
        gateway_v4,
        underlay_v4,
        pod_mtu_bytes: base.mtu_bytes,
        underlay_mtu_bytes: base.underlay.mtu_bytes,
        tunnel_port: base.tunnel_port,
        masquerade_port_min: first_port,
        masquerade_port_max: last_port,
        host_mac: devices.host.mac.map_or([0; 6], |mac| mac.0),
    };
    // Written before the programs are attached: without it they drop.
    datapath.maps.config.put(&0, &config)?;
    datapath.hooks.attach(HOST_DEVICE)?;
    // When the device is gone, the watch reports it, and another underlay will be wanted.
    if let Some(underlay) = datapath.netlink.link_at(base.underlay.ifindex).await? {
        datapath.hooks.attach_underlay(&datapath.netlink, &underlay.name).await?;
        datapath.attach_xdp_to_underlay(&underlay);
    }
    datapath.sockets.repair(&mut datapath.hooks, &datapath.maps);
    match devices.vxlan {
        Some(_) => datapath.hooks.attach(VXLAN_DEVICE),
        // Last: until here packets could still go by the tunnel.
        None => {
            datapath.hooks.detach(VXLAN_DEVICE)?;
            device::remove_vxlan(&datapath.netlink).await
        }
    }
}

fn flags(base: &Base) -> u32 {
    let native = if base.mode == Mode::Native { node_flags::NATIVE } else { 0 };
    let legacy = if base.host_routing == HostRouting::Legacy { node_flags::LEGACY_HOST_ROUTING } else { 0 };
    let masquerade = if base.masquerade.is_some() { node_flags::MASQUERADE } else { 0 };
    native | legacy | masquerade
}

/// The base that the kernel holds, if its devices and its configuration agree.
async fn read(datapath: &Datapath) -> Result<Option<(Base, BaseDevices)>, DatapathError> {
    let Some(config) = datapath.maps.config.get(&0)? else { return Ok(None) };
    let mode = if config.flags & node_flags::NATIVE == 0 { Mode::Tunnel } else { Mode::Native };
    let mut links = Vec::new();
    for name in [HOST_DEVICE, NET_DEVICE, VXLAN_DEVICE] {
        match datapath.netlink.link(name).await? {
            Some(link) if link.is_ours() && link.up => links.push(Some(link)),
            None if !device::names(mode).contains(&name) => links.push(None),
            _ => return Ok(None),
        }
    }
    let Ok([Some(host), Some(net), vxlan]) = <[_; 3]>::try_from(links) else { return Ok(None) };
    let base = base_of(&config, mode, networks(&datapath.maps.unmasqueraded_lpm_v4)?);
    let agree = config.host_ifindex == host.index
        && config.net_ifindex == net.index
        && config.vxlan_ifindex == vxlan.as_ref().map_or(0, |vxlan| vxlan.index)
        && vxlan.as_ref().is_none_or(|vxlan| vxlan.port == base.tunnel_port)
        && Some(config.host_mac) == host.mac.map(|mac| mac.0)
        && [Some(&host), Some(&net), vxlan.as_ref()]
            .into_iter()
            .flatten()
            .all(|link| link.mtu_bytes == base.mtu_bytes);
    Ok(agree.then_some((base, BaseDevices { host, net, vxlan })))
}

/// The base that was written as this configuration.
fn base_of(config: &NodeConfig, mode: Mode, exclude: Vec<IpNetwork>) -> Base {
    Base {
        gateway: config.gateway_v4.into(),
        tunnel_port: config.tunnel_port,
        mtu_bytes: config.pod_mtu_bytes,
        mode,
        host_routing: match config.flags & node_flags::LEGACY_HOST_ROUTING {
            0 => HostRouting::Bpf,
            _ => HostRouting::Legacy,
        },
        underlay: BaseUnderlay {
            ifindex: config.underlay_ifindex,
            address: config.underlay_v4.into(),
            mtu_bytes: config.underlay_mtu_bytes,
        },
        masquerade: (config.flags & node_flags::MASQUERADE != 0).then(|| Masquerade {
            first_port: config.masquerade_port_min,
            last_port: config.masquerade_port_max,
            exclude: exclude.into_iter().collect(),
        }),
    }
}

/// Names everything of a base that is not as it was made.
async fn check(datapath: &Datapath, base: &Base, devices: &BaseDevices, broken: &mut Vec<String>) -> Answer {
    if datapath.netlink.addresses(devices.host.index).await? != [IpNetwork::from(base.gateway)] {
        broken.push(format!("{HOST_DEVICE}: its address is not {}", base.gateway));
    }
    if sysctl::filters_all_reverse_paths()? {
        broken
            .push("net.ipv4.conf.all.rp_filter is not 0: endpoints' packets to the stack are dropped".into());
    }
    let mut dropped = networks(&datapath.maps.dropped_lpm_v4)?;
    let wanted = datapath.config.dropped_networks().iter();
    let mut wanted: Vec<IpNetwork> = wanted.filter_map(|wanted| network(&lpm_key(*wanted))).collect();
    dropped.sort_unstable();
    wanted.sort_unstable();
    wanted.dedup();
    if dropped != wanted {
        broken.push("xdp: the networks that are dropped are not those of the configuration".into());
    }
    for link in [Some(&devices.host), devices.vxlan.as_ref()].into_iter().flatten() {
        datapath.check_hooks(link, programs_of(&link.name), broken).await?;
    }
    if let Some(underlay) = datapath.netlink.link_at(base.underlay.ifindex).await? {
        datapath.check_hooks(&underlay, UNDERLAY_PROGRAMS, broken).await?;
        broken.extend(datapath.missing_xdp(&underlay));
    }
    broken.extend(datapath.sockets.damage(&datapath.hooks, &datapath.maps)?);
    Ok(())
}
