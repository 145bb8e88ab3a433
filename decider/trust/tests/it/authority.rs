//! CAs and leafs: what is in them, who verifies them, and what is refused.

use std::time::{Duration, SystemTime};

use infer_trust::{Authority, CA_LIFETIME, CLOCK_SKEW, Certificates, Error, LEAF_LIFETIME};
use proptest::prelude::*;
use x509_parser::{prelude::FromDer, x509::X509Version};

use crate::verify::{DAY, chain, start, verify};

const SERVICE: &str = "infer-decider.infer-system.svc";

fn names() -> Vec<String> {
    [SERVICE, "localhost", "127.0.0.1", "fd00::1"]
        .map(str::to_owned)
        .to_vec()
}

#[test]
fn a_leaf_is_what_it_should_be() {
    let now = start() + Duration::from_millis(700);
    let authority = Authority::generate(now).unwrap();
    let leaf = authority.issue(&names(), now).unwrap();
    let der = chain(&leaf.cert_pem);
    assert_eq!(der.len(), 1);
    let (_, parsed) = x509_parser::certificate::X509Certificate::from_der(&der[0]).unwrap();
    assert_eq!(parsed.version(), X509Version::V3);
    assert!(!parsed.is_ca());
    let usage = parsed.extended_key_usage().unwrap().unwrap();
    assert!(usage.value.server_auth && !usage.value.client_auth);
    let not_before = start() - CLOCK_SKEW;
    assert_eq!(leaf.not_before, not_before);
    assert_eq!(leaf.not_after, start() + LEAF_LIFETIME);
    let seconds = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() as i64;
    assert_eq!(parsed.validity().not_before.timestamp(), seconds(not_before));
    assert_eq!(parsed.validity().not_after.timestamp(), seconds(leaf.not_after));
    // id-ecPublicKey; the curve is a parameter of 256 bits.
    assert_eq!(
        parsed.public_key().algorithm.algorithm.to_id_string(),
        "1.2.840.10045.2.1"
    );
    assert_eq!(parsed.public_key().parsed().unwrap().key_size(), 256);

    for name in names() {
        verify(authority.bundle(), &leaf, &name, now).unwrap();
    }
    // A client whose clock is behind by less than the skew.
    verify(authority.bundle(), &leaf, SERVICE, now - CLOCK_SKEW + DAY / 86_400).unwrap();
    for (name, at, expected) in [
        ("infer-decider.other.svc", now, "NotValidForName"),
        ("10.0.0.1", now, "NotValidForName"),
        (SERVICE, now - CLOCK_SKEW - DAY, "NotValidYet"),
        (SERVICE, now + LEAF_LIFETIME + DAY, "Expired"),
    ] {
        let error = verify(authority.bundle(), &leaf, name, at).unwrap_err();
        assert!(error.contains(expected), "{name}: {error}");
    }
    let stranger = Authority::generate(now).unwrap();
    let error = verify(stranger.bundle(), &leaf, SERVICE, now).unwrap_err();
    assert!(error.contains("UnknownIssuer"), "{error}");
}

#[test]
fn keys_are_in_no_debug_output() {
    let authority = Authority::generate(start()).unwrap();
    let leaf = authority.issue(&names(), start()).unwrap();
    let certificates = Certificates::issue(authority.clone(), names(), start()).unwrap();
    let texts = [
        format!("{authority:?}"),
        format!("{:?}", authority.to_pem()),
        format!("{leaf:?}"),
        format!("{certificates:?}"),
    ];
    for text in texts {
        assert!(!text.contains("PRIVATE"), "{text}");
    }
}

#[test]
fn an_authority_is_read_back_as_it_was() {
    let first = Authority::generate(start()).unwrap();
    let second = first.rotate(start() + 100 * DAY).unwrap();
    for authority in [first, second] {
        let pem = authority.to_pem();
        let again = Authority::from_pem(&pem.certificates, &pem.key).unwrap();
        assert!(again.to_pem() == pem);
        assert_eq!(again.bundle(), authority.bundle());
        assert_eq!(again.not_after(), authority.not_after());
        let leaf = again.issue(&names(), start() + 200 * DAY).unwrap();
        verify(authority.bundle(), &leaf, SERVICE, start() + 200 * DAY).unwrap();
    }
}

