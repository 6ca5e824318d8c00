//! JSON as it came, read strictly, and its canonical form (RFC 8785).
//!
//! Must not know what a body means. Invariants: a duplicate member is an error, never dropped; numbers keep their
//! spelling until they are made canonical; two texts have equal canonical forms only where RFC 8785 says they are one
//! value, except that integers beyond 2⁵³ are told apart by their digits.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// How deep arrays and objects may nest.
pub const DEPTH_MAX: usize = 128;
/// The largest integer that every IEEE 754 double neighbours exactly (2⁵³).
const INTEGER_MAX: u128 = 1 << 53;

/// A JSON value that borrows from its text; members keep their order, numbers their spelling.
#[derive(Clone, Debug, PartialEq)]
pub enum Json<'a> {
    /// `null`
    Null,
    /// `true` or `false`
    Bool(bool),
    /// A number, as it was written.
    Number(Cow<'a, str>),
    /// A string, unescaped.
    String(Cow<'a, str>),
    /// An array.
    Array(Vec<Json<'a>>),
    /// An object, members in the order of the text, no name twice.
    Object(Vec<(Cow<'a, str>, Json<'a>)>),
}

/// Why a text is not the JSON that is taken.
#[derive(Debug, thiserror::Error)]
pub enum JsonError {
    /// Not JSON.
    #[error("malformed JSON: {0}")]
    Malformed(#[from] serde_json::Error),
    /// One object names a member twice.
    #[error("member `{0}` stands twice in one object")]
    Duplicate(String),
    /// Arrays or objects nest too deep.
    #[error("nested deeper than {DEPTH_MAX} levels")]
    TooDeep,
    /// A number that no double holds.
    #[error("number `{0}` is out of range")]
    OutOfRange(String),
}

impl<'a> Json<'a> {
    /// Reads one JSON text.
    ///
    /// # Errors
    /// Malformed text, a duplicate member, nesting beyond [`DEPTH_MAX`].
    pub fn parse(text: &'a [u8]) -> Result<Self, JsonError> {
        let raw: &RawValue = serde_json::from_slice(text)?;
        Self::read(raw.get(), 0)
    }

    fn read(text: &'a str, depth: usize) -> Result<Self, JsonError> {
        if depth > DEPTH_MAX {
            return Err(JsonError::TooDeep);
        }
        Ok(match text.as_bytes().first() {
            Some(b'n') => Self::Null,
            Some(b't') => Self::Bool(true),
            Some(b'f') => Self::Bool(false),
            Some(b'"') => {
                let Text(string) = serde_json::from_str(text)?;
                Self::String(string)
            }
            Some(b'[') => {
                let items: Vec<&RawValue> = serde_json::from_str(text)?;
                Self::Array(
                    items
                        .into_iter()
                        .map(|item| Self::read(item.get(), depth + 1))
                        .collect::<Result<_, _>>()?,
                )
            }
            Some(b'{') => {
                let Members(members) = serde_json::from_str(text)?;
                let mut names: Vec<&str> = members.iter().map(|(name, _)| name.as_ref()).collect();
                names.sort_unstable();
                if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
                    return Err(JsonError::Duplicate(pair[0].to_owned()));
                }
                let read = |(name, value): (_, &'a RawValue)| Ok((name, Self::read(value.get(), depth + 1)?));
                Self::Object(members.into_iter().map(read).collect::<Result<_, JsonError>>()?)
            }
            _ => {
                let finite = text.parse::<f64>().is_ok_and(f64::is_finite);
                if !finite {
                    return Err(JsonError::OutOfRange(text.to_owned()));
                }
                Self::Number(Cow::Borrowed(text))
            }
        })
    }

    /// The member `name` of an object.
    pub fn member(&self, name: &str) -> Option<&Json<'a>> {
        match self {
            Self::Object(members) => members.iter().find(|(known, _)| known == name).map(|(_, value)| value),
            _ => None,
        }
    }

    /// The members of an object.
    pub fn members(&self) -> Option<&[(Cow<'a, str>, Json<'a>)]> {
        match self {
            Self::Object(members) => Some(members),
            _ => None,
        }
    }

    /// The items of an array.
    pub fn items(&self) -> Option<&[Json<'a>]> {
        match self {
            Self::Array(items) => Some(items),
            _ => None,
        }
    }

    /// The string.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(string) => Some(string),
            _ => None,
        }
    }

    /// The truth value.
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Self::Bool(value) => Some(*value),
            _ => None,
        }
    }

    /// The number as a non-negative integer: what its canonical form says (`3`, `3.0` and `3e0` alike).
    pub fn as_u64(&self) -> Option<u64> {
        let Self::Number(text) = self else { return None };
        text.parse().ok().or_else(|| canonical_number(text).parse().ok())
    }

    /// The number as a double.
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Self::Number(text) => text.parse().ok(),
            _ => None,
        }
    }

    /// Whether this is `null`.
    pub fn is_null(&self) -> bool {
        matches!(self, Self::Null)
    }

    /// The same value, borrowing from nothing.
    pub fn into_owned(self) -> Json<'static> {
        match self {
            Self::Null => Json::Null,
            Self::Bool(value) => Json::Bool(value),
            Self::Number(text) => Json::Number(Cow::Owned(text.into_owned())),
            Self::String(text) => Json::String(Cow::Owned(text.into_owned())),
            Self::Array(items) => Json::Array(items.into_iter().map(Json::into_owned).collect()),
            Self::Object(members) => Json::Object(
                members
                    .into_iter()
                    .map(|(name, value)| (Cow::Owned(name.into_owned()), value.into_owned()))
                    .collect(),
            ),
        }
    }

    /// The canonical form: RFC 8785, with integers beyond 2⁵³ by their digits.
    pub fn canonical(&self) -> String {
        let mut out = String::new();
        self.write_canonical(&mut out);
        out
    }

    fn write_canonical(&self, out: &mut String) {
        match self {
            Self::Null => out.push_str("null"),
            Self::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
            Self::Number(text) => out.push_str(&canonical_number(text)),
            Self::String(string) => write_string(string, out),
            Self::Array(items) => {
                write_list(out, '[', ']', items.iter(), |item, out| item.write_canonical(out));
            }
            Self::Object(members) => {
                let mut sorted: Vec<_> = members.iter().collect();
                sorted.sort_by(|(left, _), (right, _)| left.encode_utf16().cmp(right.encode_utf16()));
                write_list(out, '{', '}', sorted.into_iter(), |(name, value), out| {
                    write_string(name, out);
                    out.push(':');
                    value.write_canonical(out);
                });
            }
        }
    }
}

