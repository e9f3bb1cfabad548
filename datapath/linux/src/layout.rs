//! What a map is like: its type, its sizes, and where the fields of its keys and values lie. Every map of ours
//! carries that with it (BTF), so that a build reads the maps of another, older or newer, that it knows nothing of.

use std::{collections::BTreeMap, io, os::fd::BorrowedFd};

use crate::{
    bpf,
    btf::{Btf, BtfError, Field},
    descriptor::MAPS,
    error::DatapathError,
    object,
};

/// A map's type, sizes and fields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shape {
    pub kind: u32,
    pub flags: u32,
    pub key_bytes: u32,
    pub value_bytes: u32,
    pub max_entries: u32,
    /// `None` where the map does not tell.
    pub fields: Option<Fields>,
}

/// Where the fields of a map's keys and values lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fields {
    pub key: Vec<Field>,
    pub value: Vec<Field>,
}

/// The shapes of the maps that this build makes, by name.
pub(crate) fn wanted() -> Result<BTreeMap<&'static str, Shape>, DatapathError> {
    let object = aya_obj::Object::parse(object::OBJECT).map_err(|error| DatapathError::load(error.into()))?;
    let blob = object.btf.as_ref().map(aya_obj::btf::Btf::to_bytes);
    let blob = blob.ok_or_else(|| layout("", "the object has no type information".into()))?;
    let btf = Btf::parse(&blob).map_err(|error| layout("", error.to_string()))?;
    let mut shapes = BTreeMap::new();
    for name in MAPS.iter().map(|(name, _)| *name) {
        let map = object.maps.get(name).ok_or_else(|| layout(name, "is not in the object".into()))?;
        let fields = match map {
            aya_obj::Map::Btf(map) => fields(&btf, map.def.btf_key_type_id, map.def.btf_value_type_id)
                .map_err(|error| layout(name, error.to_string()))?,
            aya_obj::Map::Legacy(_) => None,
        };
        let shape = Shape {
            kind: map.map_type(),
            flags: map.map_flags(),
            key_bytes: map.key_size(),
            value_bytes: map.value_size(),
            max_entries: map.max_entries(),
            fields,
        };
        shapes.insert(name, shape);
    }
    Ok(shapes)
}

impl Shape {
    /// Of a map in the kernel. Type information that cannot be read counts as none.
    pub(crate) fn of(name: &str, map: BorrowedFd<'_>) -> Result<Self, DatapathError> {
        let fail = |source: io::Error| layout(name, format!("cannot be asked: {source}"));
        let info = bpf::map_info(map).map_err(fail)?;
        let fields = match info.btf_id {
            0 => None,
            id => {
                let blob = bpf::btf(id).map_err(fail)?;
                Btf::parse(&blob)
                    .and_then(|btf| fields(&btf, info.btf_key_type_id, info.btf_value_type_id))
                    .unwrap_or_else(|error| {
                        tracing::warn!(map = name, %error, "a pinned map's type information cannot be read");
                        None
                    })
            }
        };
        Ok(Self {
            kind: info.type_,
            flags: info.map_flags,
            key_bytes: info.key_size,
            value_bytes: info.value_size,
            max_entries: info.max_entries,
            fields,
        })
    }

    /// The fields, if they lie within keys and values as large as the map's.
    fn known_fields(&self) -> Option<(&[Field], &[Field])> {
        let Fields { key, value } = self.fields.as_ref()?;
        let within = |fields: &[Field], bytes: u32| {
            fields.iter().all(|field| field.offset + field.bytes <= bytes as usize)
        };
        (within(key, self.key_bytes) && within(value, self.value_bytes)).then_some((key, value))
    }

    /// Whether a map of this shape can be used as one of another: all is equal, but for descriptions of maps
    /// that the kernel keeps none of.
    pub(crate) fn serves_as(&self, wanted: &Self, described: bool) -> bool {
        let sizes =
            |shape: &Self| (shape.kind, shape.flags, shape.key_bytes, shape.value_bytes, shape.max_entries);
        sizes(self) == sizes(wanted) && (!described || self.fields == wanted.fields)
    }
}

fn fields(btf: &Btf<'_>, key: u32, value: u32) -> Result<Option<Fields>, BtfError> {
    match (key, value) {
        (0, _) | (_, 0) => Ok(None),
        _ => Ok(Some(Fields { key: btf.fields(key)?, value: btf.fields(value)? })),
    }
}

/// How keys and values of one shape become those of another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Conversion {
    key: Vec<Move>,
    value: Vec<Move>,
}

/// Bytes that stand elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Move {
    from: usize,
    to: usize,
    bytes: usize,
}

impl Conversion {
    /// By the names of fields. A field of a value that only one side has is dropped, or is zero; one that
    /// has another size counts as another field. `None` if a map does not tell its fields, or keys have not
    /// the same ones: entries would fall together.
    pub(crate) fn between(from: &Shape, to: &Shape) -> Option<Self> {
        let ((from_key, from_value), (to_key, to_value)) = (from.known_fields()?, to.known_fields()?);
        let key = moves(from_key, to_key);
        let whole = key.len() == from_key.len() && key.len() == to_key.len();
        whole.then(|| Self { key: merge(key), value: merge(moves(from_value, to_value)) })
    }

    pub(crate) fn key(&self, from: &[u8], to: &mut [u8]) {
        carry(&self.key, from, to);
    }

    pub(crate) fn value(&self, from: &[u8], to: &mut [u8]) {
        carry(&self.value, from, to);
    }
}

