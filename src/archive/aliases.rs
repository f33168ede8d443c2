//! The names that a release file's entries have beside their own: `by-hash/ALGORITHM/HEX`, once for
//! each algorithm that the release file gives (Debian repository format, "indices acquisition via
//! hashsums").

use std::collections::HashMap;

use crate::archive::control::{ControlError, Paragraphs};
use crate::archive::listed::Listed;
use crate::archive::release::Release;
use crate::content::digest::Expected;

/// The checksum sections whose by-hash names do not tell the SHA-256 of what they name.
const SECTIONS: [(&str, usize); 3] = [("MD5Sum", 32), ("SHA1", 40), ("SHA512", 128)];

/// The by-hash names of those files in `release` of which the SHA-256 is known: with that and the
/// size, so that the name of a weak digest is checked by the strong one. `text` is what `release`
/// was read from.
///
/// # Errors
/// When `text` is not control data.
pub fn aliases(text: &[u8], release: &Release) -> Result<Vec<Listed>, ControlError> {
    if !release.acquire_by_hash {
        return Ok(Vec::new());
    }
    let strong: HashMap<&str, &Listed> = release
        .files
        .iter()
        .filter(|listed| matches!(listed.digest, Expected::Sha256(_)))
        .map(|listed| (listed.path.as_str(), listed))
        .collect();
    let mut found = Vec::new();
    let mut paragraphs = Paragraphs::new(text, text.len().saturating_add(1));
    let Some(paragraph) = paragraphs.next()? else { return Ok(found) };
    for (section, length) in SECTIONS {
        for line in paragraph.lines(section) {
            if let Some(alias) = alias(line, section, length, &strong) {
                found.push(alias);
            }
        }
    }
    Ok(found)
}

/// `HEX SIZE PATH`
fn alias(
    line: &[u8],
    section: &str,
    length: usize,
    strong: &HashMap<&str, &Listed>,
) -> Option<Listed> {
    let mut words = std::str::from_utf8(line).ok()?.split_ascii_whitespace();
    let (hex, _size, path) = (words.next()?, words.next()?, words.next()?);
    let listed = strong.get(path)?;
    if hex.len() != length || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let folder = path.rsplit_once('/').map(|(folder, _)| format!("{folder}/")).unwrap_or_default();
    Some(Listed { path: format!("{folder}by-hash/{section}/{hex}"), ..(*listed).clone() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(by_hash: &str) -> Vec<Listed> {
        let (md5, sha1, sha256) = ("1".repeat(32), "2".repeat(40), "3".repeat(64));
        let text = format!(
            "Acquire-By-Hash: {by_hash}\n\
             MD5Sum:\n {md5} 7 main/binary-all/Packages\n {md5} 7 unknown\n bad 7 Packages\n\
             SHA1:\n {sha1} 7 main/binary-all/Packages\n\
             SHA256:\n {sha256} 7 main/binary-all/Packages\n {sha256} 8 Packages\n"
        );
        let release = Release::parse(text.as_bytes()).unwrap();
        aliases(text.as_bytes(), &release).unwrap()
    }

    #[test]
    fn weak_names_get_strong_digests() {
        let paths: Vec<String> = found("yes").iter().map(|alias| alias.path.clone()).collect();
        let folder = "main/binary-all/by-hash";
        assert_eq!(
            paths,
            [
                format!("{folder}/MD5Sum/{}", "1".repeat(32)),
                format!("{folder}/SHA1/{}", "2".repeat(40))
            ]
        );
        for alias in found("yes") {
            assert_eq!(alias.size, Some(7));
            assert!(matches!(alias.digest, Expected::Sha256(_)));
        }
    }

    #[test]
    fn without_by_hash_there_are_no_aliases() {
        assert_eq!(found("no"), []);
    }
}
