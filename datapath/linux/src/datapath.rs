//! The datapath of one node: opened once, then observed and changed.

use datapath_abi::map_name;
use datapath_plan::EpochScope;
use nix::unistd::Uid;

use crate::{
    bpf::Present,
    config::LinuxConfig,
    counters::Counters,
    descriptor::{Maps, endpoint::EndpointKeys, set_networks, slots::SlotTables},
    error::DatapathError,
    events::{self, Events},
    handover::{self, FlowHandover},
    hook::{AttachMode, Hooks},
    maps::{self, Adoption, Loaded},
    netlink::Netlink,
    pins::Pins,
    sockets::Sockets,
};

/// The node's maps, programs, devices and routes. One per agent and node namespace; whoever opens it owns them.
/// Dropping it changes nothing in the kernel: programs and maps stay at work until the next agent adopts
/// them or [`crate::cleanup`] takes them away.
///
/// Methods that talk netlink are async and need a tokio runtime. Map work is done in place: it is short (a
/// hundred thousand entries in some 60 ms).
#[derive(Debug)]
pub struct Datapath {
    pub(crate) config: LinuxConfig,
    pub(crate) netlink: Netlink,
    pub(crate) maps: Maps,
    pub(crate) hooks: Hooks,
    pub(crate) slot_tables: SlotTables,
    pub(crate) endpoint_keys: EndpointKeys,
    pub(crate) sockets: Sockets,
    /// The interface that refused the XDP program when it was last attached.
    pub(crate) without_xdp: Option<u32>,
    events: Option<events::Ring>,
}

impl Datapath {
    /// Loads the programs and makes or adopts the maps; what maps of another build hold goes over into ours.
    /// Where an earlier agent's programs are at work on devices they are replaced in place, without a packet
    /// lost. Touches no device otherwise. Must be called in the node's network namespace and in a tokio runtime.
    ///
    /// # Errors
    /// [`DatapathError::NotPermitted`] without root; [`DatapathError::NoBpffs`] where there is nothing to pin
    /// to; [`DatapathError::Load`] and [`DatapathError::Program`] if the kernel refuses the programs.
    pub async fn open(config: LinuxConfig) -> Result<Self, DatapathError> {
        if !Uid::effective().is_root() {
            return Err(DatapathError::NotPermitted(format!("this process has uid {}", Uid::effective())));
        }
        let netlink = Netlink::here()?;
        let pins = Pins::create(&config.pin_root)?;
        let Loaded { mut ebpf, maps, adoption, predecessors } = maps::load(&pins)?;
        let events = events::Ring::take(&mut ebpf)?;
        let mode = if config.force_clsact { AttachMode::Clsact } else { AttachMode::probe() };
        // From here on in the order of decision 0015: nothing that works is touched before what follows it is
        // complete.
        let mut hooks = Hooks::load(ebpf, pins, mode)?;
        let at_work = hooks.at_work(&netlink, &netlink.links().await?).await?;
        if !predecessors.is_empty() {
            handover::carry_state(&predecessors, &maps)?;
        }
        let program_ids: Vec<u32> = at_work.iter().map(|program| program.program_id).collect();
        let mut flows = FlowHandover::new(&predecessors, &program_ids, &maps)?;
        // Of a table that no program uses yet, all can be written; of one that is in use (an agent died while it
        // replaced programs), what is there is newer.
        let fresh_table = predecessors.iter().any(|map| map.name == map_name::FLOWS_V4);
        let present = if fresh_table { Present::Replace } else { Present::Keep };
        // Twice: the second is short, and so is what it leaves behind.
        let carried = flows.carry(present)? + flows.carry(present)?;
        hooks.pin()?;
        // With empty maps our programs would drop what the old ones still carry: they are then replaced one by
        // one, as the plan fills the maps.
        let adopted = if adoption == Adoption::Fresh { 0 } else { hooks.adopt(&at_work)? };
        let late = flows.carry(Present::Keep)?;
        tracing::info!(
            pin_root = %config.pin_root.display(), ?mode, ?adoption, adopted, carried, late, "datapath open"
        );
        let slot_tables = SlotTables::adopt(&maps)?;
        let endpoint_keys = EndpointKeys::adopt(&maps)?;
        set_networks(&maps.dropped_lpm_v4, config.dropped_networks().iter())?;
        hooks.adopt_xdp(config.xdp.as_ref())?;
        let sockets = Sockets::open(config.sockets.as_ref(), &mut hooks, &maps)?;
        let events = Some(events);
        let datapath = Self {
            config,
            netlink,
            maps,
            hooks,
            slot_tables,
            endpoint_keys,
            sockets,
            without_xdp: None,
            events,
        };
        // The agent before may have died between an entry and the epochs that it concerns.
        datapath.bump_epochs(&EpochScope::All)?;
        Ok(datapath)
    }

    /// Packets and bytes by reason and direction, since the maps were made. Lost events count as packets.
    ///
    /// # Errors
    /// [`DatapathError::Map`] if the kernel refuses to be read.
    pub fn counters(&self) -> Result<Counters, DatapathError> {
        self.maps.counters.read()
    }

    /// The programs' reports, from now on and what the ring still holds. Can be taken once; `None` after that.
    ///
    /// # Errors
    /// [`DatapathError::Map`] if the ring cannot be watched.
    pub fn events(&mut self) -> Result<Option<Events>, DatapathError> {
        self.events.take().map(events::Ring::watch).transpose()
    }
}