impl fmt::Display for Json<'_> {
    /// Writes compact JSON: members in their own order, numbers in their own spelling.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn write(json: &Json<'_>, out: &mut String) {
            match json {
                Json::Number(text) => out.push_str(text),
                Json::Array(items) => write_list(out, '[', ']', items.iter(), write),
                Json::Object(members) => write_list(out, '{', '}', members.iter(), |(name, value), out| {
                    write_string(name, out);
                    out.push(':');
                    write(value, out);
                }),
                scalar => scalar.write_canonical(out),
            }
        }
        let mut out = String::new();
        write(self, &mut out);
        f.write_str(&out)
    }
}

fn write_list<T>(
    out: &mut String,
    open: char,
    close: char,
    items: impl Iterator<Item = T>,
    write: impl Fn(T, &mut String),
) {
    out.push(open);
    for (index, item) in items.enumerate() {
        if index > 0 {
            out.push(',');
        }
        write(item, out);
    }
    out.push(close);
}

/// Writes a string with the escapes of RFC 8785, section 3.2.2.2, which are serde_json's own.
fn write_string(string: &str, out: &mut String) {
    out.push_str(&serde_json::to_string(string).expect("a string is always JSON"));
}

fn canonical_number(text: &str) -> Cow<'_, str> {
    /// So many digits a double holds, whichever they are, and writes without an exponent.
    const EXACT_DIGITS: usize = 15;
    let digits = text.strip_prefix('-').unwrap_or(text);
    if digits.bytes().all(|byte| byte.is_ascii_digit()) {
        // JSON has no leading zeros, so this is its own canonical form.
        if digits.len() <= EXACT_DIGITS && text != "-0" {
            return Cow::Borrowed(text);
        }
        let small = digits.parse::<u128>().is_ok_and(|value| value <= INTEGER_MAX);
        if !small {
            return Cow::Borrowed(text);
        }
    }
    let float: f64 = text.parse().expect("only finite numbers are read");
    let float = if float == 0.0 { 0.0 } else { float };
    Cow::Owned(ryu_js::Buffer::new().format_finite(float).to_owned())
}

