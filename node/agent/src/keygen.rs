//! `warrend keygen`: a file with a new gossip key.

use std::{fs::OpenOptions, io::Write, os::unix::fs::OpenOptionsExt, path::Path};

use anyhow::Context;
use node_gossip::GossipKey;

/// Creates the file with mode 0600. An existing file is never overwritten: it may hold the fleet's only key.
///
/// # Errors
/// When the file exists or cannot be created.
pub fn keygen(path: &Path) -> anyhow::Result<()> {
    let key = GossipKey::generate()?;
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("create key file {}", path.display()))?;
    writeln!(file, "{}", key.to_text().as_str())?;
    file.sync_all()?;
    println!("{}: key {}; copy the file to all nodes of the fleet", path.display(), key.id());
    Ok(())
}

#[cfg(test)]
mod tests {
    use node_gossip::Keyring;

    use super::*;

    #[test]
    fn key_file_can_be_loaded_and_is_never_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gossip.key");
        keygen(&path).unwrap();
        let keyring = Keyring::load(&path).unwrap();
        assert!(keygen(&path).is_err());
        assert_eq!(Keyring::load(&path).unwrap().ids(), keyring.ids());
    }
}
