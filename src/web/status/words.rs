//! Numbers as people read them.

use jiff::Timestamp;

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// `1.5 MB`
#[must_use]
pub fn bytes(bytes: u64) -> String {
    let mut unit = "B";
    let (mut tenths, mut left) = (0, bytes);
    for larger in ["kB", "MB", "GB", "TB", "PB", "EB"] {
        if left < 1_000 {
            break;
        }
        (unit, tenths, left) = (larger, left / 100 % 10, left / 1_000);
    }
    if unit == "B" { format!("{left} B") } else { format!("{left}.{tenths} {unit}") }
}

/// `1.5 MB/s`
#[must_use]
pub fn rate(bytes_per_second: u64) -> String {
    format!("{}/s", bytes(bytes_per_second))
}

/// `12,345`
#[must_use]
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 file`, `2 files`
#[must_use]
pub fn things(number: u64, one: &str, more: &str) -> String {
    format!("{} {}", count(number), if number == 1 { one } else { more })
}

/// `85 %`; a dash of nothing.
#[must_use]
pub fn share(part: u64, whole: u64) -> String {
    match part.saturating_mul(100).checked_div(whole) {
        None => "–".to_owned(),
        Some(0) if part > 0 => "< 1 %".to_owned(),
        Some(percent) => format!("{percent} %"),
    }
}

/// With a capital letter.
#[must_use]
pub fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

/// `3 min`, `2 h 5 min`
#[must_use]
pub fn time(seconds: u64) -> String {
    let two = |large: u64, large_name, small: u64, small_name| {
        if small == 0 {
            format!("{large} {large_name}")
        } else {
            format!("{large} {large_name} {small} {small_name}")
        }
    };
    match seconds {
        0..MINUTE => format!("{seconds} s"),
        MINUTE..HOUR => format!("{} min", seconds / MINUTE),
        HOUR..DAY => two(seconds / HOUR, "h", seconds % HOUR / MINUTE, "min"),
        _ => {
            let days = seconds / DAY;
            two(days, if days == 1 { "day" } else { "days" }, seconds % DAY / HOUR, "h")
        }
    }
}

/// `3 min ago`
#[must_use]
pub fn ago(seconds: u64) -> String {
    if seconds < 2 { "just now".to_owned() } else { format!("{} ago", time(seconds)) }
}

/// `2026-11-23 09:30 UTC`, of seconds since 1970.
#[must_use]
pub fn date(seconds: i64) -> String {
    match Timestamp::from_second(seconds) {
        Ok(time) => time.strftime("%Y-%m-%d %H:%M UTC").to_string(),
        Err(_beyond) => "long ago or far away".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let told = [0, 999, 1_000, 1_549, 10_000_000, 123_456_789_012, u64::MAX].map(bytes);
        let wanted = ["0 B", "999 B", "1.0 kB", "1.5 kB", "10.0 MB", "123.4 GB", "18.4 EB"];
        assert_eq!(told, wanted);
        assert_eq!([1, 999, 1_000, 1_234_567].map(count), ["1", "999", "1,000", "1,234,567"]);
        assert_eq!(share(0, 0), "–");
        assert_eq!(
            [0, 1, 500, 1_000].map(|part| share(part, 1_000)),
            ["0 %", "< 1 %", "50 %", "100 %"]
        );
    }

    #[test]
    fn times_are_short() {
        let told = [0, 59, 60, 3_600, 7_500, 86_400, 200_000].map(time);
        assert_eq!(told, ["0 s", "59 s", "1 min", "1 h", "2 h 5 min", "1 day", "2 days 7 h"]);
        assert_eq!([1, 180].map(ago), ["just now", "3 min ago"]);
        assert_eq!(date(1_704_153_600), "2024-01-02 00:00 UTC");
        assert_eq!(date(i64::MIN), "long ago or far away");
    }
}