struct Text<'a>(Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;
        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Text<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(TextVisitor)
    }
}

struct Members<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MembersVisitor;
        impl<'de> Visitor<'de> for MembersVisitor {
            type Value = Members<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
                let mut members = Vec::new();
                while let Some((Text(name), value)) = map.next_entry::<Text<'de>, &'de RawValue>()? {
                    members.push((name, value));
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(MembersVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Result<&str, &str>) {
        let canonical =
            Json::parse(text.as_bytes()).map(|json| json.canonical()).map_err(|error| error.to_string());
        assert_eq!(canonical.as_deref().map_err(String::as_str), expected, "{text}");
    }

    #[test]
    fn the_canonical_form_is_rfc_8785() {
        // RFC 8785, section 3.2.2 and 3.2.3.
        check(
            r#"{"numbers": [333333333.33333329, 1E30, 4.50, 2e-3, 0.000000000000000000000000001],
                "string": "\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"\/", "literals": [null, true, false]}"#,
            Ok(
                "{\"literals\":[null,true,false],\"numbers\":[333333333.3333333,1e+30,4.5,0.002,1e-27],\"string\":\"€$\\u000f\\nA'B\\\"\\\\\\\\\\\"/\"}",
            ),
        );
        check(
            r#"{"\u20ac":1,"\r":2,"\ufb33":3,"1":4,"\ud83d\ude00":5,"\u0080":6,"\u00f6":7}"#,
            Ok("{\"\\r\":2,\"1\":4,\"\u{80}\":6,\"ö\":7,\"€\":1,\"😀\":5,\"\u{fb33}\":3}"),
        );
    }

    #[test]
    fn number_spelling_does_not_matter_but_large_integers_do() {
        check("[0.0,-0,-0.0,0e9,1.0,10e-1]", Ok("[0,0,0,0,1,1]"));
        for whole in [0i64, 7, -12, 100_000, 999_999_999_999_999, -1_000_000_000_000_000] {
            let (text, by_ryu) = (whole.to_string(), ryu_js::Buffer::new().format(whole as f64).to_owned());
            assert_eq!(Json::parse(text.as_bytes()).unwrap().canonical(), by_ryu);
        }
        check("9007199254740993", Ok("9007199254740993"));
        check("9007199254740992", Ok("9007199254740992"));
        check("-36893488147419103233", Ok("-36893488147419103233"));
        check("1e400", Err("number `1e400` is out of range"));
    }

    #[test]
    fn an_integer_is_what_the_canonical_form_says() {
        for (text, expected) in [
            ("3.0", Some(3)),
            ("3e0", Some(3)),
            ("-0", Some(0)),
            ("0.5", None),
            ("-1", None),
            ("99007199254740993", Some(99_007_199_254_740_993)),
            ("99007199254740993.0", Some(99_007_199_254_741_000)),
            ("1e19", Some(10_000_000_000_000_000_000)),
            ("1e20", None),
        ] {
            let number = Json::parse(text.as_bytes()).unwrap();
            assert_eq!(number.as_u64(), expected, "{text}");
            assert_eq!(Json::parse(number.canonical().as_bytes()).unwrap().as_u64(), expected, "{text}");
        }
    }

    #[test]
    fn what_is_not_strict_json_is_refused() {
        check(r#"{"a":1,"a":1}"#, Err("member `a` stands twice in one object"));
        check(r#"{"x":[{"a":1,"\u0061":2}]}"#, Err("member `a` stands twice in one object"));
        check(&("[".repeat(200) + &"]".repeat(200)), Err("nested deeper than 128 levels"));
        assert!(Json::parse(b"{\"a\":1} x").is_err());
        assert!(Json::parse(b"{\"a\":\xff\"\"}").is_err());
        assert!(Json::parse(b"").is_err());
    }

    #[test]
    fn writing_keeps_order_and_spelling() {
        let text = r#"{"b":1.50,"a":[true,null,"x\n"]}"#;
        assert_eq!(Json::parse(text.as_bytes()).unwrap().to_string(), text);
    }

    #[test]
    fn a_forged_number_member_is_an_ordinary_member() {
        check(r#"{"$serde_json::private::Number":"1"}"#, Ok(r#"{"$serde_json::private::Number":"1"}"#));
    }
}
