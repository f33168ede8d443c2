//! Writes a Debian package by hand: an ar archive of uncompressed tars.

/// A package for all architectures that holds one file.
pub fn build(name: &str, version: &str, payload: &[u8]) -> Vec<u8> {
    let control = format!(
        "Package: {name}\nVersion: {version}\nArchitecture: all\n\
         Maintainer: Nobody <nobody@example.org>\nDescription: made for a test\n"
    );
    let file = format!("./usr/share/{name}/payload");
    let folders = ["./", "./usr/", "./usr/share/", &format!("./usr/share/{name}/")];
    let mut deb = b"!<arch>\n".to_vec();
    add_member(&mut deb, "debian-binary", b"2.0\n");
    add_member(&mut deb, "control.tar", &tar(&["./"], "./control", control.as_bytes()));
    add_member(&mut deb, "data.tar", &tar(&folders, &file, payload));
    deb
}

/// An ar member: a header of 60 characters, the content, an even length.
fn add_member(ar: &mut Vec<u8>, name: &str, content: &[u8]) {
    let (time, owner, group, mode) = (0, 0, 0, "100644");
    let size = content.len();
    let head = format!("{name:<16}{time:<12}{owner:<6}{group:<6}{mode:<8}{size:<10}`\n");
    ar.extend_from_slice(head.as_bytes());
    ar.extend_from_slice(content);
    if size % 2 == 1 {
        ar.push(b'\n');
    }
}

/// A ustar archive of some folders and one file.
fn tar(folders: &[&str], file: &str, content: &[u8]) -> Vec<u8> {
    let mut tar = Vec::new();
    for folder in folders {
        tar.extend_from_slice(&tar_head(folder, 0o755, 0, b'5'));
    }
    tar.extend_from_slice(&tar_head(file, 0o644, content.len(), b'0'));
    tar.extend_from_slice(content);
    // Blocks of 512 bytes, and two empty ones at the end.
    tar.resize(tar.len().next_multiple_of(512) + 1024, 0);
    tar
}

fn tar_head(name: &str, mode: u32, size: usize, kind: u8) -> [u8; 512] {
    let mut head = [0; 512];
    let mut put = |at: usize, text: &str| {
        head[at..at + text.len()].copy_from_slice(text.as_bytes());
    };
    put(0, name);
    put(100, &format!("{mode:07o}"));
    put(108, "0000000");
    put(116, "0000000");
    put(124, &format!("{size:011o}"));
    put(136, "00000000000");
    // The checksum is taken over a head with blanks in its place.
    put(148, "        ");
    put(257, "ustar\x0000");
    put(265, "root");
    put(297, "root");
    head[156] = kind;
    let sum: u32 = head.iter().map(|byte| u32::from(*byte)).sum();
    head[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    head
}
