//! What follows from the list of kernel tables alone: keys, entries, and the tables themselves.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use serde::{Deserialize, Serialize};

use crate::{Op, Row};

/// The key of a table with at most one row. It is displayed as nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Single;

impl fmt::Display for Single {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ok(())
    }
}

/// The rows of one table by key.
pub trait Rows<K, V> {
    /// The row of a key.
    fn row(&self, key: &K) -> Option<&V>;
    /// Writes a row, or removes it.
    fn set_row(&mut self, key: K, row: Option<V>);
    /// All rows, by key.
    fn rows<'a>(&'a self) -> impl Iterator<Item = (K, &'a V)>
    where
        V: 'a;
}

impl<K: Copy + Ord, V> Rows<K, V> for BTreeMap<K, V> {
    fn row(&self, key: &K) -> Option<&V> {
        self.get(key)
    }

    fn set_row(&mut self, key: K, row: Option<V>) {
        match row {
            Some(row) => drop(self.insert(key, row)),
            None => drop(self.remove(&key)),
        }
    }

    fn rows<'a>(&'a self) -> impl Iterator<Item = (K, &'a V)>
    where
        V: 'a,
    {
        self.iter().map(|(key, row)| (*key, row))
    }
}

impl<V> Rows<Single, V> for Option<V> {
    fn row(&self, _: &Single) -> Option<&V> {
        self.as_ref()
    }

    fn set_row(&mut self, _: Single, row: Option<V>) {
        *self = row;
    }

    fn rows<'a>(&'a self) -> impl Iterator<Item = (Single, &'a V)>
    where
        V: 'a,
    {
        self.iter().map(|row| (Single, row))
    }
}

/// Where the rows of a type are: the part of a [`Row`] that follows from the list.
pub trait Stored: Sized {
    /// The key of a row.
    type Key: Copy + Ord + fmt::Display + Serialize;
    /// The rows by key.
    type Table: Rows<Self::Key, Self>;

    /// The key among those of all tables.
    fn table_key(key: Self::Key) -> TableKey;
    /// The row with its key.
    fn entry(self, key: Self::Key) -> Entry;
    /// The table of this row type.
    fn table(tables: &Tables) -> &Self::Table;
    /// As [`Stored::table`].
    fn table_mut(tables: &mut Tables) -> &mut Self::Table;
}

