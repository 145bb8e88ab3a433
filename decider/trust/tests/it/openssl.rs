//! Keys and CAs as others make them: what cert-manager writes is what openssl writes.

use std::{path::Path, process::Command, time::SystemTime};

use infer_trust::{Authority, Certificates};

use crate::verify::verify;

/// Runs openssl in `directory`; `None` where there is none.
fn openssl(directory: &Path, arguments: &str) -> Option<()> {
    let output = Command::new("openssl")
        .args(arguments.split_whitespace())
        .current_dir(directory)
        .output();
    match output {
        Ok(output) => {
            assert!(
                output.status.success(),
                "{arguments}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
            Some(())
        }
        Err(_) => {
            eprintln!("skipped: openssl not found");
            None
        }
    }
}

#[test]
fn authorities_of_every_key_and_encoding_sign() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    for (name, make_key, section) in [
        (
            "pkcs8-ec",
            "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out k",
            "BEGIN PRIVATE KEY",
        ),
        (
            "pkcs8-rsa",
            "genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out k",
            "BEGIN PRIVATE KEY",
        ),
        (
            "sec1-256",
            "ecparam -name prime256v1 -genkey -noout -out k",
            "BEGIN EC PRIVATE KEY",
        ),
        (
            "sec1-384",
            "ecparam -name secp384r1 -genkey -noout -out k",
            "BEGIN EC PRIVATE KEY",
        ),
        ("pkcs1-rsa", "genrsa -traditional -out k 2048", "BEGIN RSA PRIVATE KEY"),
    ] {
        let made = openssl(path, make_key).and_then(|()| {
            openssl(
                path,
                "req -x509 -key k -out c -days 30 -subj /O=example/OU=gpu/CN=ca -addext keyUsage=critical,keyCertSign",
            )
        });
        if made.is_none() {
            return;
        }
        let read = |file: &str| std::fs::read_to_string(path.join(file)).unwrap();
        assert!(read("k").contains(section), "{name}");
        let authority = Authority::from_pem(&read("c"), &read("k")).unwrap();
        let now = SystemTime::now();
        let leaf = authority.issue(&["decider".to_owned()], now).unwrap();
        verify(&read("c"), &leaf, "decider", now).unwrap();
        // Followed by one of ours, and still trusted by who knows the first only.
        let next = authority.rotate(now).unwrap();
        let leaf = next.issue(&["decider".to_owned()], now).unwrap();
        verify(&read("c"), &leaf, "decider", now).unwrap();
        // And the other way round: openssl's opinion of what was issued here.
        std::fs::write(path.join("leaf"), &leaf.cert_pem).unwrap();
        openssl(
            path,
            "verify -x509_strict -purpose sslserver -CAfile c -untrusted leaf leaf",
        )
        .unwrap();
        std::fs::write(path.join("bundle"), next.bundle()).unwrap();
        openssl(path, "verify -purpose sslserver -CAfile bundle leaf").unwrap();
        // As a server's own certificate.
        Certificates::from_pem(&read("c"), &read("k")).unwrap();
    }
}

#[test]
fn a_subject_that_leafs_cannot_name_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    if openssl(path, "ecparam -name prime256v1 -genkey -noout -out k").is_none() {
        return;
    }
    for subject in ["/O=example/OU=a/OU=b/CN=ca", "/O=example+OU=a/CN=ca"] {
        openssl(
            path,
            &format!("req -x509 -multivalue-rdn -key k -out c -days 30 -subj {subject}"),
        )
        .unwrap();
        let read = |file: &str| std::fs::read_to_string(path.join(file)).unwrap();
        let error = Authority::from_pem(&read("c"), &read("k")).unwrap_err().to_string();
        assert!(error.contains("subject"), "{subject}: {error}");
    }
}
