//! The lists below a release file: packages, sources, patches of lists and sums of installer
//! files (Debian repository format, "Packages Indices", "Sources Indices", "diffs"; GNU coreutils'
//! sums). Each is read as a stream, in the memory of one paragraph.

use std::io::BufRead;

use crate::archive::control::ControlError;
use crate::archive::control::Lines;
use crate::archive::control::Paragraph;
use crate::archive::control::Paragraphs;
use crate::archive::listed::Count;
use crate::archive::listed::Listed;
use crate::archive::listed::Tally;
use crate::archive::listed::path_below;
use crate::archive::listed::size;
use crate::content::digest::Expected;

/// The longest paragraph, in bytes. The longest in Debian's archives, Linux's in `Sources`, is
/// under 1 MB.
pub const PARAGRAPH_MAX: usize = 4 << 20;

/// The most files in one list. Debian's `main` has 64,000 packages for an architecture and
/// 120,000 files in `Sources`.
pub const ENTRIES_MAX: u64 = 1_000_000;

/// Reads a `Packages` file, plain, and gives each package that has `Filename`, `Size` and a digest
/// to `found`; paths are relative to the archive's root (in a flat repository, to its folder).
/// Other paragraphs are counted and skipped.
///
/// # Errors
/// When it is no control data, passes a bound or can not be read. What was found until then was
/// listed.
pub fn packages(reader: impl BufRead, found: impl FnMut(Listed)) -> Result<Count, ControlError> {
    let mut tally = Tally::new(ENTRIES_MAX, found);
    let mut paragraphs = Paragraphs::new(reader, PARAGRAPH_MAX);
    while let Some(paragraph) = paragraphs.next()? {
        tally.take(package(paragraph))?;
    }
    Ok(tally.count())
}

fn package(paragraph: &Paragraph) -> Option<Listed> {
    Some(Listed {
        path: path_below("", paragraph.text("Filename")?)?,
        size: Some(size(paragraph.text("Size")?)?),
        digest: ["SHA256", "SHA512", "SHA1"]
            .iter()
            .find_map(|name| Expected::from_by_hash(name, paragraph.text(name)?))?,
    })
}

/// Reads a `Sources` file, plain, and gives each file of each source package to `found`; paths are
/// relative to the archive's root (in a flat repository, to its folder). A paragraph that lists no
/// file by more than MD5 is counted as one that was skipped.
///
/// # Errors
/// As [`packages`].
pub fn sources(reader: impl BufRead, found: impl FnMut(Listed)) -> Result<Count, ControlError> {
    let sections = [
        ("Checksums-Sha256", "SHA256"),
        ("Checksums-Sha512", "SHA512"),
        ("Checksums-Sha1", "SHA1"),
    ];
    let mut tally = Tally::new(ENTRIES_MAX, found);
    let mut paragraphs = Paragraphs::new(reader, PARAGRAPH_MAX);
    while let Some(paragraph) = paragraphs.next()? {
        let any = match paragraph.text("Directory") {
            Some(folder) => tally.take_sections(paragraph, &sections, folder)?,
            None => false,
        };
        if !any {
            tally.take(None)?;
        }
    }
    Ok(tally.count())
}

/// Reads the `Index` of a folder such as `Packages.diff` and gives the compressed patches that can
/// be downloaded to `found`; paths are relative to that folder. The plain patches that it lists
/// too have no file of their own.
///
/// # Errors
/// As [`packages`].
pub fn patches(reader: impl BufRead, found: impl FnMut(Listed)) -> Result<Count, ControlError> {
    let sections =
        [("SHA256-Download", "SHA256"), ("SHA512-Download", "SHA512"), ("SHA1-Download", "SHA1")];
    let mut tally = Tally::new(ENTRIES_MAX, found);
    if let Some(paragraph) = Paragraphs::new(reader, PARAGRAPH_MAX).next()? {
        tally.take_sections(paragraph, &sections, "")?;
    }
    Ok(tally.count())
}

/// Reads a `SHA256SUMS` file, or one of SHA-512 or SHA-1, and gives each file to `found`; paths are
/// relative to the folder that it lies in, and there are no sizes. Other lines, also those of names
/// with escapes, are counted and skipped.
///
/// # Errors
/// When a line or the list is too long, or it can not be read.
pub fn sums(reader: impl BufRead, found: impl FnMut(Listed)) -> Result<Count, ControlError> {
    let mut tally = Tally::new(ENTRIES_MAX, found);
    let mut lines = Lines::new(reader);
    let mut line = Vec::new();
    while lines.read(&mut line)? {
        let text = line.trim_ascii_end();
        if !text.is_empty() {
            tally.take(sum(text))?;
        }
        line.clear();
    }
    Ok(tally.count())
}

