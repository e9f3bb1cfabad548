//! The format of the agent's own binary files: a header (magic, version, length, CRC-32C; integers little-endian) and the
//! bincode of one value, with nothing after it.
//!
//! A version stands for one shape of the value's type, and no other version is read. A file is written under another name
//! and renamed, so that a whole one always exists; a damaged one is refused. Decoding is bounded by the length of the
//! input.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::Path,
};

use serde::{Serialize, de::DeserializeOwned};

/// The length of magic, version, length and checksum.
pub const HEADER_BYTES: usize = 8 + 4 + 8 + 4;

/// The longest payload of any form. Without a limit a hostile length could demand all memory.
const MAX_PAYLOAD_BYTES: usize = 128 << 20;

/// A kind of file. One constant for each kind.
#[derive(Debug, Clone, Copy)]
pub struct Form {
    /// The first bytes of the file.
    pub magic: [u8; 8],
    /// The version of the written type, to be raised with every change of that type or of a type in it.
    pub version: u32,
    /// The longest payload that is written or read; at most 128 MiB.
    pub max_payload_bytes: usize,
}

/// Why a file cannot be used or written.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The file cannot be read or written.
    #[error("read or write it: {0}")]
    File(#[from] io::Error),
    /// The file does not begin with the magic.
    #[error("it is no file of this kind")]
    Foreign,
    /// Another build wrote it.
    #[error("its version is {found}, this agent reads {reads}")]
    Version {
        /// The file's version.
        found: u32,
        /// The only version that is read.
        reads: u32,
    },
    /// The file was cut off, or something follows the value.
    #[error("its length is {found} bytes, it says {said}")]
    Length {
        /// Its length.
        found: u64,
        /// The length that the header gives.
        said: u64,
    },
    /// The checksum does not match.
    #[error("it is damaged: the checksum differs")]
    Checksum,
    /// The payload is no value of the type.
    #[error("decode it: {0}")]
    Decode(#[from] bincode::error::DecodeError),
    /// The value cannot be encoded, which is a bug.
    #[error("encode it: {0}")]
    Encode(#[from] bincode::error::EncodeError),
    /// The payload is longer than the form allows.
    #[error("it has {found} bytes, at most {limit} are kept")]
    TooLong {
        /// Its length.
        found: u64,
        /// The longest that is allowed.
        limit: usize,
    },
}

impl Form {
    /// The bytes of a file with this value.
    ///
    /// # Errors
    /// [`SealError::TooLong`].
    pub fn encode(&self, value: &impl Serialize) -> Result<Vec<u8>, SealError> {
        let payload = bincode::serde::encode_to_vec(value, codec())?;
        self.check_length(payload.len() as u64)?;
        Ok(self.seal(&payload))
    }

    /// The bytes of a file with this payload, under a valid header.
    pub fn seal(&self, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_BYTES + payload.len());
        bytes.extend(self.magic);
        bytes.extend(self.version.to_le_bytes());
        bytes.extend((payload.len() as u64).to_le_bytes());
        bytes.extend(crc32c::crc32c(payload).to_le_bytes());
        bytes.extend(payload);
        bytes
    }

    /// Decodes the bytes of a file. They need not be trusted: the cost is bounded by their number.
    ///
    /// # Errors
    /// Why the bytes are no file of this form and version.
    pub fn decode<T: DeserializeOwned>(&self, bytes: &[u8]) -> Result<T, SealError> {
        let (magic, rest) = bytes.split_first_chunk().ok_or(SealError::Foreign)?;
        if *magic != self.magic {
            return Err(SealError::Foreign);
        }
        let short = SealError::Length { found: bytes.len() as u64, said: HEADER_BYTES as u64 };
        let Some((version, rest)) = rest.split_first_chunk() else { return Err(short) };
        let found = u32::from_le_bytes(*version);
        if found != self.version {
            return Err(SealError::Version { found, reads: self.version });
        }
        let Some((said, rest)) = rest.split_first_chunk() else { return Err(short) };
        let Some((checksum, payload)) = rest.split_first_chunk() else { return Err(short) };
        let (found, said) = (payload.len() as u64, u64::from_le_bytes(*said));
        if found != said {
            return Err(SealError::Length { found, said });
        }
        self.check_length(found)?;
        if crc32c::crc32c(payload) != u32::from_le_bytes(*checksum) {
            return Err(SealError::Checksum);
        }
        let (value, used) = bincode::serde::decode_from_slice(payload, codec())?;
        if used != payload.len() {
            return Err(SealError::Length { found, said: used as u64 });
        }
        Ok(value)
    }

    /// Reads a file.
    ///
    /// # Errors
    /// As [`Self::decode`], and when it cannot be read.
    pub fn read<T: DeserializeOwned>(&self, path: &Path) -> Result<T, SealError> {
        self.check_length(fs::metadata(path)?.len().saturating_sub(HEADER_BYTES as u64))?;
        self.decode(&fs::read(path)?)
    }

    /// Replaces a file. On return the file survives the end of the process. It survives a loss of power only if `synced`,
    /// which waits for the disk.
    ///
    /// # Errors
    /// [`SealError::TooLong`], and when the file cannot be written; the previous file is then still there.
    pub fn write(&self, path: &Path, value: &impl Serialize, synced: bool) -> Result<(), SealError> {
        let bytes = self.encode(value)?;
        let new = path.with_extension("new");
        let mut file = File::create(&new)?;
        file.write_all(&bytes)?;
        if synced {
            file.sync_all()?;
        }
        fs::rename(&new, path)?;
        if synced {
            // The rename is on disk only when the folder is.
            File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()?;
        }
        Ok(())
    }

    fn check_length(&self, found: u64) -> Result<(), SealError> {
        let limit = self.max_payload_bytes;
        if found > limit as u64 { Err(SealError::TooLong { found, limit }) } else { Ok(()) }
    }
}

fn codec() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<MAX_PAYLOAD_BYTES>()
}
