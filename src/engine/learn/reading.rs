//! Reading a list from its blob: unpacked, parsed, and every statement handed on, for as long as
//! there is use in it.

use std::cell::OnceCell;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use crate::archive::compression::Compression;
use crate::archive::list::{List, ListKind};
use crate::archive::listed::Listed;
use crate::archive::release::Release;
use crate::archive::target::canonical_path;
use crate::archive::{aliases, packages, release};
use crate::engine::learn::Refusal;
use crate::engine::learn::difference::{Difference, Said};
use crate::index::Expectation;
use crate::store::Blob;

/// The most plain bytes of a list, compressed or not. Debian's largest packages file has 60 MB.
const PLAIN_MAX: u64 = 1024 * 1024 * 1024;
/// The most bytes of a release file. Debian's have 200 kB.
const RELEASE_MAX: u64 = 32 * 1024 * 1024;
/// What is read of a file at once, in bytes.
const READ_AHEAD: usize = 128 * 1024;
/// The most processor time that a list may take: others wait behind it. Debian's largest takes half
/// a second on a server, some seconds on a small board. What the volume and the index take is not
/// the list's fault.
const WORK_MAX: Duration = Duration::from_mins(2);

/// Reads the list in `blob` and gives all that it says to `difference`; blocks.
///
/// # Errors
/// When it is no such list, is beyond a bound, or can not be read.
pub(in crate::engine) fn read(
    list: &List,
    blob: &Blob,
    difference: Difference,
) -> Result<Said, Refusal> {
    let file = BlobReader { file: Arc::clone(&blob.file), offset: 0 };
    read_within(WORK_MAX, list, file, difference)
}

fn read_within(
    work_max: Duration,
    list: &List,
    file: impl Read,
    mut difference: Difference,
) -> Result<Said, Refusal> {
    let given_up = OnceCell::new();
    let mut key = String::new();
    let mut said = |listed: Listed| {
        key.clone_from(&list.base);
        key.push_str(&canonical_path(&listed.path));
        let what = Expectation { size: listed.size, digest: listed.digest };
        if given_up.get().is_none()
            && let Err(refusal) = difference.say(&key, what)
        {
            drop(given_up.set(refusal));
        }
    };
    let end = work_done() + work_max;
    let outcome = match list.kind {
        ListKind::Release => parse_release(file, said),
        _ => parse(list.kind, file, Bound { given_up: &given_up, end }, &mut said),
    };
    // That it was given up is the reason of whatever came of it.
    given_up.into_inner().map_or(outcome, Err)?;
    difference.end()
}

fn parse_release(file: impl Read, said: impl FnMut(Listed)) -> Result<(), Refusal> {
    let mut text = Vec::new();
    file.take(RELEASE_MAX).read_to_end(&mut text).map_err(Refusal::Read)?;
    let content = release::content(&text)?;
    let release = Release::parse(&content.text)?;
    let aliases = aliases::aliases(&content.text, &release)?;
    release.files.into_iter().chain(aliases).for_each(said);
    Ok(())
}

fn parse(
    kind: ListKind,
    file: impl Read,
    bound: Bound<'_>,
    said: &mut dyn FnMut(Listed),
) -> Result<(), Refusal> {
    let mut file = BufReader::with_capacity(READ_AHEAD, file);
    let compression = Compression::detect(file.fill_buf().map_err(Refusal::Read)?);
    let plain = compression.reader(file, PLAIN_MAX).map_err(Refusal::Read)?;
    let plain = BufReader::with_capacity(READ_AHEAD, BoundReader { plain, bound });
    match kind {
        ListKind::Packages => packages::packages(plain, said)?,
        ListKind::Sources => packages::sources(plain, said)?,
        ListKind::Patches => packages::patches(plain, said)?,
        ListKind::Sums | ListKind::Release => packages::sums(plain, said)?,
    };
    Ok(())
}

/// The processor time that this thread has had.
fn work_done() -> Duration {
    clock_gettime(ClockId::ThreadCPUTime).try_into().unwrap_or_default()
}

/// Until when a list is read.
struct Bound<'a> {
    /// Why there is no use in going on; said by whoever found out.
    given_up: &'a OnceCell<Refusal>,
    /// The thread's processor time at which it is too much.
    end: Duration,
}

impl Bound<'_> {
    fn check(&self) -> io::Result<()> {
        if work_done() >= self.end {
            drop(self.given_up.set(Refusal::TooSlow));
        }
        match self.given_up.get() {
            Some(_) => Err(io::Error::other("given up")),
            None => Ok(()),
        }
    }
}

/// Plain bytes that end in an error when the list is given up: whatever a parser makes of them, it
/// stops.
struct BoundReader<'a, R> {
    plain: R,
    bound: Bound<'a>,
}

impl<R: Read> Read for BoundReader<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.bound.check()?;
        self.plain.read(buffer)
    }
}

/// Reads a blob from its beginning, whoever else reads it.
struct BlobReader {
    file: Arc<File>,
    offset: u64,
}

impl Read for BlobReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buffer, self.offset)?;
        self.offset += read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;
    use crate::engine::learn::difference::BATCH;

    /// An endless packages file, and how much of it was read.
    struct Endless {
        paragraphs: u64,
        rest: Vec<u8>,
        read: Arc<std::sync::atomic::AtomicUsize>,
    }

    impl Read for Endless {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            while self.rest.len() < buffer.len() {
                self.paragraphs += 1;
                let (name, digest) = (self.paragraphs, "a".repeat(64));
                let text = format!("Filename: {name}.deb\nSize: 1\nSHA256: {digest}\n\n");
                self.rest.extend(text.into_bytes());
            }
            buffer.copy_from_slice(&self.rest[..buffer.len()]);
            self.rest.drain(..buffer.len());
            self.read.fetch_add(buffer.len(), std::sync::atomic::Ordering::Relaxed);
            Ok(buffer.len())
        }
    }

    /// Why an endless list is given up, and after how many bytes.
    fn give_up(
        work_max: Duration,
        batches: mpsc::Sender<crate::index::Change>,
    ) -> (Refusal, usize) {
        let read = Arc::default();
        let endless = Endless { paragraphs: 0, rest: Vec::new(), read: Arc::clone(&read) };
        let list = List::at("http://m/flat/Packages").unwrap();
        let difference = Difference::new(Said::default(), batches);
        let refusal = read_within(work_max, &list, endless, difference).err().unwrap();
        (refusal, read.load(std::sync::atomic::Ordering::Relaxed))
    }

    #[test]
    fn a_list_that_takes_too_long_is_given_up() {
        let (batches, mut written) = mpsc::channel(1);
        let drain = std::thread::spawn(move || while written.blocking_recv().is_some() {});
        let (refusal, _) = give_up(Duration::from_millis(20), batches);
        assert!(matches!(refusal, Refusal::TooSlow), "{refusal}");
        drain.join().unwrap();
    }

    #[test]
    fn a_list_that_nobody_writes_down_is_read_no_further() {
        let (batches, written) = mpsc::channel(1);
        drop(written);
        let (refusal, read) = give_up(WORK_MAX, batches);
        assert!(matches!(refusal, Refusal::Abandoned), "{refusal}");
        assert!(read < BATCH * 200 + 4 * READ_AHEAD, "{read}");
    }
}
