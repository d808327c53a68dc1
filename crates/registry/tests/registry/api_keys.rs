//! Keys for the API, at several processes.

use postrider_model::api_key::{ApiKey, Holder, Scope};
use postrider_model::ids::ApiKeyId;
use postrider_registry::WriteError;

use crate::world::{LONG, World, tenant, tenant_id};

fn key_id(id: &str) -> ApiKeyId {
    ApiKeyId::try_new(id).unwrap()
}

fn api_key(id: &str, tenant: Option<&str>) -> ApiKey {
    let mut hash = [0; 32];
    hash[..id.len()].copy_from_slice(id.as_bytes());
    ApiKey {
        id: key_id(id),
        name: id.to_owned(),
        holder: match tenant {
            None => Holder::Operator,
            Some(tenant) => Holder::Tenant {
                tenant: tenant_id(tenant),
                scopes: [Scope::Read].into_iter().collect(),
            },
        },
        hash,
        prefix: "prt_".to_owned(),
        created_at_ms: 1,
        expires_at_ms: None,
        last_used_at_ms: None,
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_is_found_by_its_hash_everywhere_until_it_is_revoked_for_ever() {
    let world = World::new(1).await;
    let (a, b) = (world.join("a").await, world.join("b").await);
    a.put_tenant(tenant("acme")).await.unwrap();
    let acme = tenant_id("acme");
    let key = api_key("key_a", Some("acme"));
    a.create_api_key(key.clone()).await.unwrap();
    assert!(b.refresh(LONG).await);
    assert_eq!(*b.api_key_with_hash(&key.hash).unwrap(), key);
    assert_eq!(b.api_keys(Some(&acme), None, 9).len(), 1);
    assert!(b.api_key(None, &key.id).is_none(), "it is no operator's");

    let not_its = b.revoke_api_key(None, &key.id).await;
    assert_eq!(not_its, Err(WriteError::NotFound));
    b.revoke_api_key(Some(&acme), &key.id).await.unwrap();
    assert!(a.refresh(LONG).await);
    assert!(a.api_key_with_hash(&key.hash).is_none());
    assert!(a.api_keys(Some(&acme), None, 9).is_empty());
    let again = a.create_api_key(key).await;
    assert_eq!(again.unwrap_err(), WriteError::Deleted);
    let unknown = a.create_api_key(api_key("key_b", Some("nobody"))).await;
    assert_eq!(unknown.unwrap_err(), WriteError::TenantUnknown);
}

#[tokio::test(start_paused = true)]
async fn a_use_that_is_noted_never_brings_back_what_was_revoked() {
    for seed in 0..20 {
        let world = World::new(seed).await;
        let (a, b) = (world.join("a").await, world.join("b").await);
        let key = api_key("key_a", None);
        a.create_api_key(key.clone()).await.unwrap();
        assert!(b.refresh(LONG).await);
        let (noted, revoked) = tokio::join!(
            b.note_api_key_use(&key.id, 5),
            a.revoke_api_key(None, &key.id)
        );
        assert_eq!((noted, revoked), (Ok(()), Ok(())));
        for process in [&a, &b] {
            assert!(process.refresh(LONG).await);
            assert!(
                process.api_key_with_hash(&key.hash).is_none(),
                "seed {seed}"
            );
        }
        b.note_api_key_use(&key.id, 9).await.unwrap();
        assert!(a.refresh(LONG).await);
        assert!(a.api_key_with_hash(&key.hash).is_none(), "seed {seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_last_use_only_moves_on() {
    let world = World::new(1).await;
    let a = world.join("a").await;
    a.create_api_key(api_key("key_a", None)).await.unwrap();
    for (used_at_ms, last) in [(5, 5), (4, 5), (6, 6)] {
        a.note_api_key_use(&key_id("key_a"), used_at_ms)
            .await
            .unwrap();
        let key = a.api_key(None, &key_id("key_a")).unwrap();
        assert_eq!(key.value.last_used_at_ms, Some(last));
    }
}
