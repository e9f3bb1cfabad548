//! Frames: a record in pieces, each with its own checksum, so that a record is written while it is encoded.
//!
//! `length u32 | flags u8 | CRC-32C of flags and payload u32 | payload`, integers little-endian. A crash cuts off the end
//! only, and the reader detects it.

/// The longest payload of a frame. Of a checkpoint a few frames are in memory at a time.
pub const MAX_FRAME_BYTES: usize = 1 << 16;
/// The length of length, flags and checksum.
pub(crate) const HEADER_BYTES: usize = 4 + 1 + 4;

/// The first frame of a record.
pub(crate) const FIRST: u8 = 1;
/// The last frame of a record; most records have one frame, with both flags.
pub(crate) const LAST: u8 = 2;
/// A frame of a checkpoint.
pub(crate) const CHECKPOINT: u8 = 4;

/// Writes the header of a frame into the room before its payload.
pub(crate) fn seal(frame: &mut [u8], flags: u8) {
    let (header, payload) = frame.split_at_mut(HEADER_BYTES);
    let length = u32::try_from(payload.len()).expect("a frame is short");
    header[..4].copy_from_slice(&length.to_le_bytes());
    header[4] = flags;
    header[5..].copy_from_slice(&sum(flags, payload).to_le_bytes());
}

/// The flags and payload of the first frame, and the bytes after it; `None` if the frame is cut off or damaged.
pub(crate) fn open(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk()?;
    let ([flags], rest) = rest.split_first_chunk()?;
    let (crc, rest) = rest.split_first_chunk()?;
    let length = u32::from_le_bytes(*length) as usize;
    if length > MAX_FRAME_BYTES {
        return None;
    }
    let (payload, rest) = rest.split_at_checked(length)?;
    (sum(*flags, payload) == u32::from_le_bytes(*crc)).then_some((*flags, payload, rest))
}

/// Whether a frame is the first of a checkpoint, with which a segment begins.
pub fn begins_segment(frame: &[u8]) -> bool {
    frame.get(4).is_some_and(|flags| flags & (FIRST | CHECKPOINT) == FIRST | CHECKPOINT)
}

fn sum(flags: u8, payload: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&[flags]), payload)
}