macro_rules! define {
    (() $(#[doc = $doc:literal] $Variant:ident $field:ident [$Table:ident] $Key:ty => $Row:ty;)+) => {
        /// The key of one entry. The order is that of a plan: an entry depends only on entries with smaller keys.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum TableKey {
            $(#[doc = $doc] $Variant($Key),)+
        }

        /// A row of any table, with its key.
        #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
        pub enum Entry {
            $(#[doc = $doc] $Variant($Key, $Row),)+
        }

        /// All kernel tables of a node: the same type for what is wanted and what is there.
        #[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
        pub struct Tables {
            $(#[doc = $doc] pub $field: define!(@table $Table $Key, $Row),)+
        }

        $(impl Stored for $Row {
            type Key = $Key;
            type Table = define!(@table $Table $Key, $Row);

            fn table_key(key: $Key) -> TableKey {
                TableKey::$Variant(key)
            }

            fn entry(self, key: $Key) -> Entry {
                Entry::$Variant(key, self)
            }

            fn table(tables: &Tables) -> &Self::Table {
                &tables.$field
            }

            fn table_mut(tables: &mut Tables) -> &mut Self::Table {
                &mut tables.$field
            }
        })+

        impl Entry {
            /// Its key.
            pub const fn key(&self) -> TableKey {
                match self {
                    $(Self::$Variant(key, _) => TableKey::$Variant(*key),)+
                }
            }
        }

        impl Tables {
            /// Shows every row to a visitor, in the order of the list and then of keys.
            pub fn visit(&self, visitor: &mut impl RowVisitor) {
                $(
                    visitor.table(<$Row>::NAME);
                    self.$field.rows().for_each(|(key, row)| visitor.row(key, row));
                )+
            }
        }
    };
    (@table Option $Key:ty, $Row:ty) => { Option<$Row> };
    (@table BTreeMap $Key:ty, $Row:ty) => { BTreeMap<$Key, $Row> };
}
crate::kernel_tables!(define!());

/// Evaluates an expression for the row type `$R` of a key, with the key bound to `$key`.
macro_rules! by_row_type {
    ((@match $table_key:expr, $R:ident, $key:ident, $body:expr)
        $(#[doc = $doc:literal] $Variant:ident $field:ident [$Table:ident] $Key:ty => $Row:ty;)+
    ) => {
        match $table_key {
            $($crate::TableKey::$Variant($key) => {
                #[allow(dead_code, reason = "some expressions need only the key")]
                type $R = $Row;
                $body
            })+
        }
    };
    ($table_key:expr, |$R:ident, $key:ident| $body:expr) => {
        $crate::kernel_tables!(by_row_type!(@match $table_key, $R, $key, $body))
    };
}
pub(crate) use by_row_type;

/// What is done with each row of all tables.
pub trait RowVisitor {
    /// The rows that follow are of this table; there may be none.
    fn table(&mut self, name: &'static str);
    /// One row.
    fn row<R: Row>(&mut self, key: R::Key, row: &R);
}

impl TableKey {
    /// The base of this node.
    pub const BASE: Self = Self::Base(Single);

    /// The table's name, in metrics and on the command line.
    pub const fn table(&self) -> &'static str {
        by_row_type!(self, |R, _key| R::NAME)
    }

    /// The entry that a step makes or removes; `None` for a step that concerns flows.
    pub const fn of(op: &Op) -> Option<Self> {
        match op {
            Op::Put(entry) => Some(entry.key()),
            Op::Delete(key) => Some(*key),
            Op::BumpEpochs(_) => None,
        }
    }
}

impl fmt::Display for TableKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = by_row_type!(self, |R, key| key.to_string());
        f.write_str(self.table())?;
        if key.is_empty() { Ok(()) } else { write!(f, " {key}") }
    }
}

impl Tables {
    /// The row of a key.
    pub fn row<R: Stored>(&self, key: &R::Key) -> Option<&R> {
        R::table(self).row(key)
    }

    /// Writes a row, or removes it.
    pub fn set<R: Stored>(&mut self, key: R::Key, row: Option<R>) {
        R::table_mut(self).set_row(key, row);
    }

    /// Whether a key has a row.
    pub fn contains(&self, key: &TableKey) -> bool {
        by_row_type!(key, |R, key| self.row::<R>(key).is_some())
    }

    fn entry<R: Row>(&self, key: R::Key) -> Option<Entry> {
        self.row::<R>(&key).map(|row| row.clone().entry(key))
    }

    /// The entry of a key.
    pub fn get(&self, key: &TableKey) -> Option<Entry> {
        by_row_type!(key, |R, key| self.entry::<R>(*key))
    }

    /// All keys that have a row.
    pub fn keys(&self) -> BTreeSet<TableKey> {
        struct Keys(BTreeSet<TableKey>);
        impl RowVisitor for Keys {
            fn table(&mut self, _: &'static str) {}
            fn row<R: Row>(&mut self, key: R::Key, _: &R) {
                self.0.insert(R::table_key(key));
            }
        }
        let mut keys = Keys(BTreeSet::new());
        self.visit(&mut keys);
        keys.0
    }

    /// Removes the row of a key, if there is one.
    pub fn remove(&mut self, key: &TableKey) {
        by_row_type!(key, |R, key| self.set::<R>(*key, None));
    }

    /// Does to the tables what a step does to the kernel. A step that concerns flows changes nothing here.
    pub fn apply(&mut self, op: &Op) {
        match op {
            Op::Put(entry) => self.put(entry.clone()),
            Op::Delete(key) => self.remove(key),
            Op::BumpEpochs(_) => {}
        }
    }
}

macro_rules! on_entries {
    (() $(#[doc = $doc:literal] $Variant:ident $field:ident [$Table:ident] $Key:ty => $Row:ty;)+) => {
        impl Tables {
            pub(crate) fn put(&mut self, entry: Entry) {
                match entry {
                    $(Entry::$Variant(key, row) => self.set(key, Some(row)),)+
                }
            }
        }

        impl fmt::Display for Entry {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}: ", self.key())?;
                match self {
                    $(Self::$Variant(_, row) => row.fmt(f),)+
                }
            }
        }
    };
}
crate::kernel_tables!(on_entries!());
