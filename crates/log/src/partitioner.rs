//! Which partition a key belongs to: the rule of Kafka's Java clients, so that producers in any
//! language agree.

use crate::port::Partition;

/// The partition of a key, `(murmur2(key) & 0x7fffffff) % partitions`.
///
/// # Panics
/// If `partitions` is not positive.
pub fn partition_for(key: &[u8], partitions: i32) -> Partition {
    assert!(partitions > 0, "a topic has at least one partition");
    let positive = i32::try_from(murmur2(key) & 0x7fff_ffff).expect("the sign bit is masked");
    positive % partitions
}

/// Murmur2 with the seed that Kafka chose.
fn murmur2(data: &[u8]) -> u32 {
    const SEED: u32 = 0x9747_b28c;
    const MULTIPLIER: u32 = 0x5bd1_e995;
    const SHIFT: u32 = 24;

    // Kafka's length is a Java int; a key never comes near its limit.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the hash is defined on 32 bits of the length"
    )]
    let mut hash = SEED ^ (data.len() as u32);
    let mut words = data.chunks_exact(4);
    for word in &mut words {
        let mut mixed = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
        mixed = mixed.wrapping_mul(MULTIPLIER);
        mixed ^= mixed >> SHIFT;
        hash = hash.wrapping_mul(MULTIPLIER) ^ mixed.wrapping_mul(MULTIPLIER);
    }
    let rest = words.remainder();
    if !rest.is_empty() {
        for (index, byte) in rest.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * index);
        }
        hash = hash.wrapping_mul(MULTIPLIER);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(MULTIPLIER);
    hash ^ (hash >> 15)
}

#[cfg(test)]
mod tests {
    use super::{murmur2, partition_for};

    /// The vectors of Kafka's own unit test of its Java client.
    const JAVA: [(&str, i32); 6] = [
        ("21", -973_932_308),
        ("foobar", -790_332_482),
        ("a-little-bit-long-string", -985_981_536),
        ("a-little-bit-longer-string", -1_486_304_829),
        (
            "lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8",
            -58_897_971,
        ),
        ("abc", 479_470_107),
    ];

    #[test]
    fn hashes_as_the_java_client() {
        for (key, expected) in JAVA {
            assert_eq!(murmur2(key.as_bytes()).cast_signed(), expected, "{key}");
        }
    }

    #[test]
    fn places_negative_hashes_by_their_low_bits() {
        for (key, hash) in JAVA {
            assert_eq!(
                partition_for(key.as_bytes(), 12),
                (hash & 0x7fff_ffff) % 12,
                "{key}"
            );
        }
    }
}
