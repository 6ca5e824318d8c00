//! Server-sent events: where one ends, and what its data is (WHATWG HTML, section 9.2).
//!
//! Must not know what the data means. Invariant: cutting a stream into events and joining them gives its bytes again.

use std::borrow::Cow;

/// The length of the first complete event of `bytes`, its blank line included; none while it is incomplete.
pub(crate) fn end_of_event(bytes: &[u8]) -> Option<usize> {
    let mut start = 0;
    while let Some(offset) = bytes[start..].iter().position(|byte| matches!(byte, b'\n' | b'\r')) {
        let end = start + offset;
        let next = match (bytes[end], bytes.get(end + 1)) {
            (b'\r', Some(b'\n')) => end + 2,
            // A line feed may still follow.
            (b'\r', None) => return None,
            _ => end + 1,
        };
        if offset == 0 {
            return Some(next);
        }
        start = next;
    }
    None
}

/// The events of `bytes` one after the other; what follows the last blank line is the last event.
pub(crate) fn events(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let (event, rest) = bytes.split_at(end_of_event(bytes).unwrap_or(bytes.len()));
        bytes = rest;
        Some(event)
    })
}

/// The values of `field` in an event, joined by line feeds; none where the field is absent. Bytes that are no UTF-8 are
/// replaced, as the standard says: an event is never passed over for them.
pub(crate) fn field<'e>(event: &'e [u8], field: &str) -> Option<Cow<'e, str>> {
    match String::from_utf8_lossy(event) {
        Cow::Borrowed(event) => values(event, field),
        Cow::Owned(event) => values(&event, field).map(|found| Cow::Owned(found.into_owned())),
    }
}

fn values<'e>(event: &'e str, field: &str) -> Option<Cow<'e, str>> {
    let mut found: Option<Cow<'e, str>> = None;
    for line in event.split(['\n', '\r']) {
        let Some(value) = line.strip_prefix(field).and_then(|rest| rest.strip_prefix(':')) else { continue };
        let value = value.strip_prefix(' ').unwrap_or(value);
        match &mut found {
            None => found = Some(Cow::Borrowed(value)),
            Some(text) => {
                let text = text.to_mut();
                text.push('\n');
                text.push_str(value);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(stream: &str, expected: &[(&str, Option<&str>)]) {
        let found: Vec<_> = events(stream.as_bytes())
            .map(|event| {
                (std::str::from_utf8(event).unwrap(), field(event, "data").map(|data| data.into_owned()))
            })
            .collect();
        let expected: Vec<_> =
            expected.iter().map(|(event, data)| (*event, data.map(str::to_owned))).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn streams_are_cut_at_blank_lines() {
        check("data: a\n\ndata:b\n\n", &[("data: a\n\n", Some("a")), ("data:b\n\n", Some("b"))]);
        check("data: a\r\n\r\ndata: b", &[("data: a\r\n\r\n", Some("a")), ("data: b", Some("b"))]);
        check("data: a\r\rdata: b\r\r\n", &[("data: a\r\r", Some("a")), ("data: b\r\r\n", Some("b"))]);
        check(
            ": ping\n\nevent: x\ndata: a\ndata: b\n\n",
            &[(": ping\n\n", None), ("event: x\ndata: a\ndata: b\n\n", Some("a\nb"))],
        );
        check("", &[]);
    }

    #[test]
    fn bytes_that_are_no_text_hide_no_event() {
        assert_eq!(
            field(b"data: {\"content\":\"a\xff\"}\n\n", "data").unwrap(),
            "{\"content\":\"a\u{fffd}\"}"
        );
        assert_eq!(field(b"x: \xff\ndata: [DONE]\n\n", "data").unwrap(), "[DONE]");
    }

    #[test]
    fn an_event_is_complete_only_after_its_blank_line() {
        assert_eq!(end_of_event(b"data: a\n"), None);
        assert_eq!(end_of_event(b"data: a\r\n\r"), None);
        assert_eq!(end_of_event(b"data: a\n\nrest"), Some(9));
    }
}
