//! Where bytes came from over time, as a picture: shares above, amounts below. The words stand beside it, so
//! that they are readable at any width.

use crate::web::status::html::{Html, number};
use crate::web::status::report::History;
use crate::web::status::words;

/// Bars at most: on a phone, one is two pixels wide.
const BARS_MAX: usize = 120;
/// And at least: in the first minute, the rest is empty.
const BARS_MIN: usize = 30;
/// The height of a picture in its own units; browsers stretch it.
const HEIGHT: f64 = 100.0;
/// From the bottom up.
const CLASSES: [&str; 4] = ["store", "replica", "peer", "mirror"];

/// Bytes of one bar, in the order of [`CLASSES`].
type Bar = [u64; 4];

/// The picture with its caption.
pub(super) fn of(history: &History) -> Html {
    let bars = bars(history);
    let [store, replicas, peers, mirrors] = sums(&bars);
    let all = store + replicas + peers + mirrors;
    let mut html = Html::default();
    if all == 0 {
        html.raw("<p class=\"quiet\">Nothing went through yet.</p>\n");
        return html;
    }
    let width = bars.len().max(BARS_MIN);
    let first = width - bars.len();
    let since = words::time(history.span_seconds * (width * together(history)) as u64);
    html.raw("<figure>\n<p class=\"quiet\">Of all bytes, by where they came from</p>\n");
    html.raw("<svg role=\"img\" viewBox=\"0 0 ").text(width).raw(" 100\"");
    html.raw(" preserveAspectRatio=\"none\" aria-label=\"Within ").text(&since);
    html.raw(", ").text(words::share(store, all)).raw(" of all bytes came from the store, ");
    html.text(words::share(peers + replicas, all)).raw(" from peers and replicas, ");
    html.text(words::share(mirrors, all)).raw(" from mirrors\">\n");
    for (place, bar) in bars.iter().enumerate() {
        stack(&mut html, first + place, bar, bar.iter().sum());
    }
    html.raw("</svg>\n<svg class=\"volume\" role=\"img\" viewBox=\"0 0 ").text(width);
    html.raw(" 100\" preserveAspectRatio=\"none\" aria-label=\"Amounts over the same time\">\n");
    let most = bars.iter().map(|bar| bar.iter().sum()).max().unwrap_or(0);
    for (place, bar) in bars.iter().enumerate() {
        stack(&mut html, first + place, bar, most);
    }
    html.raw("</svg>\n<div class=\"ends quiet\"><span>").text(&since);
    html.raw(" ago</span><span>now</span></div>\n<figcaption class=\"key\">");
    let names = ["from the store", "from replicas", "from peers", "from mirrors"];
    let sums = [store, replicas, peers, mirrors];
    for ((class, name), bytes) in CLASSES.into_iter().zip(names).zip(sums) {
        html.raw("<span><i class=\"").raw(class).raw("\"></i>").raw(name).raw(" ");
        html.text(words::share(bytes, all)).raw("</span>");
    }
    html.raw("</figcaption>\n</figure>\n");
    html
}

/// How many spans make a bar.
fn together(history: &History) -> usize {
    history.from_store.len().div_ceil(BARS_MAX).max(1)
}

/// The spans, some of them together if there are many.
fn bars(history: &History) -> Vec<Bar> {
    let (spans, each) = (history.from_store.len(), together(history));
    let at = |of: &[u64], place: usize| of.get(place).copied().unwrap_or_default();
    let span = |place: usize| -> Bar {
        let of = [
            &history.from_store,
            &history.from_replicas,
            &history.from_peers,
            &history.from_mirrors,
        ];
        of.map(|of| at(of, place))
    };
    // The newest bar is a whole one: what does not fit is the oldest.
    let firsts = (spans % each..spans).step_by(each);
    firsts.map(|first| sums(&(first..first + each).map(span).collect::<Vec<_>>())).collect()
}

fn sums(bars: &[Bar]) -> Bar {
    let mut sums = Bar::default();
    for bar in bars {
        sums.iter_mut().zip(bar).for_each(|(sum, bytes)| *sum = sum.saturating_add(*bytes));
    }
    sums
}

#[expect(clippy::cast_precision_loss, reason = "a picture is no more precise")]
fn stack(html: &mut Html, place: usize, bar: &Bar, whole: u64) {
    let mut top = HEIGHT;
    for (class, bytes) in CLASSES.into_iter().zip(bar) {
        let height = HEIGHT * *bytes as f64 / (whole as f64).max(1.0);
        if height < 0.01 {
            continue;
        }
        top -= height;
        html.raw("<rect class=\"").raw(class).raw("\" x=\"").add(&number(place as f64 + 0.05));
        html.raw("\" y=\"").add(&number(top)).raw("\" width=\"0.9\" height=\"");
        html.add(&number(height)).raw("\"/>");
    }
    html.raw("\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_lost_in_few_bars() {
        let from_store: Vec<u64> = (0..360).collect();
        let (from_mirrors, rest) = (vec![1; 360], vec![0; 360]);
        let history = History {
            span_seconds: 2,
            from_store: from_store.clone(),
            from_replicas: rest.clone(),
            from_peers: rest,
            from_mirrors,
        };
        let bars = bars(&history);
        assert_eq!(bars.len(), BARS_MAX);
        assert_eq!(sums(&bars), [from_store.iter().sum(), 0, 0, 360]);
        assert!(of(&history).to_string().contains("aria-label=\"Within 12 min, 99 %"));
    }
}
