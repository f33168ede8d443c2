//! ASCII armour (RFC 9580 §6.2) and packet framing (RFC 9580 §4.2).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::Malformed;

/// What an armoured block says it is.
#[derive(Clone, Copy)]
pub(super) struct Kind {
    pub(super) begin: &'static [u8],
    end: &'static [u8],
}

/// The armour of signatures.
pub(super) const SIGNATURE: Kind =
    Kind { begin: b"-----BEGIN PGP SIGNATURE-----", end: b"-----END PGP SIGNATURE-----" };

/// The armour of certificates.
pub(super) const CERTIFICATE: Kind = Kind {
    begin: b"-----BEGIN PGP PUBLIC KEY BLOCK-----",
    end: b"-----END PGP PUBLIC KEY BLOCK-----",
};

// Packet types, RFC 9580 §5.
pub(super) const SIGNATURE_PACKET: u8 = 2;
pub(super) const SECRET_KEY: u8 = 5;
pub(super) const PUBLIC_KEY: u8 = 6;
pub(super) const SECRET_SUBKEY: u8 = 7;
pub(super) const MARKER: u8 = 10;
pub(super) const USER_ID: u8 = 13;
pub(super) const PUBLIC_SUBKEY: u8 = 14;
pub(super) const USER_ATTRIBUTE: u8 = 17;
pub(super) const PADDING: u8 = 21;

/// Takes the first line off `rest`, without its LF; `None` at the end.
pub(super) fn next_line<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    if rest.is_empty() {
        return None;
    }
    let end = memchr::memchr(b'\n', rest).unwrap_or(rest.len());
    let (line, after) = rest.split_at_checked(end)?;
    *rest = after.get(1..).unwrap_or_default();
    Some(line)
}

/// `line` without the spaces, tabs and carriage returns at its end.
pub(super) fn trim_end(mut line: &[u8]) -> &[u8] {
    while let [shorter @ .., b' ' | b'\t' | b'\r'] = line {
        line = shorter;
    }
    line
}

/// Reads the armoured block that `file` begins with: its bytes, and what follows it.
///
/// # Errors
/// When there is no such block, or it is broken. The checksum is not looked at, as RFC 9580 §6.1
/// wants it: signatures protect better than 24 bits do.
pub(super) fn read(file: &[u8], kind: Kind) -> Result<(Vec<u8>, &[u8]), Malformed> {
    let mut rest = file;
    if next_line(&mut rest).map(trim_end) != Some(kind.begin) {
        return Err(Malformed::Armour);
    }
    loop {
        let header = trim_end(next_line(&mut rest).ok_or(Malformed::Truncated)?);
        if header.is_empty() {
            break;
        }
        if !header.contains(&b':') {
            return Err(Malformed::Armour);
        }
    }
    let mut base64 = Vec::new();
    let mut has_checksum = false;
    loop {
        let line = trim_end(next_line(&mut rest).ok_or(Malformed::Truncated)?);
        if line == kind.end {
            break;
        }
        if has_checksum {
            return Err(Malformed::Armour);
        }
        match line {
            [b'=', checksum @ ..] if checksum.len() == 4 => has_checksum = true,
            _ => base64.extend_from_slice(line),
        }
    }
    let bytes = STANDARD.decode(base64).map_err(|_| Malformed::Armour)?;
    Ok((bytes, rest))
}

/// A packet: its type and its body.
#[derive(Clone, Copy)]
pub(super) struct Packet<'a> {
    pub(super) tag: u8,
    pub(super) body: &'a [u8],
}

/// The packets in a row of bytes, up to the first that is broken. Lengths must be definite, as
/// those of keys and signatures always are (RFC 9580 §4.2.1.4).
pub(super) struct Packets<'a> {
    rest: &'a [u8],
}

impl<'a> Packets<'a> {
    pub(super) fn of(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    fn read(&mut self) -> Option<Packet<'a>> {
        let first = self.number(1)?;
        let (tag, length) = match first {
            // RFC 9580 §4.2.1, OpenPGP format.
            0xC0.. => (first & 0x3F, self.length()?),
            // RFC 9580 §4.2.2, legacy format.
            0x80.. => {
                let length = match first & 3 {
                    0 => self.number(1)?,
                    1 => self.number(2)?,
                    2 => self.number(4)?,
                    _ => return None,
                };
                (first >> 2 & 0x0F, length)
            }
            _ => return None,
        };
        Some(Packet { tag: u8::try_from(tag).ok()?, body: self.take(length)? })
    }

