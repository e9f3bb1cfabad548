//! What operators do to an etcd cluster: wipe it, back it up, restore it.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use crate::{Lab, process, spec::underlay_address};

impl Lab {
    /// Stops all members, deletes their data and starts them empty. The cluster keeps its id (etcd computes it from
    /// its configuration), unless `new_id`.
    ///
    /// # Errors
    /// When a member cannot be stopped or started.
    pub fn etcd_wipe(&self, new_id: bool) -> Result<()> {
        self.etcd_replace(new_id, |_| Ok(()))
    }

    /// Writes the cluster's content to a file, as `etcdctl snapshot save` does.
    ///
    /// # Errors
    /// When no member provides the content.
    pub fn etcd_backup(&self, file: &Path) -> Result<()> {
        let file = file.to_str().context("the file's name is text")?;
        let members: Vec<String> = self.spec().etcd_names().collect();
        let mut failures = Vec::new();
        for member in &members {
            let inside = self.name().machine_namespace(member);
            match process::run(&inside, "etcdctl", &["--command-timeout=5s", "snapshot", "save", file]) {
                Ok(_) => return Ok(()),
                Err(error) => failures.push(format!("{error:#}")),
            }
        }
        bail!("no member of etcd gave a backup: {}", failures.join("; "))
    }

    /// Stops all members, gives them the content of a backup, and starts them. The cluster keeps its id, unless
    /// `new_id`.
    ///
    /// # Errors
    /// When there is no such backup, or a member cannot be stopped or started.
    pub fn etcd_restore(&self, file: &Path, new_id: bool) -> Result<()> {
        let file = fs::canonicalize(file).with_context(|| format!("find the backup {}", file.display()))?;
        let file = file.to_str().context("the file's name is text")?;
        self.etcd_replace(new_id, |member| {
            let url = format!("http://{}:2380", underlay_address(member));
            let data = self.name().etcd_data_folder().join(member);
            let data = data.to_str().context("the folder's name is text")?;
            let arguments = [
                "snapshot",
                "restore",
                file,
                "--name",
                member,
                "--initial-cluster",
                &self.etcd_cluster(),
                "--initial-cluster-token",
                &self.etcd_token(),
                "--initial-advertise-peer-urls",
                &url,
                "--data-dir",
                data,
            ];
            process::run(&self.name().machine_namespace(member), "etcdctl", &arguments).map(drop)
        })
    }

    /// Stops all members, deletes their data, fills their directories, and starts them.
    fn etcd_replace(&self, new_id: bool, fill: impl Fn(&str) -> Result<()>) -> Result<()> {
        let members: Vec<String> = self.spec().etcd_names().collect();
        if members.is_empty() {
            bail!("this lab has no etcd");
        }
        for member in &members {
            if !self.processes(member)?.is_empty() {
                self.end(member, Signal::SIGKILL)?;
            }
            let data = self.name().etcd_data_folder().join(member);
            if data.exists() {
                fs::remove_dir_all(&data).with_context(|| format!("remove {}", data.display()))?;
            }
        }
        if new_id {
            self.change_etcd_token()?;
        }
        members.iter().try_for_each(|member| fill(member))?;
        self.start_machines(&members)
    }
}
