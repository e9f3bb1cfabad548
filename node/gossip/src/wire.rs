//! The datagram that crosses the network, sealed and opened. Pure: time and randomness are arguments.
//!
//! ```text
//! 0      2         3      4       8        12        20        28        32       32+n
//! | "WG" | version | part | fleet | key id | sent ms | session | counter | sealed | tag (16) |
//!                                                     `------ nonce -----'
//! ```
//! Integers are big-endian. All 32 bytes of header and the fleet's name are associated data of
//! AES-256-GCM; session and counter are its nonce.
//!
//! Why no nonce is used twice under a key: a session is 64 random bits drawn at every start, and again
//! before its 32-bit counter would wrap; within it the counter only rises. Two of a million sessions
//! under one key coincide with a chance of about 3 in 10^8, and nodes keep nothing on disk for it.
//!
//! A chitchat message may be as long as a UDP datagram can be, so that sealing would make it too long:
//! such a message crosses as two datagrams with successive counters.

use std::collections::VecDeque;

use aes_gcm::{
    Aes256Gcm, Nonce, Tag,
    aead::{AeadInOut, inout::InOutBuf},
};
use identity::FleetName;
use sha2::{Digest, Sha256};

use crate::{
    keyring::{KeyId, Keyring},
    refusal::Refusal,
    replay::{ReplayGuard, SessionId},
};

/// Bytes before the sealed message.
pub const HEADER_BYTES: usize = 32;
/// Bytes of AES-GCM's tag, after the message.
pub const TAG_BYTES: usize = 16;
/// Maximum bytes of a UDP datagram over IPv4, and of chitchat's messages.
pub const MAX_DATAGRAM_BYTES: usize = 65_507;
/// Maximum bytes of a message in one datagram.
pub const MAX_PART_BYTES: usize = MAX_DATAGRAM_BYTES - HEADER_BYTES - TAG_BYTES;
/// Tolerated clock skew of a sender. Generous, so that bad clocks do not partition the fleet; it bounds how long
/// sessions must be remembered against replay.
pub const MAX_CLOCK_SKEW_MS: u64 = 10 * 60 * 1000;
/// First halves that wait for their second half: halves are sent directly after each other.
const MAX_HALVES: usize = 16;

const MAGIC: [u8; 2] = *b"WG";
const VERSION: u8 = 1;

/// The part of a message that a datagram contains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Whole = 0,
    First = 1,
    Second = 2,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Header {
    part: Part,
    fleet_tag: [u8; 4],
    key: KeyId,
    sent_ms: u64,
    session: SessionId,
    counter: u32,
}

impl Header {
    fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..2].copy_from_slice(&MAGIC);
        bytes[2] = VERSION;
        bytes[3] = self.part as u8;
        bytes[4..8].copy_from_slice(&self.fleet_tag);
        bytes[8..12].copy_from_slice(&self.key.0);
        bytes[12..20].copy_from_slice(&self.sent_ms.to_be_bytes());
        bytes[20..28].copy_from_slice(&self.session.0);
        bytes[28..32].copy_from_slice(&self.counter.to_be_bytes());
        bytes
    }

    fn parse(bytes: &[u8; HEADER_BYTES]) -> Result<Self, Refusal> {
        fn field<const N: usize>(bytes: &[u8; HEADER_BYTES], at: usize) -> [u8; N] {
            std::array::from_fn(|index| bytes[at + index])
        }
        if bytes[0..2] != MAGIC || bytes[2] != VERSION {
            return Err(Refusal::NotOurs);
        }
        let part = match bytes[3] {
            0 => Part::Whole,
            1 => Part::First,
            2 => Part::Second,
            _ => return Err(Refusal::NotOurs),
        };
        Ok(Self {
            part,
            fleet_tag: field(bytes, 4),
            key: KeyId(field(bytes, 8)),
            sent_ms: u64::from_be_bytes(field(bytes, 12)),
            session: SessionId(field(bytes, 20)),
            counter: u32::from_be_bytes(field(bytes, 28)),
        })
    }
}

/// What binds a datagram to its fleet: the name as associated data, and its digest in the header, so that another
/// fleet's traffic can be distinguished from forgery.
#[derive(Debug, Clone)]
struct FleetBinding {
    name: FleetName,
    tag: [u8; 4],
}

impl FleetBinding {
    fn new(name: FleetName) -> Self {
        let digest = Sha256::digest(name.as_str().as_bytes());
        Self { name, tag: [digest[0], digest[1], digest[2], digest[3]] }
    }

    fn associated_data(&self, header: &[u8; HEADER_BYTES]) -> Vec<u8> {
        [header.as_slice(), self.name.as_str().as_bytes()].concat()
    }
}

fn nonce(header: &[u8; HEADER_BYTES]) -> Nonce<aes_gcm::aead::consts::U12> {
    Nonce::from(std::array::from_fn::<u8, 12, _>(|index| header[20 + index]))
}

/// Draws session ids that no other process ever draws.
pub type DrawSession = Box<dyn FnMut() -> SessionId + Send>;

/// Seals messages. One per process and socket; owns the process's session and counter.
pub struct Sealer {
    fleet: FleetBinding,
    session: SessionId,
    counter: u32,
    draw_session: DrawSession,
}

impl Sealer {
    /// A sealer for a fleet; `draw_session` must return 64 random bits at each call.
    pub fn new(fleet: FleetName, mut draw_session: DrawSession) -> Self {
        let session = draw_session();
        Self { fleet: FleetBinding::new(fleet), session, counter: 0, draw_session }
    }