#[test]
fn the_key_says_which_certificate_is_the_authority() {
    let first = Authority::generate(start()).unwrap();
    let second = first.rotate(start() + DAY).unwrap();
    let pem = second.to_pem();
    // Old ones first: the order of a bundle put together by hand.
    let reversed: String = chain_pem(&pem.certificates).into_iter().rev().collect();
    let again = Authority::from_pem(&reversed, &pem.key).unwrap();
    assert!(again.to_pem().certificates.starts_with(&chain_pem(second.bundle())[0]));
    let old = Authority::from_pem(&pem.certificates, &first.to_pem().key).unwrap();
    assert!(old.bundle().starts_with(&chain_pem(first.bundle())[0]));
}

fn chain_pem(pem: &str) -> Vec<String> {
    pem.split_inclusive("-----END CERTIFICATE-----\n")
        .map(str::to_owned)
        .collect()
}

#[test]
fn what_cannot_be_an_authority_is_refused_with_a_reason() {
    let authority = Authority::generate(start()).unwrap();
    let pem = authority.to_pem();
    let stranger = Authority::generate(start()).unwrap().to_pem();
    let leaf = authority.issue(&names(), start()).unwrap();
    for (certificates, key, expected) in [
        ("", &pem.key, "there is no certificate in it"),
        ("garbage", &pem.key, "-----BEGIN CERTIFICATE-----"),
        (
            "-----BEGIN CERTIFICATE-----\nZ2FyYmFnZQ==\n-----END CERTIFICATE-----\n",
            &pem.key,
            "certificate 1 of the certificate authority cannot be read",
        ),
        (
            &pem.certificates,
            &stranger.key,
            "belongs to none of the 1 certificates",
        ),
        (&pem.certificates, &String::new(), "-----BEGIN PRIVATE KEY-----"),
        (&leaf.cert_pem, &leaf.key_pem, "no certificate authority"),
    ] {
        let error = Authority::from_pem(certificates, key).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn names_that_cannot_stand_in_a_certificate_are_named() {
    let authority = Authority::generate(start()).unwrap();
    for name in [
        "",
        "two words",
        "https://decider",
        "decider:9400",
        "ümlaut",
        "a..b",
        "127.0.0.256.x y",
    ] {
        let error = authority
            .issue(&[SERVICE.to_owned(), name.to_owned()], start())
            .unwrap_err();
        assert!(matches!(&error, Error::Name(wrong) if wrong == name), "{error}");
    }
    assert!(matches!(authority.issue(&[], start()), Err(Error::NoNames)));
    // Said twice is as good as once.
    let twice = authority
        .issue(&[SERVICE.to_owned(), SERVICE.to_owned()], start())
        .unwrap();
    verify(authority.bundle(), &twice, SERVICE, start()).unwrap();
}

#[test]
fn a_leaf_never_outlives_its_authority_and_an_expired_one_signs_nothing() {
    let authority = Authority::generate(start()).unwrap();
    let late = start() + CA_LIFETIME - 10 * DAY;
    let leaf = authority.issue(&names(), late).unwrap();
    assert_eq!(leaf.not_after, authority.not_after());
    verify(authority.bundle(), &leaf, SERVICE, late).unwrap();
    let error = authority.issue(&names(), start() + CA_LIFETIME + DAY).unwrap_err();
    assert!(matches!(error, Error::NotValidNow { .. }), "{error}");
    let error = authority.issue(&names(), start() - DAY).unwrap_err();
    assert!(matches!(error, Error::NotValidNow { .. }), "{error}");
    // An expired one still has a successor; nothing links it to the old one.
    let next = authority.rotate(start() + CA_LIFETIME + DAY).unwrap();
    assert_eq!(chain(next.bundle()).len(), 1);
}

#[test]
fn renewal_is_due_at_two_thirds() {
    let authority = Authority::generate(start()).unwrap();
    assert!(!authority.is_rotation_due(start() + CA_LIFETIME / 3));
    assert!(authority.is_rotation_due(start() + CA_LIFETIME / 3 * 2));
    let certificates = Certificates::issue(authority.clone(), names(), start()).unwrap();
    assert_eq!(certificates.not_after(), start() + LEAF_LIFETIME);
    assert!(!certificates.renew_if_due(start() + 59 * DAY).unwrap());
    assert!(certificates.renewal_due_at() <= start() + 60 * DAY);
    assert!(certificates.renew_if_due(start() + 60 * DAY).unwrap());
    assert_eq!(certificates.not_after(), start() + 60 * DAY + LEAF_LIFETIME);
    assert!(!certificates.renew_if_due(start() + 61 * DAY).unwrap());
    // A clock set back: the leaf is not valid yet.
    assert!(certificates.renew_if_due(start() + DAY).unwrap());
    // The authority is gone: an error, and the leaf that is there stays.
    let not_after = certificates.not_after();
    certificates.renew_if_due(start() + CA_LIFETIME + DAY).unwrap_err();
    assert_eq!(certificates.not_after(), not_after);
}

#[test]
fn certificates_from_outside_are_not_renewed_here() {
    let authority = Authority::generate(start()).unwrap();
    let leaf = authority.issue(&names(), start()).unwrap();
    let certificates = Certificates::from_pem(&leaf.cert_pem, &leaf.key_pem).unwrap();
    assert!(!certificates.renew_if_due(start() + 80 * DAY).unwrap());
    assert!(!certificates.swap_authority(authority.clone(), start()).unwrap());
    assert_eq!(certificates.bundle(), None);
    let next = authority.issue(&names(), start() + 80 * DAY).unwrap();
    certificates.swap_pem(&next.cert_pem, &next.key_pem).unwrap();
    assert_eq!(certificates.not_after(), next.not_after);
    let error = certificates.swap_pem(&leaf.cert_pem, &next.key_pem).unwrap_err();
    assert!(matches!(error, Error::KeyMismatch { .. }), "{error}");
    assert_eq!(certificates.not_after(), next.not_after);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// However often a CA is rotated, whoever trusts one of the CAs that are still valid verifies the newest leaf,
    /// and so does whoever trusts the newest bundle.
    #[test]
    fn no_client_loses_trust_in_a_rotation(gaps_days in prop::collection::vec(0_u64..1_500, 1..5), through_pem: bool) {
        let mut now = start();
        let mut authority = Authority::generate(now).unwrap();
        let mut bundles = vec![(authority.not_after(), authority.bundle().to_owned())];
        for gap in gaps_days {
            now += DAY * u32::try_from(gap).unwrap();
            if through_pem {
                let pem = authority.to_pem();
                authority = Authority::from_pem(&pem.certificates, &pem.key).unwrap();
            }
            authority = authority.rotate(now).unwrap();
            bundles.push((authority.not_after(), authority.bundle().to_owned()));
            let leaf = authority.issue(&names(), now).unwrap();
            for (not_after, bundle) in &bundles {
                if *not_after > now {
                    // Only the CA that was the newest then, not the ones it came with.
                    prop_assert_eq!(verify(&chain_pem(bundle)[0], &leaf, SERVICE, now), Ok(()));
                }
            }
            prop_assert_eq!(verify(authority.bundle(), &leaf, SERVICE, now), Ok(()));
        }
    }

    #[test]
    fn nothing_in_a_pem_text_panics(certificates in "\\PC{0,80}", body in "[A-Za-z0-9+/=\n]{0,200}") {
        let key = Authority::generate(start()).unwrap().to_pem().key;
        let text = format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n");
        prop_assert!(Authority::from_pem(&certificates, &key).is_err());
        prop_assert!(Authority::from_pem(&text, &key).is_err());
        let text = format!("-----BEGIN EC PRIVATE KEY-----\n{body}\n-----END EC PRIVATE KEY-----\n");
        prop_assert!(Authority::from_pem(&certificates, &text).is_err());
    }
}
