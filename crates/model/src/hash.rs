//! A small hash that gives the same number in every process and release.
//!
//! FNV-1a over 64 bits, then the finalizer of MurmurHash3, without which inputs that differ only in
//! their last bytes would have close results. Not for untrusted tables, and no cryptography: it
//! spreads retries.

const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;

/// Hashes parts one after the other. Give parts of fixed length, or end them with a byte they
/// cannot have.
#[derive(Debug, Clone, Copy)]
pub struct StableHash(u64);

impl Default for StableHash {
    fn default() -> Self {
        Self(FNV_OFFSET)
    }
}

impl StableHash {
    /// Of nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// With these bytes after those before.
    #[must_use]
    pub fn with(mut self, bytes: &[u8]) -> Self {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(FNV_PRIME);
        }
        self
    }

    /// The number.
    #[must_use]
    pub fn finish(self) -> u64 {
        let mut hash = self.0;
        hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        hash ^ (hash >> 33)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_published_fnv_1a_before_the_finalizer() {
        assert_eq!(StableHash::new().with(b"").0, 0xcbf2_9ce4_8422_2325);
        assert_eq!(StableHash::new().with(b"a").0, 0xaf63_dc4c_8601_ec8c);
        assert_eq!(
            StableHash::new().with(b"foo").with(b"bar").0,
            0x8594_4171_f739_67e8
        );
    }

    #[test]
    fn spreads_neighbours_over_the_whole_range() {
        let mut buckets = [0_u32; 16];
        for number in 0_u32..16_000 {
            let hash = StableHash::new()
                .with(b"ep_1")
                .with(&number.to_be_bytes())
                .finish();
            buckets[usize::try_from(hash >> 60).unwrap()] += 1;
        }
        assert!(
            buckets.iter().all(|count| (850..1150).contains(count)),
            "{buckets:?}"
        );
    }
}
