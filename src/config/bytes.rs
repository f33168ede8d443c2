//! Numbers of bytes, as people write them: `200GiB`, `1.5 TB`, `4096`.

use std::fmt;
use std::str::FromStr;

/// Units and their bytes; those of ten and those of two.
const UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("B", 1),
];

/// A number of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

impl FromStr for Bytes {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = "write bytes with a unit, such as 200GiB, 500MB";
        let text = text.trim();
        let split = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
        let (number, unit) = text.split_at(split);
        let unit = match unit.trim() {
            "" => 1,
            unit => {
                let known = UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit));
                known.map(|(_, bytes)| *bytes).ok_or(wrong)?
            }
        };
        let (whole, part) = number.split_once('.').unwrap_or((number, "0"));
        // More digits than these are not worth a byte.
        let part = part.get(..6.min(part.len())).unwrap_or_default();
        let scale = 10_u64.pow(u32::try_from(part.len()).unwrap_or_default());
        let whole: u64 = whole.parse().map_err(|_| wrong)?;
        let part: u64 = part.parse().map_err(|_| wrong)?;
        let bytes = u128::from(whole) * u128::from(unit)
            + u128::from(part) * u128::from(unit) / u128::from(scale);
        u64::try_from(bytes).map(Self).map_err(|_| "is more than any volume has")
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of_ten = UNITS.iter().filter(|(name, _)| !name.contains('i'));
        let (name, unit) =
            of_ten.into_iter().find(|(_, unit)| self.0 >= *unit).unwrap_or(&UNITS[8]);
        if *unit == 1 {
            return write!(f, "{} {name}", self.0);
        }
        write!(f, "{}.{} {name}", self.0 / unit, self.0 % unit / (unit / 10))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_read() {
        let table = [
            ("0", Some(0)),
            ("4096", Some(4096)),
            ("4096 B", Some(4096)),
            ("200GiB", Some(200 << 30)),
            ("200 gib", Some(200 << 30)),
            ("1.5TB", Some(1_500_000_000_000)),
            ("0.25KiB", Some(256)),
            ("1.123456789kB", Some(1123)),
            ("16777215TiB", Some(16_777_215 << 40)),
            ("16777216TiB", None),
            ("99999999999999999999", None),
            ("", None),
            ("GiB", None),
            (".5GiB", None),
            ("5.GiB", None),
            ("1.2.3GB", None),
            ("-1", None),
            ("5XB", None),
            ("5%", None),
        ];
        for (text, bytes) in table {
            assert_eq!(text.parse().ok(), bytes.map(Bytes), "{text}");
        }
    }

    #[test]
    fn bytes_are_written() {
        let table = [(0, "0 B"), (999, "999 B"), (1_250, "1.2 kB"), (2_000_000_000_000, "2.0 TB")];
        for (bytes, text) in table {
            assert_eq!(Bytes(bytes).to_string(), text);
        }
    }
}
