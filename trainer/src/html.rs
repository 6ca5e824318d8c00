//! Pages of HTML that are read offline: one style, no scripts, no links.
//!
//! It must not know what they say. Invariant: text from outside goes through [`escape`].

/// Text as it stands in HTML and SVG, also within an attribute.
#[must_use]
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A whole page: its name, as text, and what stands below it, as HTML.
#[must_use]
pub fn document(name: &str, body: &str) -> String {
    let name = escape(name);
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{name}</title>\n<style>body{{font:16px/1.5 \
         system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#222}}table{{border-collapse:collapse}}\
         td,th{{padding:.3em .8em;border-bottom:1px solid #ccc;text-align:right}}td:first-child,th:first-child\
         {{text-align:left}}svg{{max-width:100%}}</style></head>\n<body><h1>{name}</h1>\n{body}</body></html>\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_not_markup() {
        let page = document("<b>\"&", "<p>fine</p>");
        assert!(page.contains("<h1>&lt;b&gt;&quot;&amp;</h1>\n<p>fine</p></body>"), "{page}");
    }
}
