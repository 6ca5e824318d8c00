//! Maps and sets that are read at the size that they say they have: grown entry by entry, a table of a million keys would
//! for a moment stand in memory three times.
//!
//! Must not know what is read. Invariant: a size that memory has no room for is an error, never an abort.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::hash::Hash;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

/// Reads a map.
///
/// # Errors
/// As its keys and values, and where memory has no room for as many entries as it says it has.
pub(crate) fn map<'de, K, V, D>(deserializer: D) -> Result<HashMap<K, V>, D::Error>
where
    K: Deserialize<'de> + Eq + Hash,
    V: Deserialize<'de>,
    D: Deserializer<'de>,
{
    struct Entries<K, V>(PhantomData<(K, V)>);

    impl<'de, K: Deserialize<'de> + Eq + Hash, V: Deserialize<'de>> Visitor<'de> for Entries<K, V> {
        type Value = HashMap<K, V>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a map")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
            let mut map = HashMap::new();
            map.try_reserve(entries.size_hint().unwrap_or(0)).map_err(A::Error::custom)?;
            while let Some((key, value)) = entries.next_entry()? {
                map.insert(key, value);
            }
            Ok(map)
        }
    }

    deserializer.deserialize_map(Entries(PhantomData))
}

/// Reads a set.
///
/// # Errors
/// As its keys, and where memory has no room for as many as it says it has.
pub(crate) fn set<'de, K, D>(deserializer: D) -> Result<HashSet<K>, D::Error>
where
    K: Deserialize<'de> + Eq + Hash,
    D: Deserializer<'de>,
{
    struct Keys<K>(PhantomData<K>);

    impl<'de, K: Deserialize<'de> + Eq + Hash> Visitor<'de> for Keys<K> {
        type Value = HashSet<K>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a set")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut keys: A) -> Result<Self::Value, A::Error> {
            let mut set = HashSet::new();
            set.try_reserve(keys.size_hint().unwrap_or(0)).map_err(A::Error::custom)?;
            while let Some(key) = keys.next_element()? {
                set.insert(key);
            }
            Ok(set)
        }
    }

    deserializer.deserialize_seq(Keys(PhantomData))
}

#[cfg(test)]
mod tests {
    use serde::Serialize;

    use super::*;

    #[derive(Debug, PartialEq, Serialize, serde::Deserialize)]
    struct Both {
        #[serde(deserialize_with = "map")]
        map: HashMap<u32, String>,
        #[serde(deserialize_with = "set")]
        set: HashSet<u64>,
    }

    #[test]
    fn what_was_written_is_read_and_a_size_beyond_memory_is_an_error() {
        let both = Both { map: (0..3000).map(|at| (at, at.to_string())).collect(), set: (0..3000).collect() };
        let bytes = postcard::to_stdvec(&both).unwrap();
        assert_eq!(postcard::from_bytes::<Both>(&bytes).unwrap(), both);
        // 2^63 keys, by a varint of ten bytes.
        let absurd = [&[0; 1][..], &[0x80; 9], &[1]].concat();
        assert!(postcard::from_bytes::<Both>(&absurd).is_err());
    }
}
