//! Manifests: YAML (or JSON, which is YAML too) that describes objects of the fleet, to be applied.
//!
//! Parsing needs no agent: mistakes are reported with their line before anything is requested.

mod explain;
#[cfg(test)]
mod tests;

use std::fmt;

use explain::explain;
use identity::ObjectName;
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, IgnoredAny, MapAccess},
    ser::SerializeStruct,
};
use serde_saphyr::Spanned;

use crate::kind::{KindName, Object, Spec};

/// The most bytes of a file of manifests: some ten thousand services.
pub const MAX_MANIFEST_BYTES: usize = 8 * 1024 * 1024;
/// The most values and lists of one document: several times what the largest valid spec has. The limit bounds what a short
/// text can expand to by using YAML anchors repeatedly.
const MAX_NODES: usize = 50_000;

const FIELDS: &[&str] = &["apiVersion", "kind", "metadata", "spec"];

/// The description of one object: `apiVersion`, `kind`, `metadata` and `spec`. The variant of `spec` is the kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// The object's name, unique among the objects of its kind in the fleet.
    pub name: ObjectName,
    /// The object's wanted state.
    pub spec: Spec,
}

/// The versions of the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum ApiVersion {
    #[serde(rename = "warren/v1")]
    V1,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Metadata {
    name: ObjectName,
}

/// The content of a text. Documents with mistakes are left out, and do not affect the other documents.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Manifests {
    /// The valid manifests, normalised, in the order of the text.
    pub manifests: Vec<Manifest>,
    /// One line for each mistake in the other documents, with its place.
    pub mistakes: Vec<String>,
}

impl Manifests {
    /// Parses the documents of a text. A document that does not deserialise has its first mistake reported; one that does not
    /// validate has all mistakes reported. Text that is not YAML ends the parsing, as the start of the next document cannot
    /// be found.
    pub fn parse(text: &str) -> Self {
        let mut parsed = Self::default();
        if text.len() > MAX_MANIFEST_BYTES {
            let size = text.len();
            parsed
                .mistakes
                .push(format!("{size} bytes; the limit is {MAX_MANIFEST_BYTES}: use several files"));
            return parsed;
        }
        let options = serde_saphyr::options! {
            with_snippet: false,
            // The budget holds for each document.
            budget: serde_saphyr::budget! {
                max_nodes: MAX_NODES,
                // A list has a start and an end event.
                max_events: 2 * MAX_NODES,
            },
        };
        let lines: Vec<&str> = text.lines().collect();
        let mut bytes = text.as_bytes();
        for document in serde_saphyr::read_with_options(&mut bytes, options) {
            let document: Spanned<Manifest> = match document {
                Ok(document) => document,
                Err(error) => {
                    parsed.mistakes.push(explain(&error, &lines));
                    continue;
                }
            };
            let (line, Manifest { name, spec }) = (document.referenced.line(), document.value);
            let mistakes = spec.mistakes();
            if mistakes.is_empty() {
                parsed.manifests.push(Manifest { name, spec: spec.normalise() });
            } else {
                let word = spec.kind().word();
                parsed
                    .mistakes
                    .extend(mistakes.iter().map(|mistake| format!("line {line}: {word} {name}: {mistake}")));
            }
        }
        parsed
    }
}

impl Manifest {
    /// The manifest as a text that can be applied.
    pub fn to_yaml(&self) -> String {
        serde_saphyr::to_string(self).expect("a manifest is plain data with text keys")
    }
}

impl From<Object> for Manifest {
    /// The manifest that describes an existing object.
    fn from(object: Object) -> Self {
        let (name, spec) = object.name_and_spec();
        Self { name, spec }
    }
}

impl Serialize for Manifest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("Manifest", FIELDS.len())?;
        fields.serialize_field("apiVersion", &ApiVersion::V1)?;
        fields.serialize_field("kind", &self.spec.kind())?;
        fields.serialize_field("metadata", &Metadata { name: self.name.clone() })?;
        fields.serialize_field("spec", &self.spec)?;
        fields.end()
    }
}

impl<'de> Deserialize<'de> for Manifest {
    /// Deserialises `spec` directly as the type that `kind` names, so that errors keep their line and column. Hence `kind`
    /// must come before `spec`.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_struct("Manifest", FIELDS, Visitor)
    }
}

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "camelCase")]
enum Field {
    ApiVersion,
    Kind,
    Metadata,
    Spec,
}

struct Visitor;

impl<'de> de::Visitor<'de> for Visitor {
    type Value = Manifest;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a manifest")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Manifest, A::Error> {
        let (mut version, mut kind, mut metadata, mut spec) = (None, None, None, None);
        while let Some(field) = map.next_key()? {
            match field {
                Field::ApiVersion => version = Some(map.next_value::<ApiVersion>()?),
                Field::Kind => kind = Some(map.next_value::<KindName>()?),
                Field::Metadata => metadata = Some(map.next_value::<Metadata>()?),
                Field::Spec => {
                    let Some(kind) = kind else {
                        let place = map.next_value::<Spanned<IgnoredAny>>()?.referenced;
                        let (line, column) = (place.line(), place.column());
                        let text = format!("line {line}, column {column}: spec: write kind before spec");
                        return Err(de::Error::custom(text));
                    };
                    spec = Some(Spec::next_value(kind, &mut map)?);
                }
            }
        }
        let missing = de::Error::missing_field;
        version.ok_or_else(|| missing("apiVersion"))?;
        kind.ok_or_else(|| missing("kind"))?;
        let Metadata { name } = metadata.ok_or_else(|| missing("metadata"))?;
        Ok(Manifest { name, spec: spec.ok_or_else(|| missing("spec"))? })
    }
}
