//! The cleartext signature framework (RFC 9580 §7): what an `InRelease` signs.

use super::armour::{self, next_line, trim_end};
use super::{Malformed, SIGNATURE_BYTES_MAX, TEXT_BYTES_MAX};

/// The line that a signed message begins with.
pub(in crate::archive) const BEGIN: &[u8] = b"-----BEGIN PGP SIGNED MESSAGE-----";

/// A cleartext message, taken apart.
#[derive(Debug)]
pub(super) struct Message {
    /// The signed lines, each ended by LF.
    text: Vec<u8>,
    /// The signature packets.
    pub(super) signatures: Vec<u8>,
}

impl Message {
    /// What the signature covers: the end of the last line belongs to the framing (RFC 9580 §7.1).
    pub(super) fn signed(&self) -> &[u8] {
        self.text.strip_suffix(b"\n").unwrap_or(&self.text)
    }
}

/// The text that an `InRelease` signs, and nothing else: the lines between its headers and its
/// signature with the dash escapes taken off, each ended by LF, without white space at their ends,
/// which the signature does not cover (RFC 9580 §7.2). This is what a release file must be parsed
/// from; whether a signature holds for it, [`super::Keyring::check_inline`] tells.
///
/// # Errors
/// When the framing is not exactly that of one signed message: see [`Malformed`].
pub(in crate::archive) fn signed_text(inrelease: &[u8]) -> Result<Vec<u8>, Malformed> {
    read(inrelease).map(|message| message.text)
}

/// Takes a cleartext message apart.
pub(super) fn read(file: &[u8]) -> Result<Message, Malformed> {
    if file.len() > TEXT_BYTES_MAX {
        return Err(Malformed::TooLarge { limit: TEXT_BYTES_MAX });
    }
    if memchr::memchr(0, file).is_some() {
        return Err(Malformed::Nul);
    }
    let mut rest = file;
    if next_line(&mut rest).map(trim_end) != Some(BEGIN) {
        let is_later = memchr::memmem::find(file, BEGIN).is_some();
        return Err(if is_later { Malformed::TextBefore } else { Malformed::NotSigned });
    }
    let mut line_number = 1 + skip_headers(&mut rest)?;
    let mut text = Vec::with_capacity(rest.len());
    loop {
        let from_here = rest;
        let line = next_line(&mut rest).ok_or(Malformed::Truncated)?;
        line_number += 1;
        if trim_end(line) == armour::SIGNATURE.begin {
            return Ok(Message { text, signatures: read_signatures(from_here)? });
        }
        let line = match line {
            [b'-', b' ', escaped @ ..] => escaped,
            [b'-', ..] => return Err(Malformed::Dash { line: line_number }),
            _ => line,
        };
        let line = trim_end(line);
        if memchr::memchr(b'\r', line).is_some() {
            return Err(Malformed::CarriageReturn { line: line_number });
        }
        text.extend_from_slice(line);
        text.push(b'\n');
    }
}

/// Takes the headers and the empty line after them off `rest`, and counts their lines. They say
/// nothing that the signature does not; one that is not known could change how the text is to be
/// read, as gpg's `NotDashEscaped` does.
fn skip_headers(rest: &mut &[u8]) -> Result<usize, Malformed> {
    let mut count = 0;
    loop {
        let line = trim_end(next_line(rest).ok_or(Malformed::Truncated)?);
        count += 1;
        if line.is_empty() {
            return Ok(count);
        }
        if !line.starts_with(b"Hash:") {
            return Err(Malformed::Header);
        }
    }
}

