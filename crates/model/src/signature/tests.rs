use proptest::prelude::*;

use super::*;

const HMAC_SECRET: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
const HMAC_ID: &str = "msg_27UH4WbU6Z5A5EzD8u03UvzRbpk";
const HMAC_TIME_S: i64 = 1_649_367_553;
const HMAC_BODY: &[u8] = br#"{"email":"test@example.com","username":"test_user"}"#;
const HMAC_SIGNATURE: &str = "v1,tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw=";

const ED25519_SECRET: &str =
    "whsk_6Xb/dCcHpPea21PS1N9VY/NZW723CEc77N4rJCubMbfVKIDij2HKpMKkioLlX0dRqSKJp4AJ6p9lMicMFs6Kvg==";
const ED25519_PUBLIC: &str = "whpk_1SiA4o9hyqTCpIqC5V9HUakiiaeACeqfZTInDBbOir4=";
const ED25519_ID: &str = "msg_p5jXN8AQM9LWM0D4loKWxJek";
const ED25519_TIME_S: i64 = 1_614_265_330;
const ED25519_BODY: &[u8] = br#"{"test": 2432232314}"#;
const ED25519_SIGNATURE: &str =
    "v1a,hnO3f9T8Ytu9HwrXslvumlUpqtNVqkhqw/enGzPCXe5BdqzCInXqYXFymVJaA7AZdpXwVLPo3mNl8EM+m7TBAg==";

fn secret(text: &str) -> SigningSecret {
    SigningSecret::parse(text).unwrap()
}

/// Verifies the vector of the shared secret with one thing changed.
fn verify_hmac(id: &str, time: &str, header: &str, now_s: i64) -> Result<(), VerifyError> {
    verify(&secret(HMAC_SECRET), id, time, header, HMAC_BODY, now_s)
}

#[test]
fn signs_with_a_shared_secret_as_the_reference_does() {
    let header = sign(&[secret(HMAC_SECRET)], HMAC_ID, HMAC_TIME_S, HMAC_BODY);
    assert_eq!(header, HMAC_SIGNATURE);
    let time = HMAC_TIME_S.to_string();
    assert_eq!(
        verify_hmac(HMAC_ID, &time, HMAC_SIGNATURE, HMAC_TIME_S),
        Ok(())
    );
}

#[test]
fn signs_with_a_private_key_as_the_reference_does() {
    let secret = secret(ED25519_SECRET);
    let header = sign(
        std::slice::from_ref(&secret),
        ED25519_ID,
        ED25519_TIME_S,
        ED25519_BODY,
    );
    assert_eq!(header, ED25519_SIGNATURE);
    assert_eq!(secret.public_key().as_deref(), Some(ED25519_PUBLIC));
    let time = ED25519_TIME_S.to_string();
    let check = |header: &str, body: &[u8]| {
        verify(&secret, ED25519_ID, &time, header, body, ED25519_TIME_S)
    };
    assert_eq!(check(ED25519_SIGNATURE, ED25519_BODY), Ok(()));
    assert_eq!(check(ED25519_SIGNATURE, b"{}"), Err(VerifyError::NoMatch));
    assert_eq!(
        check(&ED25519_SIGNATURE.replace("v1a", "v1"), ED25519_BODY),
        Err(VerifyError::NoMatch)
    );
}

#[test]
fn a_seed_alone_is_the_same_private_key() {
    let (seed, _) = BASE64
        .decode(&ED25519_SECRET[ED25519_PREFIX.len()..])
        .map(|bytes| (BASE64.encode(&bytes[..32]), ()))
        .unwrap();
    assert_eq!(secret(&format!("whsk_{seed}")).reveal(), ED25519_SECRET);
}

#[test]
fn signs_with_every_secret_so_that_a_receiver_can_change_over() {
    let secrets = [
        secret(HMAC_SECRET),
        secret(ED25519_SECRET),
        SigningSecret::generate(&[7; 32]),
    ];
    let header = sign(&secrets, HMAC_ID, HMAC_TIME_S, HMAC_BODY);
    assert_eq!(header.split(' ').count(), 3);
    assert!(header.starts_with(HMAC_SIGNATURE));
    for secret in &secrets {
        let time = HMAC_TIME_S.to_string();
        assert_eq!(
            verify(secret, HMAC_ID, &time, &header, HMAC_BODY, HMAC_TIME_S),
            Ok(())
        );
    }
    assert_eq!(sign(&[], HMAC_ID, HMAC_TIME_S, HMAC_BODY), "");
}

#[test]
fn missing_headers_are_refused() {
    let time = HMAC_TIME_S.to_string();
    let missing = |name| Err(VerifyError::Missing(name));
    let check = |id, time, header| verify_hmac(id, time, header, HMAC_TIME_S);
    assert_eq!(check("", &time, HMAC_SIGNATURE), missing("webhook-id"));
    assert_eq!(
        check(HMAC_ID, "", HMAC_SIGNATURE),
        missing("webhook-timestamp")
    );
    assert_eq!(check(HMAC_ID, &time, ""), missing("webhook-signature"));
}

#[test]
fn timestamps_are_numbers_within_five_minutes() {
    let time = HMAC_TIME_S.to_string();
    let at = |now_s| verify_hmac(HMAC_ID, &time, HMAC_SIGNATURE, now_s);
    assert_eq!(at(HMAC_TIME_S + 300), Ok(()));
    assert_eq!(at(HMAC_TIME_S - 300), Ok(()));
    assert_eq!(at(HMAC_TIME_S + 301), Err(VerifyError::TooOld));
    assert_eq!(at(HMAC_TIME_S - 301), Err(VerifyError::TooNew));
    for time in [
        "now",
        "1649367553.0",
        " 1649367553",
        "99999999999999999999",
        "-",
    ] {
        let verified = verify_hmac(HMAC_ID, time, HMAC_SIGNATURE, HMAC_TIME_S);
        assert_eq!(verified, Err(VerifyError::Timestamp), "{time:?}");
    }
}

