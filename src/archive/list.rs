//! Lists: the files of an archive that say what its other files are. Which list a resource holds,
//! and where the paths in it begin (Debian repository format, "Structure of Release files" and
//! "Packages indices").

/// What a list names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListKind {
    /// A release file: the metadata files of its suite.
    Release,
    /// Binary packages.
    Packages,
    /// Source packages.
    Sources,
    /// Patches of a metadata file: `*.diff/Index`.
    Patches,
    /// `SHA256SUMS`: the installer's files.
    Sums,
}

/// A list, whichever of its files (compressed, by-hash) it is read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct List {
    /// What it names.
    pub kind: ListKind,
    /// The URL of its plain file: its one name.
    pub key: String,
    /// The URL that the paths in it are relative to, with a slash at its end.
    pub base: String,
}

/// Endings of compressed files.
pub const COMPRESSIONS: [&str; 6] = ["gz", "xz", "zst", "bz2", "lzma", "lz4"];

impl List {
    /// The list that the resource at `url` (canonical) holds; `None` if it holds none.
    #[must_use]
    pub fn at(url: &str) -> Option<Self> {
        let (folder, name) = url.rsplit_once('/')?;
        match by_hash_folder(folder) {
            Some(folder) => Self::of(folder, plain_name_in(folder)?),
            None => Self::of(folder, without_compression(name)),
        }
    }

    fn of(folder: &str, name: &str) -> Option<Self> {
        let kind = match name {
            "InRelease" | "Release" => ListKind::Release,
            "Packages" => ListKind::Packages,
            "Sources" => ListKind::Sources,
            "Index" if folder.strip_suffix(".diff").is_some() => ListKind::Patches,
            "SHA256SUMS" => ListKind::Sums,
            _ => return None,
        };
        // The two forms of a release file say the same.
        let name = if kind == ListKind::Release { "Release" } else { name };
        let base = match kind {
            ListKind::Packages | ListKind::Sources => archive_root(folder),
            ListKind::Release | ListKind::Patches | ListKind::Sums => folder,
        };
        Some(Self { kind, key: format!("{folder}/{name}"), base: format!("{base}/") })
    }

    /// The URLs of the list's files under their plain names: compressed in any way, or not.
    pub fn files(&self) -> impl Iterator<Item = String> {
        // A release file is never compressed.
        let endings = (self.kind != ListKind::Release).then_some(COMPRESSIONS);
        let compressed =
            endings.into_iter().flatten().map(|ending| format!("{}.{ending}", self.key));
        std::iter::once(self.key.clone()).chain(compressed)
    }
}

/// The folder that a `by-hash/ALGORITHM` folder is in.
fn by_hash_folder(folder: &str) -> Option<&str> {
    let (folder, _algorithm) = folder.rsplit_once('/')?;
    folder.strip_suffix("/by-hash")
}

/// The name of the list that is in a folder of `dists`: by-hash names do not tell.
fn plain_name_in(folder: &str) -> Option<&'static str> {
    let last = folder.rsplit('/').next()?;
    match last {
        "source" => Some("Sources"),
        _ if last.starts_with("binary-") => Some("Packages"),
        _ => last.strip_suffix(".diff").map(|_| "Index"),
    }
}

/// Where `pool/…` begins: beside `dists`, or in the list's own folder in a flat repository.
fn archive_root(folder: &str) -> &str {
    // A host may be called `dists` too.
    let host = folder.find("://").map_or(0, |at| at + 3);
    let path =
        folder.get(host..).and_then(|rest| rest.find('/')).map_or(folder.len(), |at| host + at);
    let dists = folder.get(path..).and_then(|rest| rest.find("/dists/"));
    dists.and_then(|at| folder.get(..path + at)).unwrap_or(folder)
}

/// `name` without the ending of a compressed file.
#[must_use]
pub fn without_compression(name: &str) -> &str {
    match name.rsplit_once('.') {
        Some((bare, ending)) if COMPRESSIONS.contains(&ending) => bare,
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_told_from_their_place() {
        use ListKind::{Packages, Patches, Release, Sources, Sums};
        let suite = "http://m/debian/dists/sid";
        let amd64 = format!("{suite}/main/binary-amd64");
        let hex = "0".repeat(64);
        let table = [
            (
                format!("{suite}/InRelease"),
                Release,
                format!("{suite}/Release"),
                format!("{suite}/"),
            ),
            (format!("{suite}/Release"), Release, format!("{suite}/Release"), format!("{suite}/")),
            (
                format!("{amd64}/Packages.xz"),
                Packages,
                format!("{amd64}/Packages"),
                "http://m/debian/".to_owned(),
            ),
            (
                format!("{amd64}/by-hash/SHA256/{hex}"),
                Packages,
                format!("{amd64}/Packages"),
                "http://m/debian/".to_owned(),
            ),
            (
                format!("{suite}/main/source/by-hash/SHA256/{hex}"),
                Sources,
                format!("{suite}/main/source/Sources"),
                "http://m/debian/".to_owned(),
            ),
            (
                format!("{amd64}/Packages.diff/Index"),
                Patches,
                format!("{amd64}/Packages.diff/Index"),
                format!("{amd64}/Packages.diff/"),
            ),
            (
                "http://dists/evil/Packages".to_owned(),
                Packages,
                "http://dists/evil/Packages".to_owned(),
                "http://dists/evil/".to_owned(),
            ),
            (
                "http://dists/dists/sid/main/binary-all/Packages".to_owned(),
                Packages,
                "http://dists/dists/sid/main/binary-all/Packages".to_owned(),
                "http://dists/".to_owned(),
            ),
            (
                "http://m/flat/Packages.gz".to_owned(),
                Packages,
                "http://m/flat/Packages".to_owned(),
                "http://m/flat/".to_owned(),
            ),
            (
                format!("{suite}/main/installer-amd64/current/images/SHA256SUMS"),
                Sums,
                format!("{suite}/main/installer-amd64/current/images/SHA256SUMS"),
                format!("{suite}/main/installer-amd64/current/images/"),
            ),
        ];
        for (url, kind, key, base) in table {
            assert_eq!(List::at(&url), Some(List { kind, key, base }), "{url}");
        }
    }

    #[test]
    fn other_files_are_no_lists() {
        let hex = "0".repeat(64);
        for url in [
            "http://m/debian/dists/sid/main/i18n/Translation-de.xz".to_owned(),
            format!("http://m/debian/dists/sid/main/i18n/by-hash/SHA256/{hex}"),
            "http://m/debian/dists/sid/Release.gpg".to_owned(),
            "http://m/debian/pool/main/h/hello/hello_1_all.deb".to_owned(),
            "http://m/Index".to_owned(),
        ] {
            assert_eq!(List::at(&url), None, "{url}");
        }
    }

    #[test]
    fn a_list_has_files_with_every_ending() {
        let list = List::at("http://m/flat/Packages.xz").unwrap();
        let files: Vec<String> = list.files().collect();
        assert_eq!(files[0], "http://m/flat/Packages");
        assert!(files.contains(&"http://m/flat/Packages.xz".to_owned()));
    }
}