/// `DIGEST  NAME`, or `DIGEST *NAME` for a file that was read as binary.
fn sum(line: &[u8]) -> Option<Listed> {
    let (digest, name) = std::str::from_utf8(line).ok()?.split_once(' ')?;
    let name = name.strip_prefix([' ', '*'])?;
    let algorithm = match digest.len() {
        64 => "SHA256",
        128 => "SHA512",
        40 => "SHA1",
        _ => return None,
    };
    let digest = Expected::from_by_hash(algorithm, digest)?;
    Some(Listed { path: path_below("", name)?, size: None, digest })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::digest::Sha256;

    type Parser = fn(&[u8], &mut Vec<Listed>) -> Result<Count, ControlError>;

    const PACKAGES: Parser = |input, all| packages(input, |listed| all.push(listed));
    const SOURCES: Parser = |input, all| sources(input, |listed| all.push(listed));
    const PATCHES: Parser = |input, all| patches(input, |listed| all.push(listed));
    const SUMS: Parser = |input, all| sums(input, |listed| all.push(listed));

    fn hex(digit: char, length: usize) -> String {
        digit.to_string().repeat(length)
    }

    fn sha256(digit: char) -> Expected {
        Expected::Sha256(Sha256::from_hex(&hex(digit, 64)).unwrap())
    }

    fn listed(path: &str, size: u64, digest: Expected) -> Listed {
        Listed { path: path.to_owned(), size: Some(size), digest }
    }

    fn check(parser: Parser, input: &str, wanted: &[Listed], skipped: u64) {
        let mut all = Vec::new();
        let count = parser(input.as_bytes(), &mut all).unwrap();
        assert_eq!(all, wanted, "{input}");
        assert_eq!(count, Count { listed: all.len() as u64, skipped }, "{input}");
    }

    #[test]
    fn packages_are_listed_by_their_strongest_digest() {
        let (one, two, three) = (hex('1', 40), hex('2', 64), hex('3', 128));
        let sha1 = Expected::from_by_hash("SHA1", &one).unwrap();
        let sha512 = Expected::from_by_hash("SHA512", &three).unwrap();
        let path = "pool/a_1_all.deb";
        for (digests, digest) in [
            (format!("SHA1: {one}\nSHA256: {two}\nSHA512: {three}\n"), Some(sha256('2'))),
            (format!("SHA1: {one}\nSHA512: {three}\nMD5sum: {}\n", hex('4', 32)), Some(sha512)),
            (format!("sha1: {one}\n"), Some(sha1)),
            (format!("SHA256: {}\nSHA1: {one}\n", hex('2', 63)), Some(sha1)),
            (format!("MD5sum: {}\n", hex('4', 32)), None),
            (format!("SHA256: {}\n", hex('x', 64)), None),
            ("SHA256:\n".to_owned(), None),
            (String::new(), None),
        ] {
            let text = format!("Package: a\nFilename: ./{path}\nSize: 7\n{digests}\n");
            let wanted: Vec<Listed> = digest.iter().map(|&d| listed(path, 7, d)).collect();
            check(PACKAGES, &text, &wanted, u64::from(digest.is_none()));
        }
    }

    #[test]
    fn paragraphs_that_name_no_file_are_skipped() {
        let digest = format!("SHA256: {}", hex('2', 64));
        let good = format!("Filename: good.deb\nSize: 1\n{digest}\n\n");
        for bad in [
            format!("Filename: a.deb\n{digest}"),
            format!("Size: 1\n{digest}"),
            format!("Filename: a.deb\nSize: -1\n{digest}"),
            format!("Filename: a.deb\nSize: 18446744073709551616\n{digest}"),
            format!("Filename: a.deb\nSize: 9223372036854775808\n{digest}"),
            format!("Filename: ../a.deb\nSize: 1\n{digest}"),
            format!("Filename: /a.deb\nSize: 1\n{digest}"),
            format!("Filename:\n a.deb\n b.deb\nSize: 1\n{digest}"),
            format!("Filename:\nSize: 1\n{digest}"),
        ] {
            let text = format!("{bad}\n\n{good}{good}");
            let wanted = listed("good.deb", 1, sha256('2'));
            check(PACKAGES, &text, &[wanted.clone(), wanted], 1);
        }
        check(PACKAGES, "", &[], 0);
    }

    #[test]
    fn sources_list_each_file_once() {
        let (a, b, c, d) = (hex('a', 64), hex('b', 64), hex('c', 40), hex('d', 40));
        let text = format!(
            "Package: hello\nDirectory: pool/h\nFiles:\n {m} 1 h.dsc\n {m} 2 h.tar.xz\n\
             Checksums-Sha1:\n {c} 1 h.dsc\n {d} 3 h.asc\n\
             Checksums-Sha256:\n {a} 1 h.dsc\n {b} 2 h.tar.xz\n {b} 2 ../evil\n {b} two h.x\n\n\
             Package: flat\nDirectory: .\nChecksums-Sha256:\n {a} 5 flat.dsc\n\n\
             Package: old\nDirectory: pool/o\nFiles:\n {m} 1 o.dsc\n\n\
             Package: nowhere\nChecksums-Sha256:\n {a} 5 n.dsc\n",
            m = hex('0', 32),
        );
        let sha1 = Expected::from_by_hash("SHA1", &d).unwrap();
        let wanted = [
            listed("pool/h/h.dsc", 1, sha256('a')),
            listed("pool/h/h.tar.xz", 2, sha256('b')),
            listed("pool/h/h.asc", 3, sha1),
            listed("flat.dsc", 5, sha256('a')),
        ];
        check(SOURCES, &text, &wanted, 4);
    }

    #[test]
    fn patches_are_the_compressed_ones() {
        let text = format!(
            "SHA256-Current: {a} 9\nSHA256-History:\n {a} 8 T-1-F-0\n\
             SHA256-Patches:\n {a} 7 T-1-F-0\nSHA256-Download:\n {b} 6 T-1-F-0.gz\n\
             SHA1-Download:\n {c} 6 T-1-F-0.gz\n",
            a = hex('a', 64),
            b = hex('b', 64),
            c = hex('c', 40),
        );
        check(PATCHES, &text, &[listed("T-1-F-0.gz", 6, sha256('b'))], 0);
        check(PATCHES, "", &[], 0);
    }

    #[test]
    fn sums_are_read_in_both_manners() {
        let digest = hex('a', 64);
        let text = format!(
            "{digest}  ./netboot/mini.iso\r\n{digest} *MANIFEST\n\n{digest}  two words\n\
             {digest}\n{digest} x\n\\{digest}  a\\nb\n{}  md5\nnothing\n{digest}  ../a\n",
            hex('1', 32)
        );
        let without = |path: &str| Listed { size: None, ..listed(path, 0, sha256('a')) };
        let wanted = [without("netboot/mini.iso"), without("MANIFEST"), without("two words")];
        check(SUMS, &text, &wanted, 6);
        let sha512 = format!("{}  a", hex('b', 128));
        let mut all = Vec::new();
        SUMS(sha512.as_bytes(), &mut all).unwrap();
        assert!(matches!(all[0].digest, Expected::Sha512(_)));
    }

    #[test]
    fn lists_are_bounded() {
        let line = "a".repeat(crate::archive::control::LINE_MAX + 1);
        for parser in [PACKAGES, SOURCES, PATCHES, SUMS] {
            let error = parser(line.as_bytes(), &mut Vec::new()).unwrap_err();
            assert!(matches!(error, ControlError::LineTooLong { line: 1 }), "{error}");
        }
        let mut long = "Directory: .\nSHA256-Download:\n".to_owned();
        long.push_str(&" x\n".repeat(PARAGRAPH_MAX / 3));
        for parser in [PACKAGES, SOURCES, PATCHES] {
            let error = parser(long.as_bytes(), &mut Vec::new()).unwrap_err();
            assert!(matches!(error, ControlError::ParagraphTooLong { .. }), "{error}");
        }
        let digest = Expected::from_by_hash("SHA1", &hex('1', 40)).unwrap();
        let mut tally = Tally::new(1, |_| {});
        assert!(tally.take(Some(listed("a", 1, digest))).is_ok());
        let error = tally.take(Some(listed("b", 1, digest))).unwrap_err();
        assert!(matches!(error, ControlError::TooManyEntries { entries_max: 1 }), "{error}");
    }
}