    /// Seals a message with the keyring's primary key, into one datagram or, if it is longer than [`MAX_PART_BYTES`],
    /// into two. `now_ms` is the time in ms since the epoch.
    pub fn seal(&mut self, keyring: &Keyring, now_ms: u64, message: &[u8]) -> Vec<Vec<u8>> {
        if message.len() <= MAX_PART_BYTES {
            return vec![self.seal_part(keyring, now_ms, Part::Whole, message)];
        }
        if self.counter >= u32::MAX - 1 {
            self.new_session(); // both halves belong to one session
        }
        let (first, second) = message.split_at(message.len() / 2);
        vec![
            self.seal_part(keyring, now_ms, Part::First, first),
            self.seal_part(keyring, now_ms, Part::Second, second),
        ]
    }

    fn new_session(&mut self) {
        self.session = (self.draw_session)();
        self.counter = 0;
    }

    fn seal_part(&mut self, keyring: &Keyring, now_ms: u64, part: Part, message: &[u8]) -> Vec<u8> {
        if self.counter == u32::MAX {
            self.new_session();
        }
        self.counter += 1;
        let key = keyring.primary();
        let header = Header {
            part,
            fleet_tag: self.fleet.tag,
            key: key.id(),
            sent_ms: now_ms,
            session: self.session,
            counter: self.counter,
        }
        .to_bytes();
        let mut datagram = Vec::with_capacity(HEADER_BYTES + message.len() + TAG_BYTES);
        datagram.extend_from_slice(&header);
        datagram.extend_from_slice(message);
        let sealed = InOutBuf::from(&mut datagram[HEADER_BYTES..]);
        let tag = Aes256Gcm::encrypt_inout_detached(
            key.cipher(),
            &nonce(&header),
            &self.fleet.associated_data(&header),
            sealed,
        )
        .expect("a datagram is far below AES-GCM's 64 GiB a message");
        datagram.extend_from_slice(&tag);
        datagram
    }
}

/// Opens datagrams. One per process and socket; remembers what it has seen.
pub struct Opener {
    fleet: FleetBinding,
    replay: ReplayGuard,
    halves: VecDeque<Half>,
}

struct Half {
    session: SessionId,
    counter: u32,
    bytes: Vec<u8>,
}

impl Opener {
    /// An opener for a fleet that has seen nothing yet.
    pub fn new(fleet: FleetName) -> Self {
        Self { fleet: FleetBinding::new(fleet), replay: ReplayGuard::default(), halves: VecDeque::new() }
    }

    /// Opens a datagram. `None` is the first half of a message, kept until its second half arrives.
    ///
    /// Pure, except for what this opener remembers, and it remembers authentic datagrams only: arbitrary bytes may be
    /// given (fuzzing does). `now_ms` is the time in ms since the epoch.
    ///
    /// # Errors
    /// The first reason found; the datagram must be dropped.
    pub fn open(
        &mut self,
        keyring: &Keyring,
        now_ms: u64,
        datagram: &[u8],
    ) -> Result<Option<Vec<u8>>, Refusal> {
        if datagram.len() > MAX_DATAGRAM_BYTES {
            return Err(Refusal::Oversized);
        }
        let (header_bytes, rest) = datagram.split_first_chunk::<HEADER_BYTES>().ok_or(Refusal::TooShort)?;
        let (sealed, tag) = rest.split_last_chunk::<TAG_BYTES>().ok_or(Refusal::TooShort)?;
        let header = Header::parse(header_bytes)?;
        if header.fleet_tag != self.fleet.tag {
            return Err(Refusal::WrongFleet);
        }
        let key = keyring.get(header.key).ok_or(Refusal::UnknownKey)?;
        if header.sent_ms.abs_diff(now_ms) > MAX_CLOCK_SKEW_MS {
            return Err(Refusal::Stale);
        }
        if !self.replay.is_fresh(header.session, header.counter, header.sent_ms) {
            return Err(Refusal::Replay);
        }
        let mut message = sealed.to_vec();
        Aes256Gcm::decrypt_inout_detached(
            key.cipher(),
            &nonce(header_bytes),
            &self.fleet.associated_data(header_bytes),
            InOutBuf::from(message.as_mut_slice()),
            &Tag::from(*tag),
        )
        .map_err(|_| Refusal::BadTag)?;
        let horizon_ms = now_ms.saturating_sub(MAX_CLOCK_SKEW_MS);
        self.replay.mark(header.session, header.counter, header.sent_ms, horizon_ms);
        self.assemble(&header, message)
    }

    /// Remembers a datagram that this process has sealed, so that nobody can send it back to us.
    pub fn remember_own(&mut self, now_ms: u64, datagram: &[u8]) {
        let header = datagram.first_chunk::<HEADER_BYTES>().map(Header::parse);
        if let Some(Ok(Header { session, counter, sent_ms, .. })) = header {
            self.replay.mark(session, counter, sent_ms, now_ms.saturating_sub(MAX_CLOCK_SKEW_MS));
        }
    }

    fn assemble(&mut self, header: &Header, bytes: Vec<u8>) -> Result<Option<Vec<u8>>, Refusal> {
        let Header { session, counter, .. } = *header;
        match header.part {
            Part::Whole => Ok(Some(bytes)),
            Part::First => {
                if self.halves.len() == MAX_HALVES {
                    self.halves.pop_front();
                }
                self.halves.push_back(Half { session, counter, bytes });
                Ok(None)
            }
            Part::Second => {
                let first = self
                    .halves
                    .iter()
                    .position(|half| half.session == session && half.counter.checked_add(1) == Some(counter));
                let half = first.and_then(|index| self.halves.remove(index)).ok_or(Refusal::LostHalf)?;
                let mut message = half.bytes;
                message.extend_from_slice(&bytes);
                if message.len() > MAX_DATAGRAM_BYTES {
                    return Err(Refusal::Oversized);
                }
                Ok(Some(message))
            }
        }
    }
}

#[cfg(test)]
mod tests;
