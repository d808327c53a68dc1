//! Bodies that came compressed (RFC 9110, section 8.4.1.3): how large they may become is decided
//! while they grow.

use std::io::Read;

use bytes::{Bytes, BytesMut};
use flate2::bufread::GzDecoder;
use tokio::task::yield_now;

use crate::problem::Problem;

/// What is taken out at once, before others have their turn.
const CHUNK_BYTES: usize = 64 * 1024;

/// What comes out of a body, at most so many bytes. `grow` hears of each part before it is kept.
pub(crate) async fn decompress(
    body: &[u8],
    bytes_max: usize,
    mut grow: impl FnMut(usize) -> Result<(), Problem>,
) -> Result<Bytes, Problem> {
    let broken = |detail: String| Problem::Syntax {
        format: "gzip",
        detail,
    };
    let mut decoder = GzDecoder::new(body);
    let mut whole = BytesMut::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let read = decoder.read(&mut chunk);
        let read = read.map_err(|error| broken(error.to_string()))?;
        if read == 0 {
            break;
        }
        if whole.len() + read > bytes_max {
            return Err(Problem::BodyTooLarge { bytes_max });
        }
        grow(read)?;
        whole.extend_from_slice(&chunk[..read]);
        yield_now().await;
    }
    // Members of which nothing comes out would take time without end.
    if !decoder.get_ref().is_empty() {
        return Err(broken("something follows the first member".to_owned()));
    }
    Ok(whole.freeze())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use futures_util::future::FutureExt;
    use proptest::prelude::*;

    use super::*;

    fn compressed(body: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(body).unwrap();
        encoder.finish().unwrap()
    }

    async fn out_of(body: &[u8], bytes_max: usize) -> Result<Bytes, Problem> {
        decompress(body, bytes_max, |_| Ok(())).await
    }

    #[tokio::test]
    async fn no_more_comes_out_than_allowed() {
        let bomb = compressed(&vec![0; 10 << 20]);
        let mut kept = 0;
        let grow = |bytes| {
            kept += bytes;
            Ok(())
        };
        let cut = decompress(&bomb, 1 << 20, grow).await;
        assert!(matches!(cut, Err(Problem::BodyTooLarge { .. })), "{cut:?}");
        assert!(kept <= 1 << 20);
        let just = compressed(&[7; 1000]);
        assert!(out_of(&just, 1000).await.is_ok());
        assert!(out_of(&just, 999).await.is_err());
    }

    #[tokio::test]
    async fn what_is_cut_short_or_followed_by_something_else_is_refused() {
        let whole = compressed(b"{}");
        for length in 0..whole.len() {
            assert!(out_of(&whole[..length], 99).await.is_err(), "{length}");
        }
        for more in [b"more", &whole[..]] {
            let followed = [&whole[..], more].concat();
            assert!(out_of(&followed, 99).await.is_err());
        }
    }

    proptest! {
        #[test]
        fn what_was_compressed_comes_out(body in prop::collection::vec(any::<u8>(), 0..2000)) {
            let body = compressed(&body);
            let mut out = Box::pin(out_of(&body, 2000));
            let whole = loop {
                if let Some(whole) = (&mut out).now_or_never() {
                    break whole.unwrap();
                }
            };
            prop_assert_eq!(compressed(&whole), body.clone());
        }

        #[test]
        fn any_bytes_are_taken_or_refused(body in prop::collection::vec(any::<u8>(), 0..200)) {
            let out = Box::pin(out_of(&body, 1000));
            drop(out.now_or_never());
        }
    }
}
