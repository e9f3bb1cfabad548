//! The registry of kinds, one line each, and the types that hold a value of any kind.

use identity::ObjectName;
use kvstore_schema::service::ServiceSpec;
use serde::{Deserialize, Serialize, de::MapAccess};

use super::Kind;
use crate::{Client, ClientError, Listing, Manifest};

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

            pub(super) fn name_and_spec(self) -> (ObjectName, Spec) {
                match self {
                    $(Self::$name(object) => {
                        let (name, spec) = <$spec>::name_and_spec(object);
                        (name, Spec::$name(spec))
                    })+
                }
            }
        }

        impl Client {
            /// `PUT /v1/COLLECTION/NAME`: answers when the object is in etcd. Repeating it is safe.
            ///
            /// # Errors
            /// [`ClientError`]; a conflict, for example when an address belongs to another object.
            pub async fn object_put(&self, Manifest { name, spec }: Manifest) -> Result<Written, ClientError> {
                let path = format!("/v1/{}/{name}", spec.kind().collection());
                Ok(match spec { $(Spec::$name(spec) => Written::$name(self.put(&path, &spec.put()).await?)),+ })
            }

            /// `GET /v1/COLLECTION/NAME`
            ///
            /// # Errors
            /// [`ClientError`]; not found.
            pub async fn object(&self, kind: KindName, name: &ObjectName) -> Result<Object, ClientError> {
                let path = format!("/v1/{}/{name}", kind.collection());
                Ok(match kind { $(KindName::$name => Object::$name(self.get(&path).await?)),+ })
            }

            /// `GET /v1/COLLECTION`
            ///
            /// # Errors
            /// [`ClientError`]
            pub async fn objects(&self, kind: KindName) -> Result<Listing<Object>, ClientError> {
                let path = format!("/v1/{}", kind.collection());
                match kind {
                    $(KindName::$name => {
                        let Listing { items, total } = self.get(&path).await?;
                        let items: Vec<<$spec as Kind>::Object> = items;
                        Ok(Listing { items: items.into_iter().map(Object::$name).collect(), total })
                    })+
                }
            }
        }
    };
}

registry! {
    Service: ServiceSpec,
}
