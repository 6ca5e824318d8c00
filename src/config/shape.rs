//! The tables of tuition.toml as they are written, before any value is judged.
//!
//! Must not know what a value means. Invariant: a key that is not listed here is an error, never ignored.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::{Deserializer, Error, Visitor};

/// The whole file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Document {
    #[serde(default)]
    pub(super) store: StoreTable,
    #[serde(default)]
    pub(super) serve: ServeTable,
    #[serde(default)]
    pub(super) teacher: Vec<TeacherTable>,
    #[serde(default)]
    pub(super) budget: Vec<BudgetTable>,
    #[serde(default)]
    pub(super) price: Vec<PriceTable>,
    #[serde(default)]
    pub(super) key: Vec<KeyTable>,
}

/// `[store]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StoreTable {
    pub(super) url: Option<String>,
}

/// `[serve]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ServeTable {
    pub(super) listen: Option<String>,
    pub(super) share: Option<String>,
    pub(super) unbudgeted: Option<bool>,
    pub(super) hold_wait_s: Option<u64>,
    pub(super) alert_url: Option<String>,
}

/// `[[teacher]]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TeacherTable {
    pub(super) name: String,
    pub(super) api: String,
    pub(super) url: Option<String>,
    pub(super) path: Option<String>,
    pub(super) key_env: Option<String>,
    pub(super) key_file: Option<String>,
    pub(super) proxy: Option<String>,
    pub(super) models: Option<Vec<String>>,
    #[serde(default)]
    pub(super) headers: BTreeMap<String, String>,
    pub(super) revision: Option<String>,
    pub(super) timeout_s: Option<u64>,
    pub(super) retries: Option<u32>,
    pub(super) batch_axis: Option<u64>,
    #[serde(default)]
    pub(super) unbilled: Vec<u16>,
    pub(super) ask: Option<AskTable>,
    pub(super) hidden: Option<HiddenTable>,
    pub(super) device: Option<String>,
}

/// `hidden` of a `[[teacher]]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HiddenTable {
    #[serde(default)]
    pub(super) tensors: Vec<String>,
    pub(super) every: Option<usize>,
    pub(super) width: Option<usize>,
    #[serde(default)]
    pub(super) seed: u64,
}

/// `ask` of a `[[teacher]]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AskTable {
    pub(super) model: Option<String>,
    pub(super) input: Option<String>,
    pub(super) datatype: Option<String>,
    pub(super) shape: Option<Vec<usize>>,
    #[serde(default)]
    pub(super) outputs: Vec<String>,
}

/// `[[budget]]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BudgetTable {
    pub(super) name: String,
    pub(super) calls: Option<u64>,
    pub(super) tokens: Option<u64>,
    pub(super) usd: Option<Dollars>,
    pub(super) teacher: Option<String>,
    pub(super) run: Option<String>,
    pub(super) key: Option<String>,
    pub(super) window: Option<String>,
}

/// `[[price]]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PriceTable {
    pub(super) model: String,
    pub(super) from: String,
    pub(super) input: Option<Dollars>,
    pub(super) cached_input: Option<Dollars>,
    pub(super) cache_write: Option<Dollars>,
    pub(super) output: Option<Dollars>,
    pub(super) reasoning: Option<Dollars>,
    pub(super) request: Option<Dollars>,
    pub(super) image: Option<Dollars>,
    pub(super) max_input_tokens: Option<u64>,
    pub(super) max_output_tokens: Option<u64>,
}

/// `[[key]]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct KeyTable {
    pub(super) name: String,
    pub(super) hash: String,
    pub(super) runs: Option<Vec<String>>,
    pub(super) teachers: Option<Vec<String>>,
    pub(super) mode: Option<String>,
}

/// An amount of dollars as a text; a number is refused, since it would have passed through a float.
#[derive(Debug, Clone)]
pub(super) struct Dollars(pub(super) String);

impl<'de> Deserialize<'de> for Dollars {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Dollars;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("dollars as a decimal string, such as \"20.00\"")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Dollars, E> {
                Ok(Dollars(text.to_owned()))
            }
        }
        deserializer.deserialize_any(Text)
    }
}