#[test]
fn only_a_whole_signature_of_a_known_version_counts() {
    let time = HMAC_TIME_S.to_string();
    let check = |header: &str| verify_hmac(HMAC_ID, &time, header, HMAC_TIME_S);
    let signature = HMAC_SIGNATURE.strip_prefix("v1,").unwrap();
    let truncated = &HMAC_SIGNATURE[..HMAC_SIGNATURE.len() - 8];
    let other_version = format!("v2,{signature}");
    for header in [
        "v1,",
        "v1",
        ",",
        " ",
        signature,
        truncated,
        &other_version,
        "v1,AAAA",
        "v1,!",
    ] {
        assert_eq!(check(header), Err(VerifyError::NoMatch), "{header:?}");
    }
    let wrong = sign(
        &[SigningSecret::generate(&[1; 32])],
        HMAC_ID,
        HMAC_TIME_S,
        HMAC_BODY,
    );
    assert_eq!(check(&wrong), Err(VerifyError::NoMatch));
    let several = format!("{wrong} {other_version} v1, {wrong} {HMAC_SIGNATURE}");
    assert_eq!(check(&several), Ok(()));
}

#[test]
fn a_changed_id_body_or_time_does_not_verify() {
    let time = HMAC_TIME_S.to_string();
    let other_time = (HMAC_TIME_S + 1).to_string();
    let no_match = Err(VerifyError::NoMatch);
    assert_eq!(
        verify_hmac("msg_other", &time, HMAC_SIGNATURE, HMAC_TIME_S),
        no_match
    );
    assert_eq!(
        verify_hmac(HMAC_ID, &other_time, HMAC_SIGNATURE, HMAC_TIME_S),
        no_match
    );
    let secret = secret(HMAC_SECRET);
    assert_eq!(
        verify(&secret, HMAC_ID, &time, HMAC_SIGNATURE, b"{}", HMAC_TIME_S),
        no_match
    );
}

#[test]
fn texts_that_are_no_secret_are_refused() {
    let refused = |text: &str| SigningSecret::parse(text).unwrap_err();
    assert_eq!(refused(""), InvalidSecret::Prefix);
    assert_eq!(refused(&HMAC_SECRET[6..]), InvalidSecret::Prefix);
    assert_eq!(refused(ED25519_PUBLIC), InvalidSecret::Prefix);
    assert_eq!(refused("whsec_"), InvalidSecret::HmacLength(0));
    assert_eq!(refused("whsec_!"), InvalidSecret::Base64);
    assert_eq!(
        refused(&format!("whsec_{}", BASE64.encode([0; 23]))),
        InvalidSecret::HmacLength(23)
    );
    assert_eq!(
        refused(&format!("whsec_{}", BASE64.encode([0; 65]))),
        InvalidSecret::HmacLength(65)
    );
    assert_eq!(refused("whsk_"), InvalidSecret::Ed25519Length(0));
    assert_eq!(
        refused(&format!("whsk_{}", BASE64.encode([0; 33]))),
        InvalidSecret::Ed25519Length(33)
    );
    assert_eq!(
        refused(&format!("whsk_{}", BASE64.encode([0; 64]))),
        InvalidSecret::Ed25519Mismatch
    );
}

#[test]
fn debug_output_hides_the_secret() {
    for text in [HMAC_SECRET, ED25519_SECRET] {
        let debug = format!("{:?}", secret(text));
        assert!(debug.contains("hidden") && debug.len() < 40, "{debug}");
    }
}

proptest! {
    #[test]
    fn secrets_survive_being_shown_with_or_without_padding(
        bytes in prop::collection::vec(any::<u8>(), 24..=64),
    ) {
        let text = format!("whsec_{}", BASE64.encode(&bytes));
        prop_assert_eq!(&secret(&text).reveal(), &text);
        prop_assert_eq!(secret(text.trim_end_matches('=')).reveal(), text);
    }

    #[test]
    fn generated_secrets_are_their_randomness(random: [u8; 32]) {
        let generated = SigningSecret::generate(&random);
        prop_assert_eq!(generated.reveal(), format!("whsec_{}", BASE64.encode(random)));
        prop_assert_eq!(generated.public_key(), None);
    }

    #[test]
    fn what_is_signed_verifies_whatever_the_body(random: [u8; 32], body: Vec<u8>) {
        let seed = format!("whsk_{}", BASE64.encode(random));
        for secret in [SigningSecret::generate(&random), secret(&seed)] {
            let header = sign(std::slice::from_ref(&secret), "evt_1", 1_000, &body);
            prop_assert_eq!(verify(&secret, "evt_1", "1000", &header, &body, 1_200), Ok(()));
            let mut other = body.clone();
            other.push(0);
            let verified = verify(&secret, "evt_1", "1000", &header, &other, 1_200);
            prop_assert_eq!(verified, Err(VerifyError::NoMatch));
        }
    }

    #[test]
    fn hostile_headers_are_refused(time in "\\PC{0,40}", header in "\\PC{0,200}") {
        prop_assert!(verify_hmac(HMAC_ID, &time, &header, HMAC_TIME_S).is_err());
    }
}
