//! Which partition a key goes to: what Kafka's Java clients do, so that every client agrees.

const SEED: u32 = 0x9747_b28c;
const MULTIPLIER: u32 = 0x5bd1_e995;
const SHIFT: u32 = 24;

/// MurmurHash2 with the seed of Kafka's Java client.
pub fn murmur2(bytes: &[u8]) -> u32 {
    // Keys are short; the hash itself is defined over the low 32 bits of the length.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the low 32 bits are what is meant"
    )]
    let length = bytes.len() as u32;
    let mut hash = SEED ^ length;
    let mut chunks = bytes.chunks_exact(4);
    for chunk in &mut chunks {
        let word = chunk
            .iter()
            .rev()
            .fold(0, |word, byte| (word << 8) | u32::from(*byte));
        hash = hash.wrapping_mul(MULTIPLIER) ^ mixed(word);
    }
    let rest = chunks.remainder();
    if !rest.is_empty() {
        let word = rest
            .iter()
            .rev()
            .fold(0, |word, byte| (word << 8) | u32::from(*byte));
        hash = (hash ^ word).wrapping_mul(MULTIPLIER);
    }
    hash = (hash ^ (hash >> 13)).wrapping_mul(MULTIPLIER);
    hash ^ (hash >> 15)
}

fn mixed(word: u32) -> u32 {
    let word = word.wrapping_mul(MULTIPLIER);
    (word ^ (word >> SHIFT)).wrapping_mul(MULTIPLIER)
}

/// The partition of a key in a topic of so many partitions (at least one).
pub fn partition_for(key: &[u8], partitions: i32) -> i32 {
    let positive = i32::try_from(murmur2(key) & 0x7fff_ffff).unwrap_or(i32::MAX);
    positive % partitions.max(1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn agrees_with_the_vectors_of_the_java_client() {
        let vectors: [(&[u8], i32); 6] = [
            (b"21", -973_932_308),
            (b"foobar", -790_332_482),
            (b"a-little-bit-long-string", -985_981_536),
            (b"a-little-bit-longer-string", -1_486_304_829),
            (
                b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8",
                -58_897_971,
            ),
            (b"abc", 479_470_107),
        ];
        for (key, hash) in vectors {
            assert_eq!(murmur2(key).cast_signed(), hash, "{key:?}");
        }
    }

    proptest! {
        #[test]
        fn every_key_has_a_partition(key: Vec<u8>, partitions in 1..1000_i32) {
            let partition = partition_for(&key, partitions);
            prop_assert!((0..partitions).contains(&partition));
        }
    }
}
