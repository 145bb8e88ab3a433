//! The API server itself refuses nonsense, and says which field and what would be right.

use std::fs;

use infer_tests::harness::cluster::{Abilities, Error, documents};
use serde_json::{Value, json};

use crate::support::{Scene, checkout, install_kinds, yaml_files};

/// At least so many kinds of nonsense.
const BAD_MIN: usize = 40;
/// A line of a manifest that names a part of the answer.
const EXPECT: &str = "# expect:";

/// Creates the documents one after another; what becomes of the last.
async fn create(scene: &Scene, text: &str) -> Result<(), Error> {
    let mut documents = documents(text)?;
    let last = documents.pop().expect("a manifest has a document");
    for document in documents {
        scene.api.apply(&scene.namespace, &document.to_string()).await?;
    }
    let mut last = last;
    last["metadata"]["namespace"] = json!(scene.namespace);
    // A second document of the same name is a change.
    match scene.api.create(&last).await {
        Err(error) if error.is("AlreadyExists") => scene.api.apply_object(&last).await,
        other => other,
    }
    .map(|_: Value| ())
}

#[tokio::test]
async fn nonsense_is_refused_in_words_that_help() {
    let Some(scene) = Scene::open("nonsense", Abilities::Api).await else {
        return;
    };
    install_kinds(&scene.api).await;
    let files = yaml_files(&checkout("tests/data/bad-manifests"));
    let mut wrong = Vec::new();
    for file in &files {
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        let text = fs::read_to_string(file).unwrap();
        let expected: Vec<_> = text
            .lines()
            .filter_map(|line| line.strip_prefix(EXPECT))
            .map(str::trim)
            .collect();
        if expected.is_empty() {
            wrong.push(format!("{name}: no line \"{EXPECT} …\""));
        }
        match create(&scene, &text).await {
            Ok(()) => wrong.push(format!("{name}: accepted")),
            Err(Error::Refused {
                code: 400 | 422,
                message,
                ..
            }) => {
                let missing: Vec<_> = expected.iter().filter(|part| !message.contains(**part)).collect();
                if !missing.is_empty() {
                    wrong.push(format!("{name}: {missing:?} not in: {message}"));
                }
            }
            Err(other) => wrong.push(format!("{name}: {other}")),
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {}:\n{}",
        wrong.len(),
        files.len(),
        wrong.join("\n")
    );
    assert!(files.len() >= BAD_MIN, "{} bad manifests", files.len());
}

#[tokio::test]
async fn sense_is_accepted() {
    let Some(scene) = Scene::open("sense", Abilities::Api).await else {
        return;
    };
    install_kinds(&scene.api).await;
    let files = yaml_files(&checkout("tests/data/good-manifests"));
    assert!(!files.is_empty());
    for file in &files {
        let text = fs::read_to_string(file).unwrap();
        if let Err(error) = scene.api.apply(&scene.namespace, &text).await {
            panic!("{}: {error}", file.display());
        }
    }
}
