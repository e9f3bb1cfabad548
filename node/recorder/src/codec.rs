//! bincode with the standard configuration and a limit; every byte of the input must be used.

use bincode::config::Config;
use serde::{Serialize, de::DeserializeOwned};

/// The longest value that is written or read: 100,000 endpoints take 40 MB in a checkpoint. Without a limit a hostile length
/// could demand all memory.
pub const MAX_BYTES: usize = 512 << 20;

/// Why a value cannot be decoded or encoded.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// The bytes are no value of the type.
    #[error("decode it: {0}")]
    Decode(#[from] bincode::error::DecodeError),
    /// The encoding failed, which is a bug.
    #[error("encode it: {0}")]
    Encode(#[from] bincode::error::EncodeError),
    /// Bytes follow the value.
    #[error("{0} bytes are left over")]
    LeftOver(usize),
}

/// The configuration of bincode.
pub fn config() -> impl Config {
    bincode::config::standard().with_limit::<MAX_BYTES>()
}

/// Encodes a value.
///
/// # Errors
/// [`CodecError::Encode`]
pub fn encode(value: &impl Serialize) -> Result<Vec<u8>, CodecError> {
    Ok(bincode::serde::encode_to_vec(value, config())?)
}

/// Decodes a value, which must use all bytes.
///
/// # Errors
/// [`CodecError::Decode`], [`CodecError::LeftOver`]
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    let (value, used) = bincode::serde::decode_from_slice(bytes, config())?;
    if used == bytes.len() { Ok(value) } else { Err(CodecError::LeftOver(bytes.len() - used)) }
}

/// CRC-32C of a value's encoding, which is never in memory whole.
///
/// # Errors
/// [`CodecError::Encode`]
pub fn digest(value: &impl Serialize) -> Result<u32, CodecError> {
    struct Sum {
        crc: u32,
        buffer: Vec<u8>,
    }
    impl Sum {
        fn flush(&mut self) {
            self.crc = crc32c::crc32c_append(self.crc, &self.buffer);
            self.buffer.clear();
        }
    }
    impl bincode::enc::write::Writer for Sum {
        fn write(&mut self, bytes: &[u8]) -> Result<(), bincode::error::EncodeError> {
            self.buffer.extend_from_slice(bytes);
            if self.buffer.len() >= 1 << 12 {
                self.flush();
            }
            Ok(())
        }
    }
    let mut sum = Sum { crc: 0, buffer: Vec::with_capacity(1 << 13) };
    bincode::serde::encode_into_writer(value, &mut sum, config())?;
    sum.flush();
    Ok(sum.crc)
}
