//! Compressed lists, read as a stream: told by their first bytes, decoded within bounds of
//! output and memory.

use std::io;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Read;

use flate2::bufread::MultiGzDecoder;
use liblzma::stream::CONCATENATED;
use lz4_flex::frame::FrameDecoder;

/// The most memory an xz decoder takes, in bytes. `xz -9`, the most that is in use, needs 65 MiB.
const XZ_MEMORY_MAX: u64 = 122 << 20;

/// The largest window of a zstd stream, as a power of two: 128 MiB, the decoder's own default.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

const BUFFER_BYTES: usize = 64 << 10;

/// How a file is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip (RFC 1952): `.gz`.
    Gzip,
    /// xz and its predecessor: `.xz`, `.lzma`.
    Xz,
    /// Zstandard (RFC 8878): `.zst`.
    Zstd,
    /// bzip2: `.bz2`.
    Bzip2,
    /// LZ4 frames: `.lz4`.
    Lz4,
}

impl Compression {
    /// Tells it from a file's first bytes, of which ten are enough: names in `by-hash` have no
    /// ending. No control data begins like any of these.
    #[must_use]
    pub fn detect(head: &[u8]) -> Self {
        match head {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] | [0x5d, 0, 0, ..] => Self::Xz,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, 0x59, 0x26, 0x53, 0x59, ..]
            | [b'B', b'Z', b'h', b'1'..=b'9', 0x17, 0x72, 0x45, 0x38, 0x50, 0x90, ..] => {
                Self::Bzip2
            }
            [0x04, 0x22, 0x4d, 0x18, ..] => Self::Lz4,
            _ => Self::None,
        }
    }

    /// The plain bytes of `compressed`, which may be several streams one after another (but for
    /// `.lzma`). Decoding takes up to 128 MiB and some of memory, whatever the stream asks for.
    ///
    /// Reading fails with [`io::ErrorKind::FileTooLarge`] when there are more than `plain_max`
    /// plain bytes, with [`io::ErrorKind::UnexpectedEof`] when the stream is cut off, and with
    /// other kinds when it is broken, needs more memory or can not be read.
    ///
    /// # Errors
    /// When the decoder can not be made.
    pub fn reader<'a>(
        self,
        compressed: impl Read + 'a,
        plain_max: u64,
    ) -> io::Result<Box<dyn BufRead + 'a>> {
        let source = BufReader::with_capacity(BUFFER_BYTES, compressed);
        let plain: Box<dyn Read + 'a> = match self {
            Self::None => Box::new(source),
            Self::Gzip => Box::new(MultiGzDecoder::new(source)),
            Self::Xz => {
                let stream =
                    liblzma::stream::Stream::new_auto_decoder(XZ_MEMORY_MAX, CONCATENATED)?;
                Box::new(liblzma::bufread::XzDecoder::new_stream(source, stream))
            }
            Self::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(source)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
                Box::new(decoder)
            }
            Self::Bzip2 => Box::new(bzip2::bufread::MultiBzDecoder::new(source)),
            Self::Lz4 => Box::new(Lz4::new(source)),
        };
        let bounded = Bounded { plain, left: plain_max };
        Ok(Box::new(BufReader::with_capacity(BUFFER_BYTES, bounded)))
    }
}

/// Fails when there is more than was allowed: a shorter list would look like a whole one.
struct Bounded<R> {
    plain: R,
    left: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            return match self.plain.read(&mut [0])? {
                0 => Ok(0),
                _ => Err(io::ErrorKind::FileTooLarge.into()),
            };
        }
        let room = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let length = self.plain.read(buffer.get_mut(..room).unwrap_or_default())?;
        self.left = self.left.saturating_sub(length as u64);
        Ok(length)
    }
}

/// Several frames, and an error where one is cut off between two blocks: the decoder takes both
/// for the end.
struct Lz4<R: BufRead> {
    decoder: FrameDecoder<Watched<R>>,
    in_frame: bool,
}

