//! The registry of kinds, one line each, and the types that hold a value of any kind.

use identity::ObjectName;
use kvstore_schema::service::ServiceSpec;
use serde::{Deserialize, Serialize, de::MapAccess};

use super::Kind;

macro_rules! registry {
    ($($name:ident: $spec:ty,)+) => {
        /// The word after `kind:` in a manifest.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum KindName {
            $(#[doc = concat!("`kind: ", stringify!($name), "`")] $name,)+
        }

        /// The spec of an object of any kind.
        #[derive(Debug, Clone, PartialEq, Eq, Serialize)]
        #[serde(untagged)]
        pub enum Spec {
            $(#[doc = concat!("Of `kind: ", stringify!($name), "`.")] $name($spec),)+
        }

        /// The answer to a write of any kind.
        #[derive(Debug, Clone, PartialEq, Eq, Serialize)]
        #[serde(untagged)]
        pub enum Written {
            $(#[doc = concat!("Of `kind: ", stringify!($name), "`.")] $name(<$spec as Kind>::Written),)+
        }

        /// An object of any kind, as an agent answers it.
        #[derive(Debug, Clone, PartialEq, Eq, Serialize)]
        #[serde(untagged)]
        pub enum Object {
            $(#[doc = concat!("Of `kind: ", stringify!($name), "`.")] $name(<$spec as Kind>::Object),)+
        }

        impl KindName {
            /// All kinds.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// The name of the kind.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => stringify!($name)),+ }
            }

            /// [`Kind::WORD`]
            pub const fn word(self) -> &'static str {
                match self { $(Self::$name => <$spec>::WORD),+ }
            }

            /// [`Kind::COLLECTION`]
            pub const fn collection(self) -> &'static str {
                match self { $(Self::$name => <$spec>::COLLECTION),+ }
            }

            /// [`Kind::COLUMNS`]
            pub const fn columns(self) -> &'static [&'static str] {
                match self { $(Self::$name => <$spec>::COLUMNS),+ }
            }
        }

        impl KindName {
            /// Deserialises the answer to a `PUT`.
            pub(crate) fn written(self, answer: serde_json::Value) -> serde_json::Result<Written> {
                match self { $(Self::$name => serde_json::from_value(answer).map(Written::$name)),+ }
            }

            /// Deserialises an object.
            pub(crate) fn object(self, answer: serde_json::Value) -> serde_json::Result<Object> {
                match self { $(Self::$name => serde_json::from_value(answer).map(Object::$name)),+ }
            }
        }

        impl Spec {
            /// The kind of the spec.
            pub const fn kind(&self) -> KindName {
                match self { $(Self::$name(_) => KindName::$name),+ }
            }

            /// [`Kind::mistakes`]
            pub fn mistakes(&self) -> Vec<String> {
                match self { $(Self::$name(spec) => Kind::mistakes(spec)),+ }
            }

            /// [`Kind::normalise`]
            #[must_use]
            pub fn normalise(self) -> Self {
                match self { $(Self::$name(spec) => Self::$name(Kind::normalise(spec))),+ }
            }

            /// [`Kind::put`], as JSON.
            pub(crate) fn put(self) -> serde_json::Value {
                let value = match self { $(Self::$name(spec) => serde_json::to_value(spec.put())),+ };
                value.expect("requests are plain data with text keys")
            }

            /// The next value of a map, deserialised as the spec of a kind.
            pub(crate) fn next_value<'de, A: MapAccess<'de>>(
                kind: KindName,
                map: &mut A,
            ) -> Result<Self, A::Error> {
                match kind { $(KindName::$name => map.next_value().map(Self::$name)),+ }
            }
        }

        impl Written {
            /// [`Kind::describe`]
            pub fn describe(&self) -> String {
                match self { $(Self::$name(written) => <$spec>::describe(written)),+ }
            }
        }

        impl Object {
            /// [`Kind::rows`]
            pub fn rows(&self) -> Vec<Vec<String>> {
                match self { $(Self::$name(object) => <$spec>::rows(object)),+ }
            }

            /// [`Kind::name_and_spec`]
            pub fn name_and_spec(self) -> (ObjectName, Spec) {
                match self {
                    $(Self::$name(object) => {
                        let (name, spec) = <$spec>::name_and_spec(object);
                        (name, Spec::$name(spec))
                    })+
                }
            }
        }
    };
}

registry! {
    Service: ServiceSpec,
}
