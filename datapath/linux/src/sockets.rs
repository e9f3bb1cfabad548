//! Service translation at the socket, the part in user space: the network namespaces of endpoints, and ending sockets whose
//! backend is gone.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fs, io,
    net::IpAddr,
    os::unix::fs::MetadataExt,
    path::PathBuf,
};

use datapath_abi::{NamespaceEntry, SocketEntry, SocketKey, V4, namespace_kind, socket_kind};
use datapath_plan::{EndpointId, Op, TableKey};

use crate::{
    config::SocketConfig,
    descriptor::Maps,
    descriptor::{Answer, first_failure},
    error::DatapathError,
    hook::Hooks,
    namespace::{self, Mark, Namespace},
    object::SocketProgram,
    sock_diag,
};

/// The state of socket translation. One per datapath.
#[derive(Debug)]
pub(crate) struct Sockets {
    /// The cgroup that the programs are attached to; `None`: services are translated packet by packet.
    pub cgroup: Option<PathBuf>,
    ends_tcp: bool,
    /// Cookies of the endpoints' namespaces, as they are in the map.
    namespaces: BTreeMap<EndpointId, u64>,
    /// Backends may have gone since the last search for orphaned sockets.
    is_due: bool,
}

type SocketRow = (SocketKey<V4>, SocketEntry<V4>);

impl Sockets {
    /// Attaches the programs where they are configured, or detaches them. A failure is only a warning, since services are
    /// translated packet by packet then.
    pub(crate) fn open(
        config: Option<&SocketConfig>,
        hooks: &mut Hooks,
        maps: &Maps,
    ) -> Result<Self, DatapathError> {
        let mut namespaces = BTreeMap::new();
        let mut former = Vec::new();
        maps.namespaces.for_each(|cookie, entry| match entry.kind {
            namespace_kind::ENDPOINT => drop(namespaces.insert(EndpointId(entry.endpoint), *cookie)),
            _ => former.push(*cookie),
        })?;
        // The entry of the node's own namespace stays while it is wanted, so that translation does not pause.
        let own = config.and_then(|_| namespace::own_mark().ok()).map(|mark| mark.cookie);
        former.retain(|cookie| Some(*cookie) != own);
        first_failure(maps.namespaces.delete_all(&former))?;
        let mut sockets = Self {
            cgroup: config.map(|config| config.cgroup.clone()),
            ends_tcp: config.is_some_and(|config| config.ends_tcp),
            namespaces,
            is_due: true,
        };
        match config {
            Some(_) => sockets.repair(hooks, maps),
            None => hooks.detach_sockets()?,
        }
        Ok(sockets)
    }

    /// Attaches programs that are not attached. After a failure socket translation is off until the agent's next start.
    pub(crate) fn repair(&mut self, hooks: &mut Hooks, maps: &Maps) {
        let Some(cgroup) = &self.cgroup else { return };
        let mut put = || {
            let Mark { cookie, inode } = namespace::own_mark()?;
            let entry = NamespaceEntry { kind: namespace_kind::NODE, inode, ..NamespaceEntry::default() };
            maps.namespaces.put(&cookie, &entry)?;
            hooks.attach_sockets(cgroup)
        };
        if let Err(error) = put() {
            tracing::warn!(
                cgroup = %cgroup.display(), error = error.chain(),
                "services are not translated at the socket, only packet by packet"
            );
            self.cgroup = None;
        }
    }

    /// What another process has changed.
    pub(crate) fn damage(&self, hooks: &Hooks, maps: &Maps) -> Result<Vec<String>, DatapathError> {
        let Some(cgroup) = &self.cgroup else { return Ok(Vec::new()) };
        let mut damage = Vec::new();
        for program in SocketProgram::ALL {
            if !hooks.is_at_sockets(program, cgroup) {
                damage.push(format!("{}: program {} is not attached", cgroup.display(), program.name()));
            }
        }
        if maps.namespaces.get(&namespace::own_mark()?.cookie)?.is_none() {
            damage.push("the node's network namespace is not in the maps".into());
        }
        Ok(damage)
    }

    /// Endpoints whose namespace is not in the map any more.
    pub(crate) fn lost(&self, maps: &Maps) -> Result<BTreeSet<EndpointId>, DatapathError> {
        let there: HashSet<u64> = maps.namespaces.dump()?.into_iter().map(|(cookie, _)| cookie).collect();
        Ok(self.namespaces.iter().filter(|(_, cookie)| !there.contains(cookie)).map(|(id, _)| *id).collect())
    }

