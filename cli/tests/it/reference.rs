//! `docs/cli.md` is what the command line makes of itself.

#[test]
fn committed_reference_is_up_to_date() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/cli.md");
    let generated = inferctl::reference::markdown();
    for command in ["status", "explain", "policy check", "inject", "uninject", "completion"] {
        assert!(generated.contains(&format!("\n## inferctl {command}\n")), "{command}");
    }
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, &generated).expect("the reference can be written");
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == generated,
        "docs/cli.md has drifted: run `UPDATE=1 cargo test -p inferctl reference`"
    );
}
