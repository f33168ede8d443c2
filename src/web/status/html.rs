//! The frame of all pages that people see, and the markup they are made of: what is put in as text is shown
//! as text, whatever it is.

use std::fmt::{Display, Write as _};
use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};

use crate::content::digest::Sha256;

/// The style of all pages, within them: clients' browsers ask for nothing else.
const STYLE: &str = include_str!("status.css");
/// The script that keeps a page up to date.
pub(in crate::web) const SCRIPT: &str = include_str!("status.js");
/// How often a browser without scripts asks anew, in seconds.
const REFRESH: &str = "5";

/// What may happen on a page: nothing but its own style and, where it has one, the script from its origin.
static POLICY: LazyLock<String> = LazyLock::new(|| {
    let digest = BASE64.encode(Sha256::of(STYLE.as_bytes()).as_bytes());
    format!(
        "default-src 'none'; script-src 'self'; style-src 'sha256-{digest}'; connect-src 'self'; \
         base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    )
});

/// Markup.
#[derive(Clone, Debug, Default)]
pub(in crate::web) struct Html(String);

impl Html {
    /// Text, and nothing else.
    pub(in crate::web) fn of(text: impl Display) -> Self {
        let mut html = Self::default();
        html.text(text);
        html
    }

    /// Markup that stands in the program.
    pub(in crate::web) fn raw(&mut self, markup: &'static str) -> &mut Self {
        self.0.push_str(markup);
        self
    }

    /// Text, as the content of an element or of an attribute in double quotes.
    pub(in crate::web) fn text(&mut self, text: impl Display) -> &mut Self {
        for letter in text.to_string().chars() {
            match letter {
                '&' => self.0.push_str("&amp;"),
                '<' => self.0.push_str("&lt;"),
                '>' => self.0.push_str("&gt;"),
                '"' => self.0.push_str("&quot;"),
                '\'' => self.0.push_str("&#39;"),
                // What turns the text around it about would have it read as something else.
                '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => self.0.push('\u{fffd}'),
                letter if letter.is_control() => self.0.push('\u{fffd}'),
                letter => self.0.push(letter),
            }
        }
        self
    }

    /// Other markup.
    pub(in crate::web) fn add(&mut self, other: &Self) -> &mut Self {
        self.0.push_str(&other.0);
        self
    }
}

/// A page of this title; one that is `live` keeps itself up to date.
pub(in crate::web) fn page(title: &str, is_live: bool, content: &Html) -> String {
    let mut page = Html::default();
    page.raw("<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n");
    page.raw("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n");
    page.raw("<meta name=\"color-scheme\" content=\"light dark\">\n<title>").text(title);
    page.raw("</title>\n<style>").raw(STYLE).raw("</style>\n");
    if is_live {
        page.raw("<script src=\"/status.js\" defer></script>\n");
        page.raw("<noscript><meta http-equiv=\"refresh\" content=\"").raw(REFRESH);
        page.raw("\"></noscript>\n");
    }
    page.raw("</head>\n<body>\n<main>\n").add(content).raw("</main>\n</body>\n</html>\n");
    page.0
}

/// The headers of all pages.
pub(in crate::web) fn protect(headers: &mut HeaderMap) {
    let policy = HeaderValue::try_from(POLICY.as_str());
    if let Ok(policy) = policy {
        headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    let fixed: [(HeaderName, &'static str); 4] = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    for (name, value) in fixed {
        headers.insert(name, HeaderValue::from_static(value));
    }
}

/// A part of a page that is kept up to date, under a heading.
pub(in crate::web) fn section(id: &'static str, heading: &'static str, content: &Html) -> Html {
    let mut html = Html::default();
    html.raw("<section id=\"").raw(id).raw("\" data-live>\n<h2>").raw(heading).raw("</h2>\n");
    html.add(content).raw("</section>\n");
    html
}

/// A column of a table.
pub(in crate::web) struct Column(pub(in crate::web) &'static str, pub(in crate::web) bool);

/// A table: the first cell of a row says what the row is of. On a phone, each row becomes a card.
pub(in crate::web) fn table(columns: &[Column], rows: &[Vec<Html>]) -> Html {
    let mut html = Html::default();
    html.raw("<table role=\"table\">\n<thead role=\"rowgroup\"><tr role=\"row\">");
    for Column(name, is_number) in columns {
        let class = if *is_number { " class=\"n\"" } else { "" };
        html.raw("<th scope=\"col\" role=\"columnheader\"").raw(class).raw(">");
        html.raw(name).raw("</th>");
    }
    html.raw("</tr></thead>\n<tbody role=\"rowgroup\">\n");
    for row in rows {
        html.raw("<tr role=\"row\">");
        for (place, (cell, Column(name, is_number))) in row.iter().zip(columns).enumerate() {
            if place == 0 {
                html.raw("<th scope=\"row\" role=\"rowheader\">").add(cell).raw("</th>");
                continue;
            }
            let class = if *is_number { " class=\"n\"" } else { "" };
            html.raw("<td role=\"cell\"")
                .raw(class)
                .raw(" data-label=\"")
                .raw(name)
                .raw("\"><div>");
            html.add(cell).raw("</div></td>");
        }
        html.raw("</tr>\n");
    }
    html.raw("</tbody></table>\n");
    html
}

/// Names and values.
pub(in crate::web) fn list(pairs: &[(&'static str, Html)]) -> Html {
    let mut html = Html::default();
    html.raw("<dl>\n");
    for (name, value) in pairs {
        html.raw("<div><dt>").raw(name).raw("</dt><dd>").add(value).raw("</dd></div>\n");
    }
    html.raw("</dl>\n");
    html
}

/// `and 3 more`, where there are more than are shown.
pub(in crate::web) fn more(shown: usize, all: usize) -> Html {
    let mut html = Html::default();
    if all > shown {
        html.raw("<p class=\"quiet\">and ").text(all - shown).raw(" more</p>\n");
    }
    html
}

impl Display for Html {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// A number as it stands in a picture.
pub(in crate::web) fn number(number: f64) -> Html {
    let mut text = String::new();
    // Writing to a string never fails.
    write!(text, "{number:.2}").unwrap_or_default();
    Html(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_inert() {
        let html = Html::of("<script>\"'&\u{202e}\u{7}");
        assert_eq!(html.to_string(), "&lt;script&gt;&quot;&#39;&amp;\u{fffd}\u{fffd}");
    }
}
