use postrider_model::endpoint::Endpoint;
use postrider_model::signature::SigningSecret;
use postrider_registry::{Keyring, OpenError};

use crate::world::{TOPIC, World, endpoint, endpoint_id, found, keyring, tenant};

const NOW_MS: i64 = 1_000;
const RAW: [u8; 32] = *b"correct horse battery staple 32b";

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack
        .windows(needle.len())
        .any(|window| window == needle)
}

#[tokio::test(start_paused = true)]
async fn keeps_secrets_out_of_the_topic_and_opens_them_in_every_process() {
    let world = World::new(1).await;
    let (a, b) = (world.join("a").await, world.join("b").await);
    a.put_tenant(tenant("acme")).await.unwrap();
    let id = endpoint_id("ep_a");
    let secret = SigningSecret::generate(&RAW);
    let secrets = vec![a.seal(&id, &secret)];
    a.create_endpoint(Endpoint {
        secrets,
        ..endpoint("ep_a", "acme")
    })
    .await
    .unwrap();

    let revealed = secret.reveal();
    let encoded = revealed.strip_prefix("whsec_").unwrap();
    let records = world.log.snapshot(TOPIC);
    assert!(!records.is_empty());
    for record in records {
        let bytes = [
            record.key.as_ref(),
            record.value.as_deref().unwrap_or_default(),
        ]
        .concat();
        for plain in [revealed.as_bytes(), encoded.as_bytes(), RAW.as_slice()] {
            assert!(
                !contains(&bytes, plain),
                "found in record {}",
                record.offset
            );
        }
    }
    b.refresh(crate::world::LONG).await;
    // The second time from memory.
    for _ in 0..2 {
        let opened = b.signing_secrets(&found(&b, "ep_a").value, NOW_MS).unwrap();
        assert_eq!(opened.len(), 1);
        assert_eq!(opened[0].reveal(), revealed);
    }
    let stranger = world
        .join_with(world.log.process("stranger"), keyring(2))
        .await;
    let refused = stranger.signing_secrets(&found(&stranger, "ep_a").value, NOW_MS);
    assert!(matches!(refused, Err(OpenError::KeyMissing(_))));
}

#[tokio::test(start_paused = true)]
async fn refuses_a_secret_that_was_moved_to_another_endpoint() {
    let world = World::new(1).await;
    let a = world.join("a").await;
    let secrets = vec![a.seal(&endpoint_id("ep_a"), &SigningSecret::generate(&RAW))];
    let thief = Endpoint {
        secrets,
        ..endpoint("ep_b", "acme")
    };
    assert_eq!(
        a.signing_secrets(&thief, NOW_MS).err(),
        Some(OpenError::Forged)
    );
}

#[tokio::test(start_paused = true)]
async fn signs_with_all_that_have_not_expired_newest_first() {
    let world = World::new(1).await;
    let keyring = Keyring::from_bytes([2; 32], vec![[1; 32]]);
    let rotated = world.join_with(world.log.process("a"), keyring).await;
    let old = world.join("old").await;
    let id = endpoint_id("ep_a");
    let secret = |byte| SigningSecret::generate(&[byte; 32]);
    let mut retiring = old.seal(&id, &secret(2));
    retiring.expires_at_ms = Some(NOW_MS + 1);
    // Sealed under a key that is gone: it signs no more, so nothing depends on it.
    let mut expired = postrider_model::endpoint::SealedSecret {
        key_id: "gone".into(),
        sealed: vec![],
        expires_at_ms: Some(NOW_MS),
    };
    let newest = rotated.seal(&id, &secret(1));
    let secrets = vec![newest, retiring, expired.clone()];
    let endpoint = Endpoint {
        secrets,
        ..endpoint("ep_a", "acme")
    };
    let revealed = |now_ms| -> Vec<String> {
        let opened = rotated.signing_secrets(&endpoint, now_ms).unwrap();
        opened.iter().map(SigningSecret::reveal).collect()
    };
    assert_eq!(revealed(NOW_MS), [secret(1).reveal(), secret(2).reveal()]);
    assert_eq!(revealed(NOW_MS + 1), [secret(1).reveal()]);
    assert_eq!(revealed(NOW_MS), [secret(1).reveal(), secret(2).reveal()]);
    expired.expires_at_ms = None;
    let broken = Endpoint {
        secrets: vec![expired],
        ..endpoint.clone()
    };
    let missing = OpenError::KeyMissing("gone".into());
    assert_eq!(
        rotated.signing_secrets(&broken, NOW_MS).err(),
        Some(missing)
    );
}
