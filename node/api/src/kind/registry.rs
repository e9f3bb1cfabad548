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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// What a further kind costs: one implementation, and one line in the registry below.
    #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
    pub struct NoteSpec {
        text: String,
    }

    impl Kind for NoteSpec {
        const WORD: &'static str = "note";
        const COLLECTION: &'static str = "notes";
        const COLUMNS: &'static [&'static str] = &["TEXT"];
        type Put = Self;
        type Written = String;
        type Object = (ObjectName, Self);

        fn mistakes(&self) -> Vec<String> {
            if self.text.is_empty() { vec!["spec.text: is empty".to_owned()] } else { Vec::new() }
        }

        fn normalise(self) -> Self {
            Self { text: self.text.trim().to_owned() }
        }

        fn put(self) -> Self {
            self
        }

        fn name_and_spec(object: Self::Object) -> Self::Object {
            object
        }

        fn describe(written: &String) -> String {
            format!("note {written} created")
        }

        fn rows((_, spec): &Self::Object) -> Vec<Vec<String>> {
            vec![vec![spec.text.clone()]]
        }
    }

    registry! {
        Service: ServiceSpec,
        Note: NoteSpec,
    }

    #[test]
    fn kind_registry_dispatches_to_each_of_several_kinds() {
        assert_eq!(KindName::ALL.iter().map(|kind| kind.word()).collect::<Vec<_>>(), ["service", "note"]);
        let note = KindName::Note;
        assert_eq!((note.as_str(), note.collection(), note.columns()), ("Note", "notes", &["TEXT"][..]));
        assert_eq!(note.written(json!("a")).unwrap().describe(), "note a created");
        assert!(KindName::Service.written(json!("a")).is_err());
        let object = note.object(json!(["a", {"text": " b "}])).unwrap();
        assert_eq!(object.rows(), [[" b "]]);
        let (name, spec) = object.name_and_spec();
        assert_eq!((name.as_str(), spec.kind(), spec.mistakes()), ("a", note, Vec::new()));
        assert_eq!(spec.normalise().put(), json!({"text": "b"}));
        let entry = std::iter::once(("spec", json!({"text": ""})));
        let mut map = serde::de::value::MapDeserializer::<_, serde_json::Error>::new(entry);
        map.next_key::<String>().unwrap();
        let spec = Spec::next_value(note, &mut map).unwrap();
        assert_eq!(spec.mistakes(), ["spec.text: is empty"]);
    }
}
