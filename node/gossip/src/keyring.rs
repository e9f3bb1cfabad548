//! The keys of the fleet's members: loaded from a root-only file, rotated without a gap.
//!
//! A datagram is sealed with the primary key and opened with the key that it names. Rotation therefore has three
//! steps, each completed on every node before the next one: install the new key, use it, remove the old one.

use std::{fmt, os::unix::fs::MetadataExt, path::Path, path::PathBuf};

use aes_gcm::{Aes256Gcm, KeyInit};
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// Bytes of a key: AES-256.
pub const KEY_BYTES: usize = 32;
/// Maximum number of keys in a ring: a rotation needs two, an interrupted one three.
pub const MAX_KEYS: usize = 8;
/// Maximum length of a key file: [`MAX_KEYS`] lines of 64 digits and room for comments.
const MAX_FILE_BYTES: u64 = 16 * 1024;

/// Names a key on the wire without revealing it: the start of a digest of the key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(pub [u8; 4]);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One key. `Debug` shows its id only; its bytes are wiped from memory when dropped.
#[derive(Clone)]
pub struct GossipKey {
    id: KeyId,
    bytes: Zeroizing<[u8; KEY_BYTES]>,
    /// The expanded key, computed once: expanding it costs more than sealing a small datagram.
    cipher: Aes256Gcm,
}

impl GossipKey {
    /// A key from 32 secret bytes.
    pub fn new(bytes: Zeroizing<[u8; KEY_BYTES]>) -> Self {
        let mut hash = Sha256::new();
        hash.update(b"warren gossip key id\0");
        hash.update(bytes.as_slice());
        let digest = hash.finalize();
        let id = KeyId([digest[0], digest[1], digest[2], digest[3]]);
        let cipher = Aes256Gcm::new((&*bytes).into());
        Self { id, bytes, cipher }
    }

    /// Draws a new key from the operating system.
    ///
    /// # Errors
    /// When the operating system provides no randomness.
    pub fn generate() -> Result<Self, KeyringError> {
        let mut bytes = Zeroizing::new([0; KEY_BYTES]);
        getrandom::fill(bytes.as_mut_slice()).map_err(|error| KeyringError::Random(error.to_string()))?;
        Ok(Self::new(bytes))
    }

    /// Parses 64 hexadecimal digits or 44 characters of base64.
    ///
    /// # Errors
    /// [`KeyringError::Malformed`]; it does not contain the text, which may be a secret.
    pub fn parse(text: &str) -> Result<Self, KeyringError> {
        let decoded = Zeroizing::new(if text.len() == 2 * KEY_BYTES {
            hex::decode(text).ok()
        } else {
            BASE64.decode(text).ok()
        });
        let bytes = decoded.as_ref().and_then(|bytes| <[u8; KEY_BYTES]>::try_from(bytes.as_slice()).ok());
        bytes.map(|bytes| Self::new(Zeroizing::new(bytes))).ok_or(KeyringError::Malformed)
    }

    /// The key as a line of a key file, in base64.
    pub fn to_text(&self) -> Zeroizing<String> {
        Zeroizing::new(BASE64.encode(self.bytes.as_slice()))
    }

    /// Names the key.
    pub fn id(&self) -> KeyId {
        self.id
    }

    pub(crate) fn cipher(&self) -> &Aes256Gcm {
        &self.cipher
    }
}

impl fmt::Debug for GossipKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GossipKey({}, secret)", self.id)
    }
}

/// Why keys cannot be loaded or changed.
#[derive(Debug, thiserror::Error)]
pub enum KeyringError {
    /// The key file cannot be read.
    #[error(
        "cannot read gossip key file {}; make one with `warrend keygen {}` and copy it to every node",
        path.display(), path.display()
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// Others than its owner can use the key file.
    #[error(
        "gossip key file {} has mode {mode:04o}, so others than its owner can use it: `chmod 600 {}`, and \
         replace the key if anybody may have read it", path.display(), path.display()
    )]
    Mode {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The key file belongs to another user.
    #[error("gossip key file {} belongs to user {uid}, who could replace it: `chown root {}`", path.display(), path.display())]
    Owner {
        /// The file.
        path: PathBuf,
        /// Its owner.
        uid: u32,
    },
    /// The file is far longer than a key file.
    #[error("gossip key file {} has {bytes} bytes, at most {MAX_FILE_BYTES} are read", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
        /// Its length.
        bytes: u64,
    },
    /// A line of the key file is no key.
    #[error("gossip key file {}, line {line}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line; the first is 1.
        line: usize,
        /// The error in the line.
        #[source]
        source: Box<KeyringError>,
    },
    /// No key at all.
    #[error(
        "gossip needs a key: put one per line, 32 random bytes in base64 or hexadecimal, the one in use first"
    )]
    Empty,
    /// Not a key.
    #[error("not a gossip key: 32 bytes, written as 44 characters of base64 or 64 hexadecimal digits")]
    Malformed,
    /// More than [`MAX_KEYS`].
    #[error("more than {MAX_KEYS} gossip keys: remove those no longer used")]
    TooMany,
    /// Two different keys with the same id: one chance in four thousand million.
    #[error("gossip key {0} has the id of another key in the ring: generate a new one")]
    SameId(KeyId),
    /// No key with this id.
    #[error("no gossip key {0} is installed: install it on every node before using it")]
    Unknown(KeyId),
    /// The key is the primary one.
    #[error("gossip key {0} is in use: use another one on every node before removing it")]
    InUse(KeyId),
    /// The operating system provides no randomness.
    #[error("no randomness for a gossip key: {0}")]
    Random(String),
}

