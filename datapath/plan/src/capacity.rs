//! How many rows each kernel map can hold, checked while planning.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{
    Room, Row, TableKey, Tables,
    tables::{RowVisitor, by_row_type},
};

/// A table that cannot hold all rows that are wanted. The rows that have room are made all the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum PlanError {
    /// Too many rows.
    #[error("table {table} is full: {wanted} entries wanted, {max} at the most")]
    Capacity {
        /// [`Room::name`].
        table: String,
        /// The number of rows that are wanted.
        wanted: usize,
        /// The number of rows that there can be.
        max: usize,
    },
}

/// Limits other than those of the kernel maps, by [`Room::name`]. Tests make them small; an agent has none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits(BTreeMap<String, usize>);

impl Limits {
    /// The same limits with another one for a room.
    #[must_use]
    pub fn with(mut self, room: &str, max: usize) -> Self {
        self.0.insert(room.to_owned(), max);
        self
    }

    pub(crate) fn max(&self, room: &Room) -> usize {
        self.0.get(room.name).copied().unwrap_or(room.max)
    }

    /// # Errors
    /// [`PlanError::Capacity`] if so many rows do not fit.
    pub(crate) fn check(&self, room: &Room, wanted: usize) -> Result<(), PlanError> {
        let max = self.max(room);
        if wanted <= max {
            return Ok(());
        }
        Err(PlanError::Capacity { table: room.name.to_owned(), wanted, max })
    }
}

/// The room that a row takes; `None` where there is no limit.
pub(crate) fn room(key: &TableKey) -> Option<&'static Room> {
    by_row_type!(key, |R, key| R::ROOMS.get(R::room(key)))
}

/// All rooms, in the order of the tables.
pub(crate) fn rooms() -> Vec<&'static Room> {
    macro_rules! rooms {
        (() $(#[doc = $doc:literal] $Variant:ident $field:ident [$Table:ident] $Key:ty => $Row:ty;)+) => {{
            let mut rooms = Vec::new();
            $(rooms.extend(<$Row as Row>::ROOMS);)+
            rooms
        }};
    }
    crate::kernel_tables!(rooms!())
}

/// Tables whose number of rows in each [`Room`] is always known.
#[derive(Debug, Clone, Default)]
pub(crate) struct Counted {
    tables: Tables,
    used: BTreeMap<&'static str, usize>,
}

impl From<Tables> for Counted {
    fn from(tables: Tables) -> Self {
        struct Count(BTreeMap<&'static str, usize>);
        impl RowVisitor for Count {
            fn table(&mut self, _: &'static str) {}
            fn row<R: Row>(&mut self, key: R::Key, _: &R) {
                if let Some(room) = R::ROOMS.get(R::room(&key)) {
                    *self.0.entry(room.name).or_default() += 1;
                }
            }
        }
        let mut count = Count(BTreeMap::new());
        tables.visit(&mut count);
        Self { tables, used: count.0 }
    }
}

impl Counted {
    pub(crate) fn tables(&self) -> &Tables {
        &self.tables
    }

    /// Changes one row by `change`, and keeps the count.
    pub(crate) fn change(&mut self, key: &TableKey, change: impl FnOnce(&mut Tables)) {
        let before = self.tables.contains(key);
        change(&mut self.tables);
        let after = self.tables.contains(key);
        if let Some(room) = room(key)
            && before != after
        {
            let used = self.used.entry(room.name).or_default();
            *used = if after { *used + 1 } else { *used - 1 };
        }
    }

    pub(crate) fn used(&self, room: &Room) -> usize {
        self.used.get(room.name).copied().unwrap_or_default()
    }
}

impl Serialize for Counted {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.tables.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Counted {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Tables::deserialize(deserializer).map(Self::from)
    }
}