    fn length(&mut self) -> Option<usize> {
        match self.number(1)? {
            short @ ..192 => Some(short),
            high @ 192..224 => Some(((high - 192) << 8) + self.number(1)? + 192),
            255 => self.number(4),
            _ => None,
        }
    }

    fn number(&mut self, octets: usize) -> Option<usize> {
        Some(self.take(octets)?.iter().fold(0, |number, octet| number << 8 | usize::from(*octet)))
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(length)?;
        self.rest = rest;
        Some(taken)
    }
}

impl<'a> Iterator for Packets<'a> {
    type Item = Result<Packet<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let packet = self.read();
        if packet.is_none() {
            self.rest = &[];
        }
        Some(packet.ok_or(Malformed::Packets))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lengths(bytes: &[u8]) -> Result<Vec<(u8, usize)>, Malformed> {
        Packets::of(bytes).map(|packet| packet.map(|it| (it.tag, it.body.len()))).collect()
    }

    #[test]
    fn packets_of_both_formats_are_told_apart() {
        for (head, length) in [
            (&[0xC2, 5][..], 5),
            (&[0xC2, 0xC0, 8], 200),
            (&[0xC2, 255, 0, 0, 1, 0], 256),
            (&[0x88, 5], 5),
            (&[0x89, 1, 0], 256),
            (&[0x8A, 0, 0, 0, 9], 9),
        ] {
            let bytes = [head, &vec![7; length]].concat();
            assert_eq!(lengths(&bytes), Ok(vec![(2, length)]), "{head:?}");
            assert_eq!(lengths(&bytes[..bytes.len() - 1]), Err(Malformed::Packets), "{head:?}");
        }
    }

    #[test]
    fn packets_without_a_length_are_refused() {
        for bytes in [&[0x8B, 1, 2][..], &[0xC2, 0xE1, 1, 2], &[0x02, 1], &[0xC2], &[0xC2, 255, 0]]
        {
            assert_eq!(lengths(bytes), Err(Malformed::Packets), "{bytes:?}");
        }
    }

    #[test]
    fn armour_is_read_with_and_without_headers_and_checksum() {
        for block in [
            "-----BEGIN PGP SIGNATURE-----\n\nAAEC\n-----END PGP SIGNATURE-----",
            "-----BEGIN PGP SIGNATURE-----\r\nVersion: 1\r\n \r\nAA\r\nEC\r\n=abcd\r\n\
             -----END PGP SIGNATURE-----\r\nrest",
        ] {
            let (bytes, rest) = read(block.as_bytes(), SIGNATURE).unwrap();
            assert_eq!(bytes, [0, 1, 2]);
            assert!(rest.is_empty() || rest == b"rest");
        }
    }

    #[test]
    fn broken_armour_is_refused() {
        for (block, reason) in [
            ("", Malformed::Armour),
            (" -----BEGIN PGP SIGNATURE-----\n\nAAEC\n", Malformed::Armour),
            ("-----BEGIN PGP MESSAGE-----\n\nAAEC\n-----END PGP MESSAGE-----", Malformed::Armour),
            ("-----BEGIN PGP SIGNATURE-----\nAAEC\n-----END PGP SIGNATURE-----", Malformed::Armour),
            (
                "-----BEGIN PGP SIGNATURE-----\n\nAA#C\n-----END PGP SIGNATURE-----",
                Malformed::Armour,
            ),
            (
                "-----BEGIN PGP SIGNATURE-----\n\nAAEC\n=abcd\nAAEC\n-----END PGP SIGNATURE-----",
                Malformed::Armour,
            ),
            ("-----BEGIN PGP SIGNATURE-----\n\nAAEC\n", Malformed::Truncated),
            ("-----BEGIN PGP SIGNATURE-----\nVersion: 1\n", Malformed::Truncated),
        ] {
            assert_eq!(read(block.as_bytes(), SIGNATURE), Err(reason), "{block}");
        }
    }
}