/// The packets of the one armoured signature that is left of the file.
fn read_signatures(rest: &[u8]) -> Result<Vec<u8>, Malformed> {
    if rest.len() > SIGNATURE_BYTES_MAX {
        return Err(Malformed::TooLarge { limit: SIGNATURE_BYTES_MAX });
    }
    let (packets, after) = armour::read(rest, armour::SIGNATURE)?;
    if after.trim_ascii().is_empty() { Ok(packets) } else { Err(Malformed::TextAfter) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIGNATURE: &str =
        "-----BEGIN PGP SIGNATURE-----\n\nAAEC\n=abcd\n-----END PGP SIGNATURE-----\n";

    fn message(body: &str) -> String {
        format!("-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA512\n\n{body}\n{SIGNATURE}")
    }

    fn text(file: &str) -> Result<String, Malformed> {
        signed_text(file.as_bytes()).map(|text| String::from_utf8(text).unwrap())
    }

    #[test]
    fn the_text_is_what_was_signed() {
        for (body, signed) in [
            ("Origin: Debian\nSuite: stable", "Origin: Debian\nSuite: stable\n"),
            ("a  \nb\t \r\nc\r", "a\nb\nc\n"),
            (
                "- -----BEGIN PGP SIGNATURE-----\n- - a\n- ",
                "-----BEGIN PGP SIGNATURE-----\n- a\n\n",
            ),
            ("\n\na\n", "\n\na\n\n"),
            (" -a\n\u{e9}", " -a\n\u{e9}\n"),
        ] {
            assert_eq!(text(&message(body)).as_deref(), Ok(signed), "{body:?}");
        }
    }

    #[test]
    fn line_ends_and_blanks_do_not_change_the_text() {
        let crlf = message("a\nb").replace('\n', "\r\n");
        assert_eq!(text(&crlf).as_deref(), Ok("a\nb\n"));
        let none = message("a").replace("Hash: SHA512\n", "");
        assert_eq!(text(&none).as_deref(), Ok("a\n"));
        let many = message("a").replace("Hash: SHA512\n", "Hash: SHA256\nHash: SHA512,SHA384\n");
        assert_eq!(text(&many).as_deref(), Ok("a\n"));
        assert_eq!(text(message("a").trim_end()).as_deref(), Ok("a\n"));
        assert_eq!(text(&format!("{}\n \n", message("a"))).as_deref(), Ok("a\n"));
    }

    #[test]
    fn what_readers_could_take_differently_is_refused() {
        let good = message("a");
        for (file, reason) in [
            (String::new(), Malformed::NotSigned),
            ("Origin: Debian\n".to_owned(), Malformed::NotSigned),
            (format!("Origin: Evil\n{good}"), Malformed::TextBefore),
            (format!("\n{good}"), Malformed::TextBefore),
            (format!("\u{feff}{good}"), Malformed::TextBefore),
            (format!(" {good}"), Malformed::TextBefore),
            (format!("{good}Origin: Evil\n"), Malformed::TextAfter),
            (format!("{good}{good}"), Malformed::TextAfter),
            (format!("{good}{SIGNATURE}"), Malformed::TextAfter),
            (good.replace("Hash:", "NotDashEscaped:"), Malformed::Header),
            (good.replace("Hash: SHA512", "Origin: Evil"), Malformed::Header),
            (message("a\n-----BEGIN PGP SIGNED MESSAGE-----"), Malformed::Dash { line: 5 }),
            (message("-a"), Malformed::Dash { line: 4 }),
            (message("-"), Malformed::Dash { line: 4 }),
            (message("a\n\nb\rc"), Malformed::CarriageReturn { line: 6 }),
            (message("a\0"), Malformed::Nul),
            (good.replace(SIGNATURE, ""), Malformed::Truncated),
            (good.replace("-----END", "----END"), Malformed::Armour),
            (good.replace("=abcd\n-----END PGP SIGNATURE-----\n", ""), Malformed::Truncated),
            ("-----BEGIN PGP SIGNED MESSAGE-----".to_owned(), Malformed::Truncated),
            ("-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA512".to_owned(), Malformed::Truncated),
            (good.replace("AAEC", "A"), Malformed::Armour),
        ] {
            assert_eq!(text(&file), Err(reason), "{file:?}");
        }
    }

    #[test]
    fn size_is_bounded() {
        let limit = TEXT_BYTES_MAX;
        assert_eq!(signed_text(&vec![b'a'; limit + 1]), Err(Malformed::TooLarge { limit }));
        let limit = SIGNATURE_BYTES_MAX;
        let long = message("a").replace("AAEC", &"AAEC\n".repeat(limit / 5));
        assert_eq!(text(&long), Err(Malformed::TooLarge { limit }));
    }
}
