//! Type information as the kernel keeps it (BTF): where the fields of a type lie.
//!
//! Format: Documentation/bpf/btf.rst of the kernel. Read here are only the kinds that plain structures are made
//! of; whatever else a structure holds counts as one field of so many bytes.

/// A field: a number or an array, however deep inside; `a.b` is `b` of the structure `a`. What is no structure
/// at all is one field without a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Field {
    pub name: String,
    pub offset: usize,
    pub bytes: usize,
}

/// What keeps a type from being described.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BtfError {
    #[error("type information is cut short or of another format")]
    Malformed,
    #[error("type information lacks type {0}, or cannot say its size")]
    Unknown(u32),
}

const MAGIC: u16 = 0xeb9f;
const HEADER_BYTES: usize = 24;
/// Deeper than any structure of ours; ends types that contain themselves.
const DEPTH_LIMIT: u32 = 16;

mod kind {
    pub(super) const INT: u32 = 1;
    pub(super) const PTR: u32 = 2;
    pub(super) const ARRAY: u32 = 3;
    pub(super) const STRUCT: u32 = 4;
    pub(super) const UNION: u32 = 5;
    pub(super) const ENUM: u32 = 6;
    pub(super) const TYPEDEF: u32 = 8;
    pub(super) const RESTRICT: u32 = 11;
    pub(super) const FUNC_PROTO: u32 = 13;
    pub(super) const VAR: u32 = 14;
    pub(super) const DATASEC: u32 = 15;
    pub(super) const FLOAT: u32 = 16;
    pub(super) const DECL_TAG: u32 = 17;
    pub(super) const TYPE_TAG: u32 = 18;
    pub(super) const ENUM64: u32 = 19;
}

/// Parsed type information.
#[derive(Debug)]
pub(crate) struct Btf<'a> {
    /// By number, from 1: `info`, `size` or `type`, and what follows.
    types: Vec<(u32, u32, &'a [u8])>,
    strings: &'a [u8],
}

impl<'a> Btf<'a> {
    /// Reads the header and finds the types.
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Self, BtfError> {
        let word = |offset: usize| u32_at(bytes, offset).map(|word| word as usize);
        let magic = bytes.get(..2).map(|bytes| u16::from_le_bytes([bytes[0], bytes[1]]));
        if magic != Some(MAGIC) {
            return Err(BtfError::Malformed);
        }
        let header = word(4)?;
        if header < HEADER_BYTES {
            return Err(BtfError::Malformed);
        }
        let part = |offset: usize, length: usize| {
            let start = header.checked_add(offset)?;
            bytes.get(start..start.checked_add(length)?)
        };
        let mut rest = part(word(8)?, word(12)?).ok_or(BtfError::Malformed)?;
        let strings = part(word(16)?, word(20)?).ok_or(BtfError::Malformed)?;
        let mut types = Vec::new();
        while !rest.is_empty() {
            let (info, size) = (u32_at(rest, 4)?, u32_at(rest, 8)?);
            let extra = extra_bytes(info).ok_or(BtfError::Malformed)?;
            let following = rest.get(12..12 + extra).ok_or(BtfError::Malformed)?;
            types.push((info, size, following));
            rest = &rest[12 + extra..];
        }
        Ok(Self { types, strings })
    }

    /// How many types there are.
    #[cfg(test)]
    pub(crate) const fn len(&self) -> usize {
        self.types.len()
    }

    /// The fields of a type by its number, in the order in which they lie.
    pub(crate) fn fields(&self, id: u32) -> Result<Vec<Field>, BtfError> {
        let mut fields = Vec::new();
        self.collect(id, "", 0, 0, &mut fields)?;
        fields.sort_by_key(|field| field.offset);
        Ok(fields)
    }

    fn collect(
        &self,
        id: u32,
        name: &str,
        offset: usize,
        depth: u32,
        fields: &mut Vec<Field>,
    ) -> Result<(), BtfError> {
        let (info, size, members) = self.resolve(id)?;
        if kind_of(info) != kind::STRUCT || depth == DEPTH_LIMIT {
            let bytes = self.size_of(id, (info, size, members), depth)?;
            fields.push(Field { name: name.into(), offset, bytes });
            return Ok(());
        }
        for member in members.chunks_exact(12) {
            let member_name = self.string(u32_at(member, 0)?)?;
            let bits = u32_at(member, 8)?;
            if info >> 31 != 0 && bits >> 24 != 0 {
                // A bit field: its structure is taken as a whole.
                fields.push(Field { name: name.into(), offset, bytes: size as usize });
                return Ok(());
            }
            let path = if name.is_empty() { member_name.to_owned() } else { format!("{name}.{member_name}") };
            let at = offset + (bits & 0x00ff_ffff) as usize / 8;
            self.collect(u32_at(member, 4)?, &path, at, depth + 1, fields)?;
        }
        Ok(())
    }

    /// The type behind names and qualifiers.
    fn resolve(&self, id: u32) -> Result<(u32, u32, &'a [u8]), BtfError> {
        let mut number = id;
        for _ in 0..DEPTH_LIMIT {
            let index = (number as usize).checked_sub(1).ok_or(BtfError::Unknown(id))?;
            let found = *self.types.get(index).ok_or(BtfError::Unknown(id))?;
            match kind_of(found.0) {
                kind::TYPEDEF..=kind::RESTRICT | kind::TYPE_TAG => number = found.1,
                _ => return Ok(found),
            }
        }
        Err(BtfError::Unknown(id))
    }

    fn size_of(
        &self,
        id: u32,
        (info, size, following): (u32, u32, &[u8]),
        depth: u32,
    ) -> Result<usize, BtfError> {
        match kind_of(info) {
            kind::INT | kind::STRUCT | kind::UNION | kind::ENUM | kind::FLOAT | kind::ENUM64 => {
                Ok(size as usize)
            }
            kind::PTR => Ok(8),
            kind::ARRAY if depth < DEPTH_LIMIT => {
                let (element, count) = (u32_at(following, 0)?, u32_at(following, 8)?);
                let bytes = self.size_of(element, self.resolve(element)?, depth + 1)?;
                bytes.checked_mul(count as usize).ok_or(BtfError::Unknown(id))
            }
            _ => Err(BtfError::Unknown(id)),
        }
    }

    fn string(&self, offset: u32) -> Result<&'a str, BtfError> {
        let bytes = self.strings.get(offset as usize..).ok_or(BtfError::Malformed)?;
        let end = bytes.iter().position(|byte| *byte == 0).ok_or(BtfError::Malformed)?;
        std::str::from_utf8(&bytes[..end]).map_err(|_| BtfError::Malformed)
    }
}

const fn kind_of(info: u32) -> u32 {
    info >> 24 & 0x1f
}

/// Bytes that follow a type of this kind.
fn extra_bytes(info: u32) -> Option<usize> {
    let count = (info & 0xffff) as usize;
    Some(match kind_of(info) {
        kind::INT | kind::VAR | kind::DECL_TAG => 4,
        kind::ARRAY => 12,
        kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => count * 12,
        kind::ENUM | kind::FUNC_PROTO => count * 8,
        0 | 20.. => return None,
        _ => 0,
    })
}

fn u32_at(bytes: &[u8], offset: usize) -> Result<u32, BtfError> {
    let end = offset.checked_add(4).ok_or(BtfError::Malformed)?;
    let word = bytes.get(offset..end).ok_or(BtfError::Malformed)?;
    Ok(u32::from_le_bytes([word[0], word[1], word[2], word[3]]))
}
