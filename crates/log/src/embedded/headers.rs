//! How a record's headers are kept in one column.

use bytes::Bytes;

/// Each name and value behind its length.
pub(super) fn encode_headers(headers: &[(String, Bytes)]) -> Vec<u8> {
    let mut encoded = Vec::new();
    for (name, value) in headers {
        for part in [name.as_bytes(), value] {
            let length = u32::try_from(part.len()).expect("a record is smaller than 4 GiB");
            encoded.extend_from_slice(&length.to_le_bytes());
            encoded.extend_from_slice(part);
        }
    }
    encoded
}

/// What [`encode_headers`] made; `None` if it is something else.
pub(super) fn decode_headers(mut encoded: &[u8]) -> Option<Vec<(String, Bytes)>> {
    let mut headers = Vec::new();
    while !encoded.is_empty() {
        let name = take_part(&mut encoded)?;
        let value = take_part(&mut encoded)?;
        headers.push((
            String::from_utf8(name.to_vec()).ok()?,
            Bytes::copy_from_slice(value),
        ));
    }
    Some(headers)
}

fn take_part<'a>(encoded: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, rest) = encoded.split_first_chunk::<4>()?;
    let (part, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
    *encoded = rest;
    Some(part)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Bytes, decode_headers, encode_headers};

    proptest! {
        #[test]
        fn reads_back_what_it_wrote(
            headers in prop::collection::vec((".{0,9}", prop::collection::vec(any::<u8>(), 0..9)), 0..5),
        ) {
            let headers: Vec<(String, Bytes)> =
                headers.into_iter().map(|(name, value)| (name, Bytes::from(value))).collect();
            prop_assert_eq!(decode_headers(&encode_headers(&headers)), Some(headers));
        }

        #[test]
        fn survives_what_it_did_not_write(encoded in prop::collection::vec(any::<u8>(), 0..40)) {
            decode_headers(&encoded);
        }
    }
}