fn moves(from: &[Field], to: &[Field]) -> Vec<Move> {
    let place = |field: &Field| {
        let old = from.iter().find(|old| old.name == field.name && old.bytes == field.bytes)?;
        Some(Move { from: old.offset, to: field.offset, bytes: field.bytes })
    };
    to.iter().filter_map(place).collect()
}

/// Joins what lies side by side in both.
fn merge(moves: Vec<Move>) -> Vec<Move> {
    let mut merged: Vec<Move> = Vec::new();
    for step in moves {
        match merged.last_mut() {
            Some(last) if last.from + last.bytes == step.from && last.to + last.bytes == step.to => {
                last.bytes += step.bytes;
            }
            _ => merged.push(step),
        }
    }
    merged
}

fn carry(moves: &[Move], from: &[u8], to: &mut [u8]) {
    to.fill(0);
    for Move { from: source, to: target, bytes } in moves {
        to[*target..target + bytes].copy_from_slice(&from[*source..source + bytes]);
    }
}

fn layout(map: &str, text: String) -> DatapathError {
    DatapathError::Layout { map: map.into(), text }
}

#[cfg(test)]
mod tests {
    use std::mem::{offset_of, size_of};

    use datapath_abi::{FlowEntry, map_name};

    use super::*;
    use crate::maps::TRANSIENT_MAPS;

    /// Fields as `name:bytes`, one after the other; `-` leaves room.
    fn fields(text: &str) -> (Vec<Field>, u32) {
        let mut offset = 0;
        let mut fields = Vec::new();
        for word in text.split_whitespace() {
            let (name, bytes) = word.split_once(':').expect("name:bytes");
            let bytes = bytes.parse().expect("a number");
            if name != "-" {
                fields.push(Field { name: name.into(), offset, bytes });
            }
            offset += bytes;
        }
        (fields, offset as u32)
    }

    fn shape(key: &str, value: &str) -> Shape {
        let ((key, key_bytes), (value, value_bytes)) = (fields(key), fields(value));
        Shape {
            kind: 1,
            flags: 0,
            key_bytes,
            value_bytes,
            max_entries: 1,
            fields: Some(Fields { key, value }),
        }
    }

    /// What becomes of a value whose bytes are 1, 2, 3 and so on.
    fn check(from: &str, to: &str, expected: &[u8]) {
        let (from, to) = (shape("k:2", from), shape("k:2", to));
        let conversion = Conversion::between(&from, &to).expect("the keys agree");
        let old: Vec<u8> = (1..=from.value_bytes as u8).collect();
        let mut new = vec![0xff; to.value_bytes as usize];
        conversion.value(&old, &mut new);
        assert_eq!(new, expected);
    }

    #[test]
    fn fields_go_by_their_names() {
        check("a:2 b:1", "a:2 b:1", &[1, 2, 3]);
        check("a:2 b:1", "b:1 a:2", &[3, 1, 2]);
        check("a:2 b:1 c:1", "a:2 c:1", &[1, 2, 4]);
        check("a:2 c:1", "a:2 b:1 -:1 c:1", &[1, 2, 0, 0, 3]);
        check("a:2 b:1", "a:1 b:1", &[0, 3]);
    }

    #[test]
    fn keys_must_have_the_same_fields() {
        let between = |from, to| Conversion::between(&shape(from, "v:1"), &shape(to, "v:1"));
        assert!(between("a:1 b:1", "b:1 -:2 a:1").is_some());
        assert!(between("a:1 b:1", "a:1").is_none());
        assert!(between("a:1", "a:1 b:1").is_none());
        assert!(between("a:1", "a:2").is_none());
    }

    #[test]
    fn what_does_not_tell_or_lies_is_not_read() {
        let honest = shape("a:1", "v:4");
        let silent = Shape { fields: None, ..honest.clone() };
        let lying = Shape { value_bytes: 3, ..honest.clone() };
        for other in [silent, lying] {
            assert_eq!(Conversion::between(&other, &honest), None);
            assert_eq!(Conversion::between(&honest, &other), None);
        }
    }

    /// The toolchain describes what it compiled: without that, no later build could read this one's maps.
    #[test]
    fn map_that_is_handed_over_describes_its_fields() {
        let shapes = wanted().expect("the object's own maps");
        for (name, shape) in &shapes {
            let transient = TRANSIENT_MAPS.contains(name);
            assert!(transient || shape.known_fields().is_some(), "{name}");
        }
        let (_, entry) = shapes[map_name::FLOWS_V4].known_fields().expect("told");
        let told: usize = entry.iter().map(|field| field.bytes).sum();
        assert_eq!(told, size_of::<FlowEntry>(), "all of it");
        for (name, offset) in [
            ("packets", offset_of!(FlowEntry, packets)),
            ("epoch", offset_of!(FlowEntry, epoch)),
            ("src_mac", offset_of!(FlowEntry, src_mac)),
        ] {
            let field = entry.iter().find(|field| field.name == name).expect(name);
            assert_eq!(field.offset, offset, "{name}");
        }
    }

    #[test]
    fn damaged_type_information_is_refused_and_never_panics() {
        let object = aya_obj::Object::parse(object::OBJECT).expect("the object parses");
        let blob = object.btf.expect("it has type information").to_bytes();
        let types = Btf::parse(&blob).expect("it is whole").len() as u32;
        for length in (0..blob.len()).step_by(blob.len() / 100) {
            assert_eq!(Btf::parse(&blob[..length]).err(), Some(BtfError::Malformed), "{length} bytes");
        }
        for place in 0..blob.len().min(4_000) {
            let mut damaged = blob.clone();
            damaged[place] ^= 0xff;
            if let Ok(btf) = Btf::parse(&damaged) {
                for id in 0..types.min(100) {
                    let _ = btf.fields(id);
                }
            }
        }
    }
}