impl<R: BufRead> Lz4<R> {
    fn new(source: R) -> Self {
        let decoder = FrameDecoder::new(Watched { source, ended: false });
        Self { decoder, in_frame: true }
    }
}

impl<R: BufRead> Read for Lz4<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if !self.in_frame && self.decoder.get_mut().source.fill_buf()?.is_empty() {
                return Ok(0);
            }
            self.in_frame = true;
            let length = self.decoder.read(buffer)?;
            if length > 0 || buffer.is_empty() {
                return Ok(length);
            }
            if self.decoder.get_ref().ended {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.in_frame = false;
        }
    }
}

/// A source that remembers whether it was asked for more than it has.
struct Watched<R> {
    source: R,
    ended: bool,
}

impl<R: BufRead> Read for Watched<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.source.read(buffer)?;
        self.ended = length == 0 && !buffer.is_empty();
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    const ALL: [Compression; 5] = [
        Compression::Gzip,
        Compression::Xz,
        Compression::Zstd,
        Compression::Bzip2,
        Compression::Lz4,
    ];

    fn pack(compression: Compression, plain: &[u8]) -> Vec<u8> {
        match compression {
            Compression::None => plain.to_vec(),
            Compression::Gzip => {
                let mut encoder =
                    flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
                encoder.write_all(plain).unwrap();
                encoder.finish().unwrap()
            }
            Compression::Xz => {
                let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 6);
                encoder.write_all(plain).unwrap();
                encoder.finish().unwrap()
            }
            Compression::Zstd => zstd::stream::encode_all(plain, 3).unwrap(),
            Compression::Bzip2 => {
                let mut encoder =
                    bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::new(9));
                encoder.write_all(plain).unwrap();
                encoder.finish().unwrap()
            }
            Compression::Lz4 => {
                let info = lz4_flex::frame::FrameInfo::new().content_checksum(true);
                let mut encoder = lz4_flex::frame::FrameEncoder::with_frame_info(info, Vec::new());
                encoder.write_all(plain).unwrap();
                encoder.finish().unwrap()
            }
        }
    }

    fn unpack(compression: Compression, packed: &[u8], plain_max: u64) -> io::Result<Vec<u8>> {
        let mut plain = Vec::new();
        compression.reader(packed, plain_max)?.read_to_end(&mut plain)?;
        Ok(plain)
    }

    /// Text that does not compress away: several blocks in each format.
    fn sample() -> Vec<u8> {
        let numbers = (0u64..30_000).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        numbers.flat_map(|number| format!("{number:x}\n").into_bytes()).collect()
    }

    #[test]
    fn first_bytes_tell() {
        for compression in ALL {
            for plain in ["", "Package: a\n"] {
                let packed = pack(compression, plain.as_bytes());
                assert_eq!(Compression::detect(&packed), compression);
                assert_eq!(Compression::detect(&packed[..1]), Compression::None);
            }
        }
        for plain in ["", "Package: a\n", "BZh91: 1\n", "\n", "Origin: Debian\n"] {
            assert_eq!(Compression::detect(plain.as_bytes()), Compression::None, "{plain}");
        }
    }

    #[test]
    fn what_was_packed_is_unpacked() {
        let sample = sample();
        for compression in ALL.into_iter().chain([Compression::None]) {
            for plain in [b"".as_slice(), b"Package: a\n", &sample] {
                let packed = pack(compression, plain);
                let size = plain.len() as u64;
                assert_eq!(unpack(compression, &packed, size).unwrap(), plain, "{compression:?}");
                let twice = [packed.as_slice(), &packed].concat();
                let got = unpack(compression, &twice, 2 * size).unwrap();
                assert_eq!(got, [plain, plain].concat(), "{compression:?} twice");
            }
        }
    }

    #[test]
    fn cut_streams_are_no_whole_ones() {
        let plain = sample();
        for compression in ALL {
            let packed = pack(compression, &plain);
            let cuts = [0, 1, 5, 20, packed.len() / 2, packed.len() - 1];
            let blocks = (1..8).map(|at| packed.len() * at / 8);
            for cut in cuts.into_iter().chain(blocks) {
                // gzip and bzip2 take nothing at all for no stream at all.
                let error = match unpack(compression, &packed[..cut], u64::MAX) {
                    Err(error) => error,
                    Ok(plain) if cut == 0 && plain.is_empty() => continue,
                    Ok(_) => panic!("{compression:?} cut at {cut}"),
                };
                assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{compression:?} {cut}");
            }
        }
    }

    #[test]
    fn an_lz4_frame_that_ends_after_a_block_is_cut() {
        let plain = sample();
        let packed = pack(Compression::Lz4, &plain);
        // Magic, descriptor and its checksum are 7 bytes; then blocks with their sizes before.
        let mut at = 7;
        while at + 8 < packed.len() {
            let bytes = packed[at..at + 4].try_into().unwrap();
            at += 4 + (u32::from_le_bytes(bytes) & 0x7fff_ffff) as usize;
            let error = unpack(Compression::Lz4, &packed[..at], u64::MAX).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{at}");
        }
        assert!(at > 7);
    }

    #[test]
    fn broken_streams_are_refused() {
        for compression in ALL {
            let mut packed = pack(compression, &sample());
            let middle = packed.len() / 2;
            for byte in &mut packed[middle..middle + 64] {
                *byte ^= 0x55;
            }
            assert!(unpack(compression, &packed, u64::MAX).is_err(), "{compression:?}");
            assert!(unpack(compression, b"Package: a\n", u64::MAX).is_err(), "{compression:?}");
        }
    }

    #[test]
    fn bombs_are_recognised() {
        let zeros = vec![0; 2 << 20];
        for compression in ALL.into_iter().chain([Compression::None]) {
            let packed = pack(compression, &zeros);
            let ratio = zeros.len() / packed.len();
            assert!(ratio > 100 || compression == Compression::None, "{compression:?} {ratio}");
            for plain_max in [0, 1 << 19, zeros.len() as u64 - 1] {
                let error = unpack(compression, &packed, plain_max).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::FileTooLarge, "{compression:?}");
            }
            assert!(unpack(compression, &packed, zeros.len() as u64).is_ok(), "{compression:?}");
        }
    }

    #[test]
    fn greedy_streams_get_no_memory() {
        // An xz stream with a dictionary of 1.5 GiB, made from one of 1 MiB.
        let mut options = liblzma::stream::LzmaOptions::new_preset(0).unwrap();
        options.dict_size(1 << 20);
        let mut filters = liblzma::stream::Filters::new();
        filters.lzma2(&options);
        let check = liblzma::stream::Check::Crc32;
        let stream = liblzma::stream::Stream::new_stream_encoder(&filters, check).unwrap();
        let mut encoder = liblzma::write::XzEncoder::new_stream(Vec::new(), stream);
        encoder.write_all(b"Package: a\n").unwrap();
        let mut packed = encoder.finish().unwrap();
        // The block header: size, flags, filter 0x21, its one property (xz format §5.3.1), then
        // padding and a CRC32 over what is before.
        assert_eq!(packed[14..16], [0x21, 1]);
        packed[16] = 37;
        let mut crc = flate2::Crc::new();
        crc.update(&packed[12..20]);
        packed[20..24].copy_from_slice(&crc.sum().to_le_bytes());
        let error = unpack(Compression::Xz, &packed, u64::MAX).unwrap_err();
        assert!(error.to_string().contains("memory"), "{error}");

        // A zstd frame with a window of 2 GiB (RFC 8878 §3.1.1.1.2), then an empty last block.
        let packed = [0x28, 0xb5, 0x2f, 0xfd, 0, 21 << 3, 1, 0, 0];
        let error = unpack(Compression::Zstd, &packed, u64::MAX).unwrap_err();
        assert!(error.to_string().contains("memory"), "{error}");
    }
}
