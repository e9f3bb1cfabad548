//! The shape of the agent's own binary files: a header (magic, version, length, CRC-32C; integers little-endian) and the
//! bincode of one value, with nothing after it.
//!
//! One version of a file is one shape of its type: another version is not read. A file is written beside its place and
//! renamed, so there is always a whole one, and what is damaged all the same is refused. Never decodes more than was
//! asked for, and never follows a length that the bytes do not bear out.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::Path,
};

use serde::{Serialize, de::DeserializeOwned};

/// Magic, version, length, checksum.
pub const HEADER_BYTES: usize = 8 + 4 + 8 + 4;

/// No payload of any form is longer. Without a limit a hostile length could ask for all memory there is.
const MAX_PAYLOAD_BYTES: usize = 128 << 20;

/// What a kind of file begins with. One constant for each kind.
#[derive(Debug, Clone, Copy)]
pub struct Form {
    /// First in the file.
    pub magic: [u8; 8],
    /// Of the type that is written, with all that it holds: raise it with every change there.
    pub version: u32,
    /// A payload longer than this is neither written nor read; at most 128 MiB.
    pub max_payload_bytes: usize,
}

/// Why a file is not used, or not written.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The file cannot be read or written.
    #[error("read or write it: {0}")]
    File(#[from] io::Error),
    /// The file begins with something else.
    #[error("it is no file of this kind")]
    Foreign,
    /// Another build wrote it.
    #[error("its version is {found}, this agent reads {reads}")]
    Version {
        /// What it says.
        found: u32,
        /// The only one that is read.
        reads: u32,
    },
    /// It was cut off, or something follows it.
    #[error("its length is {found} bytes, it says {said}")]
    Length {
        /// The bytes that there are.
        found: u64,
        /// The bytes that there should be.
        said: u64,
    },
    /// Its bytes are not those that were written.
    #[error("it is damaged: the checksum differs")]
    Checksum,
    /// What lies under the checksum is no value of its type.
    #[error("decode it: {0}")]
    Decode(#[from] bincode::error::DecodeError),
    /// A value that has no bincode: a bug.
    #[error("encode it: {0}")]
    Encode(#[from] bincode::error::EncodeError),
    /// Longer than any that is meant.
    #[error("it has {found} bytes, at most {limit} are kept")]
    TooLong {
        /// The bytes that there are.
        found: u64,
        /// The bytes that there may be.
        limit: usize,
    },
}

impl Form {
    /// The bytes of the file of a value.
    ///
    /// # Errors
    /// [`SealError::TooLong`].
    pub fn encode(&self, value: &impl Serialize) -> Result<Vec<u8>, SealError> {
        let payload = bincode::serde::encode_to_vec(value, codec())?;
        self.check_length(payload.len() as u64)?;
        Ok(self.seal(&payload))
    }

    /// A file with this payload under a right header.
    pub fn seal(&self, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_BYTES + payload.len());
        bytes.extend(self.magic);
        bytes.extend(self.version.to_le_bytes());
        bytes.extend((payload.len() as u64).to_le_bytes());
        bytes.extend(crc32c::crc32c(payload).to_le_bytes());
        bytes.extend(payload);
        bytes
    }

    /// Reads the bytes of a file. They may come from anywhere: what they cost is bounded by their number.
    ///
    /// # Errors
    /// Why they are no file of this form and version.
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

    /// Writes a file in its place. When this returns it outlives the process, whatever becomes of that; a machine that
    /// loses power may lose it, or have it damaged, unless it is `synced`, which takes as long as the disk does.
    ///
    /// # Errors
    /// [`SealError::TooLong`], and when it cannot be written: then what was there before still is.
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
            // The rename itself is on disk only when its folder is.
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
