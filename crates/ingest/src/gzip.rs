//! Bodies that came compressed (RFC 9110, section 8.4.1.3): how large they may become is decided
//! while they grow.

use std::io::Read;

use bytes::{Bytes, BytesMut};
use flate2::read::MultiGzDecoder;

use crate::problem::Problem;

/// What is taken out at once.
const CHUNK_BYTES: usize = 64 * 1024;

/// What comes out of a body, at most so many bytes. `grow` hears of each part before it is kept.
pub(crate) fn decompress(
    body: &[u8],
    bytes_max: usize,
    mut grow: impl FnMut(usize) -> Result<(), Problem>,
) -> Result<Bytes, Problem> {
    let mut decoder = MultiGzDecoder::new(body);
    let mut whole = BytesMut::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let read = decoder.read(&mut chunk).map_err(|error| Problem::Syntax {
            format: "gzip",
            detail: error.to_string(),
        })?;
        if read == 0 {
            return Ok(whole.freeze());
        }
        if whole.len() + read > bytes_max {
            return Err(Problem::BodyTooLarge { bytes_max });
        }
        grow(read)?;
        whole.extend_from_slice(&chunk[..read]);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use proptest::prelude::*;

    use super::*;

    fn compressed(body: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(body).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn no_more_comes_out_than_allowed() {
        let bomb = compressed(&vec![0; 10 << 20]);
        let mut kept = 0;
        let cut = decompress(&bomb, 1 << 20, |bytes| {
            kept += bytes;
            Ok(())
        });
        assert!(matches!(cut, Err(Problem::BodyTooLarge { .. })), "{cut:?}");
        assert!(kept <= 1 << 20);
        let just = compressed(&[7; 1000]);
        assert!(decompress(&just, 1000, |_| Ok(())).is_ok());
        assert!(decompress(&just, 999, |_| Ok(())).is_err());
    }

    #[test]
    fn what_is_cut_short_or_followed_by_something_else_is_refused() {
        let whole = compressed(b"{}");
        for length in 0..whole.len() {
            assert!(
                decompress(&whole[..length], 99, |_| Ok(())).is_err(),
                "{length}"
            );
        }
        let followed = [&whole[..], b"more"].concat();
        assert!(decompress(&followed, 99, |_| Ok(())).is_err());
    }

    proptest! {
        #[test]
        fn what_was_compressed_comes_out(body in prop::collection::vec(any::<u8>(), 0..2000)) {
            let out = decompress(&compressed(&body), 2000, |_| Ok(())).unwrap();
            prop_assert_eq!(&out[..], &body[..]);
        }

        #[test]
        fn any_bytes_are_taken_or_refused(body in prop::collection::vec(any::<u8>(), 0..200)) {
            drop(decompress(&body, 1000, |_| Ok(())));
        }
    }
}
