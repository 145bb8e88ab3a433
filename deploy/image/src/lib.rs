//! An OCI image of one static binary: a layer with that file, a config, a manifest and an index, in one tar archive.
//!
//! `docker load`, `podman load`, `ctr images import` and `skopeo copy oci-archive:` take it. The same binary gives the same
//! bytes: no time and no user of the machine goes in.

use std::io::{self, Write as _};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// Nobody in particular, as in distroless images.
pub const USER: &str = "65532:65532";

/// What goes into an image.
#[derive(Debug, Clone)]
pub struct Image<'a> {
    /// Full name, "host/path:tag" or "path:tag".
    pub name: &'a str,
    /// The binary's name; it becomes `/name` and the entry point.
    pub program: &'a str,
    /// The binary.
    pub binary: &'a [u8],
    /// As Go names it: "amd64", "arm64".
    pub architecture: &'a str,
    /// Image labels.
    pub labels: &'a [(&'a str, &'a str)],
}

struct Blob {
    digest: String,
    bytes: Vec<u8>,
}

impl Blob {
    fn new(bytes: Vec<u8>) -> Self {
        Blob {
            digest: digest(&bytes),
            bytes,
        }
    }

    fn json(value: &Value) -> Self {
        Blob::new(value.to_string().into_bytes())
    }

    fn descriptor(&self, media_type: &str) -> Value {
        json!({"mediaType": media_type, "digest": format!("sha256:{}", self.digest), "size": self.bytes.len()})
    }

    fn path(&self) -> String {
        format!("blobs/sha256/{}", self.digest)
    }
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The archive.
///
/// # Errors
/// Only when memory cannot be written to, which `io` has a type for.
pub fn archive(image: &Image<'_>) -> io::Result<Vec<u8>> {
    let tree = {
        let mut tree = tar::Builder::new(Vec::new());
        add(&mut tree, image.program, image.binary, 0o755)?;
        tree.into_inner()?
    };
    let layer = {
        let mut gzip = flate2::GzBuilder::new()
            .mtime(0)
            .write(Vec::new(), flate2::Compression::default());
        gzip.write_all(&tree)?;
        Blob::new(gzip.finish()?)
    };
    let labels: serde_json::Map<String, Value> = image
        .labels
        .iter()
        .map(|(key, value)| ((*key).to_owned(), Value::from(*value)))
        .collect();
    let config = Blob::json(&json!({
        "architecture": image.architecture,
        "os": "linux",
        "config": {"Entrypoint": [format!("/{}", image.program)], "User": USER, "WorkingDir": "/", "Labels": labels},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", digest(&tree))]},
    }));
    let manifest = Blob::json(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config.descriptor("application/vnd.oci.image.config.v1+json"),
        "layers": [layer.descriptor("application/vnd.oci.image.layer.v1.tar+gzip")],
    }));
    let mut entry = manifest.descriptor("application/vnd.oci.image.manifest.v1+json");
    entry["platform"] = json!({"architecture": image.architecture, "os": "linux"});
    entry["annotations"] = json!({
        "io.containerd.image.name": full_name(image.name),
        "org.opencontainers.image.ref.name": image.name.rsplit_once(':').map_or("latest", |(_, tag)| tag),
    });
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [entry],
    });
    // Engines of before 2023 read this one.
    let docker = json!([{"Config": config.path(), "RepoTags": [image.name], "Layers": [layer.path()]}]);
    let mut archive = tar::Builder::new(Vec::new());
    add(&mut archive, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#, 0o644)?;
    add(&mut archive, "index.json", index.to_string().as_bytes(), 0o644)?;
    add(&mut archive, "manifest.json", docker.to_string().as_bytes(), 0o644)?;
    for blob in [&layer, &config, &manifest] {
        add(&mut archive, &blob.path(), &blob.bytes, 0o644)?;
    }
    archive.into_inner()
}

/// As containerd and the kubelet spell it: with a host, and `library/` where there is no path.
fn full_name(name: &str) -> String {
    match name.split_once('/') {
        None => format!("docker.io/library/{name}"),
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => name.to_owned(),
        Some(_) => format!("docker.io/{name}"),
    }
}

fn add(tree: &mut tar::Builder<Vec<u8>>, path: &str, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_size(bytes.len() as u64);
    header.set_mode(mode);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    tree.append_data(&mut header, path, bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::{collections::BTreeMap, io::Read as _};

    use super::*;

    fn files(archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let mut archive = tar::Archive::new(archive);
        let entries = archive.entries().unwrap().map(|entry| {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().to_string_lossy().into_owned();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            (path, bytes)
        });
        entries.collect()
    }

    fn parse(bytes: &[u8]) -> Value {
        serde_json::from_slice(bytes).unwrap()
    }

    #[test]
    fn every_digest_is_that_of_its_blob_and_the_program_is_inside() {
        let image = Image {
            name: "matrixinfer/infer-agent:0.1.0",
            program: "infer-agent",
            binary: b"\x7fELF and so on",
            architecture: "amd64",
            labels: &[("org.opencontainers.image.licenses", "Apache-2.0")],
        };
        let bytes = archive(&image).unwrap();
        assert_eq!(
            bytes,
            archive(&image).unwrap(),
            "the same binary gives the same archive"
        );
        let files = files(&bytes);
        for (path, bytes) in &files {
            if let Some(name) = path.strip_prefix("blobs/sha256/") {
                assert_eq!(digest(bytes), name);
            }
        }
        let blob = |descriptor: &Value| {
            let name = descriptor["digest"].as_str().unwrap().replace(':', "/");
            let bytes = &files[&format!("blobs/{name}")];
            assert_eq!(descriptor["size"], bytes.len());
            bytes.clone()
        };
        let index = parse(&files["index.json"]);
        let entry = &index["manifests"][0];
        assert_eq!(
            entry["annotations"]["io.containerd.image.name"],
            "docker.io/matrixinfer/infer-agent:0.1.0"
        );
        let manifest = parse(&blob(entry));
        let config = parse(&blob(&manifest["config"]));
        assert_eq!(config["config"]["Entrypoint"], json!(["/infer-agent"]));
        assert_eq!(config["config"]["User"], USER);
        let layer = blob(&manifest["layers"][0]);
        let mut tree = Vec::new();
        flate2::read::GzDecoder::new(&layer[..]).read_to_end(&mut tree).unwrap();
        assert_eq!(config["rootfs"]["diff_ids"][0], format!("sha256:{}", digest(&tree)));
        let inside = self::files(&tree);
        assert_eq!(inside["infer-agent"], image.binary);
        assert_eq!(inside.len(), 1);
    }

    #[test]
    fn names_are_spelt_as_containerd_does() {
        for (name, full) in [
            ("agent:1", "docker.io/library/agent:1"),
            ("matrixinfer/agent:1", "docker.io/matrixinfer/agent:1"),
            ("localhost/agent:1", "localhost/agent:1"),
            ("registry.example:5000/a/b:1", "registry.example:5000/a/b:1"),
        ] {
            assert_eq!(full_name(name), full);
        }
    }
}