    /// Enables translation of the sockets in an endpoint's namespace.
    pub(crate) fn put(
        &mut self,
        maps: &Maps,
        id: EndpointId,
        address: IpAddr,
        namespace: &Namespace,
    ) -> Answer {
        let IpAddr::V4(address_v4) = address else { return Ok(()) };
        let Mark { cookie, inode } = match namespace.mark() {
            Ok(mark) => mark,
            Err(error) => {
                // Linux before 5.14.
                tracing::debug!(%id, error = error.chain(), "an endpoint's namespace has no cookie");
                return Ok(());
            }
        };
        if self.namespaces.get(&id).is_some_and(|former| *former != cookie) {
            self.forget(maps, id)?;
        }
        let entry = NamespaceEntry {
            kind: namespace_kind::ENDPOINT,
            endpoint: id.0,
            inode,
            address_v4: address_v4.octets(),
        };
        maps.namespaces.put(&cookie, &entry)?;
        self.namespaces.insert(id, cookie);
        Ok(())
    }

    /// Disables translation of the sockets in an endpoint's namespace.
    pub(crate) fn forget(&mut self, maps: &Maps, id: EndpointId) -> Answer {
        if let Some(cookie) = self.namespaces.get(&id) {
            maps.namespaces.delete(cookie)?;
            self.namespaces.remove(&id);
        }
        Ok(())
    }

    /// Ends the sockets whose backend is gone, if a backend may have gone since the last call: UDP sockets, whose owners would
    /// not notice, and TCP sockets where that is configured. Their map entries are deleted too.
    pub(crate) fn end_orphans(&mut self, maps: &Maps, ops: &[Op]) {
        let is_of_backend = |key| matches!(key, TableKey::Backend(_));
        self.is_due |= ops.iter().filter_map(TableKey::of).any(is_of_backend);
        if !self.is_due {
            return;
        }
        match self.orphans(maps).and_then(|orphans| self.end(maps, &orphans)) {
            Ok(()) => self.is_due = false,
            // Tried again with the next plan.
            Err(error) => {
                tracing::warn!(error = error.chain(), "sockets of backends that are gone cannot be ended")
            }
        }
    }

    /// The entries of sockets that are to end, since their backend is gone.
    fn orphans(&self, maps: &Maps) -> Result<Vec<SocketRow>, DatapathError> {
        let mut orphans = Vec::new();
        for (key, entry) in maps.sockets_v4.dump()? {
            if i32::from(entry.protocol) == libc::IPPROTO_TCP && !self.ends_tcp {
                continue;
            }
            let place = match key.kind {
                socket_kind::BACKEND => (key.address, key.port_be),
                _ => (entry.address, entry.port_be),
            };
            let backend = maps.backends_v4.get(&entry.backend)?.unwrap_or_default();
            if (backend.service, (backend.address, backend.port_be)) != (entry.service, place) {
                orphans.push((key, entry));
            }
        }
        Ok(orphans)
    }

    fn end(&self, maps: &Maps, orphans: &[SocketRow]) -> Answer {
        let mut sockets: BTreeMap<(u64, u8), HashSet<u64>> = BTreeMap::new();
        for (key, entry) in orphans.iter().filter(|(key, _)| key.kind == socket_kind::BACKEND) {
            sockets.entry((entry.namespace, entry.protocol)).or_default().insert(key.cookie);
        }
        for ((cookie, protocol), sockets) in &sockets {
            match end_in(maps, *cookie, *protocol, sockets)? {
                Some(ended) => {
                    tracing::info!(protocol, ended, "sockets of backends that are gone have ended")
                }
                None => {
                    tracing::debug!(protocol, "the namespace of sockets whose backend is gone is not found")
                }
            }
        }
        let keys: Vec<SocketKey<V4>> = orphans.iter().map(|(key, _)| *key).collect();
        first_failure(maps.sockets_v4.delete_all(&keys))
    }
}

/// Ends sockets in the namespace with a cookie; `None` if the namespace is gone, or no path leads to it.
fn end_in(
    maps: &Maps,
    cookie: u64,
    protocol: u8,
    sockets: &HashSet<u64>,
) -> Result<Option<usize>, DatapathError> {
    let Some(entry) = maps.namespaces.get(&cookie)? else { return Ok(None) };
    let end = || sock_diag::end(protocol, sockets);
    let ended = if entry.kind == namespace_kind::NODE {
        end()
    } else {
        let there =
            |path: &PathBuf| fs::metadata(path).is_ok_and(|found| found.ino() == u64::from(entry.inode));
        let Some(path) = namespace::paths().into_iter().find(there) else { return Ok(None) };
        // A namespace that went meanwhile has no sockets.
        let Ok(namespace) = Namespace::open(&path) else { return Ok(None) };
        namespace.enter(end)
    };
    match ended {
        Ok(ended) => Ok(Some(ended)),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EOPNOTSUPP)) => {
            tracing::warn!(%error, protocol, "this kernel cannot end sockets (modprobe udp_diag); clients of backends that are gone must notice by themselves");
            Ok(Some(0))
        }
        Err(source) => Err(failed(source)),
    }
}

fn failed(source: io::Error) -> DatapathError {
    DatapathError::Netlink { operation: "end sockets of backends that are gone".into(), source }
}