/// The keys of a node: the first is the primary one. Never empty; ids are unique.
#[derive(Debug, Clone)]
pub struct Keyring {
    keys: Vec<GossipKey>,
}

impl Keyring {
    /// A ring of one key.
    pub fn new(key: GossipKey) -> Self {
        Self { keys: vec![key] }
    }

    /// A ring of one new random key.
    ///
    /// # Errors
    /// When the operating system provides no randomness.
    pub fn generate() -> Result<Self, KeyringError> {
        GossipKey::generate().map(Self::new)
    }

    /// Loads a key file: one key a line, the primary one first; `#` begins a comment.
    ///
    /// # Errors
    /// Also when others than root (or the agent's own user) can read or replace the file.
    pub fn load(path: &Path) -> Result<Self, KeyringError> {
        use std::io::Read;
        let read_error = |source| KeyringError::Read { path: path.to_owned(), source };
        // The permissions are those of the open file, so that nobody can replace it in between.
        let mut file = std::fs::File::open(path).map_err(read_error)?;
        let metadata = file.metadata().map_err(read_error)?;
        let mode = metadata.mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(KeyringError::Mode { path: path.to_owned(), mode });
        }
        let uid = metadata.uid();
        if uid != 0 && uid != nix::unistd::geteuid().as_raw() {
            return Err(KeyringError::Owner { path: path.to_owned(), uid });
        }
        if metadata.len() > MAX_FILE_BYTES {
            return Err(KeyringError::TooLong { path: path.to_owned(), bytes: metadata.len() });
        }
        let mut text = Zeroizing::new(String::new());
        file.read_to_string(&mut text).map_err(read_error)?;
        let mut ring: Option<Self> = None;
        for (index, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            let added = GossipKey::parse(line).and_then(|key| match &mut ring {
                Some(ring) => ring.install(key),
                None => {
                    ring = Some(Self::new(key));
                    Ok(())
                }
            });
            added.map_err(|source| KeyringError::Line {
                path: path.to_owned(),
                line: index + 1,
                source: Box::new(source),
            })?;
        }
        ring.ok_or(KeyringError::Empty)
    }

    /// Adds a key that opens datagrams but does not seal any yet. Installing it twice changes nothing.
    ///
    /// # Errors
    /// [`KeyringError::TooMany`], [`KeyringError::SameId`].
    pub fn install(&mut self, key: GossipKey) -> Result<(), KeyringError> {
        if let Some(known) = self.get(key.id) {
            return if known.bytes == key.bytes { Ok(()) } else { Err(KeyringError::SameId(key.id)) };
        }
        if self.keys.len() == MAX_KEYS {
            return Err(KeyringError::TooMany);
        }
        self.keys.push(key);
        Ok(())
    }

    /// Makes a key the primary one: it seals from now on. Repeating it changes nothing.
    ///
    /// # Errors
    /// [`KeyringError::Unknown`].
    pub fn use_key(&mut self, id: KeyId) -> Result<(), KeyringError> {
        let index = self.keys.iter().position(|key| key.id == id).ok_or(KeyringError::Unknown(id))?;
        self.keys[..=index].rotate_right(1);
        Ok(())
    }

    /// Removes a key: its datagrams are refused from now on. Repeating it changes nothing.
    ///
    /// # Errors
    /// [`KeyringError::InUse`] for the primary key.
    pub fn remove(&mut self, id: KeyId) -> Result<(), KeyringError> {
        if self.primary().id == id {
            return Err(KeyringError::InUse(id));
        }
        self.keys.retain(|key| key.id != id);
        Ok(())
    }

    /// The primary key.
    pub fn primary(&self) -> &GossipKey {
        &self.keys[0]
    }

    /// The key with an id.
    pub fn get(&self, id: KeyId) -> Option<&GossipKey> {
        self.keys.iter().find(|key| key.id == id)
    }

    /// All ids, the primary key's first.
    pub fn ids(&self) -> Vec<KeyId> {
        self.keys.iter().map(|key| key.id).collect()
    }
}
