#!/usr/bin/env bash
# run.sh [ARGUMENT...]: builds what the tests on a real node need, and runs them; the arguments go to the test program.
# Exit codes: 0 passed, or skipped with one line that says why; others: as cargo's.
set -euo pipefail
cd "$(dirname "$0")/../../.."
target=x86_64-unknown-linux-musl
cargo=${CARGO:-cargo}
skip() {
  echo "skipped: no real node: $*" >&2
  exit 0
}
[ "$(id -u)" = 0 ] || skip 'it needs root'
[ "$(uname -sm)" = 'Linux x86_64' ] || skip "it needs Linux on x86_64; this is $(uname -sm)"
has_target() { [ -d "$(rustc --print target-libdir --target $target)" ]; }
has_target || rustup target add $target >&2 || true
has_target || skip "Rust's target $target is missing (rustup target add $target)"

code=0
tests/cluster/build.sh base node >/dev/null || code=$?
[ $code != 3 ] || skip 'kubelet and its control plane cannot be built here (see above)'
[ $code = 0 ] || exit $code

# The C in some crates needs nothing of a C library: without a compiler for musl the ordinary one does.
: "${CC_x86_64_unknown_linux_musl:=$(command -v musl-gcc || command -v cc || echo gcc)}"
export CC_x86_64_unknown_linux_musl
# Without debug information, which would be most of an image.
$cargo build --target $target --config profile.dev.debug=false --config profile.dev.strip=true \
  --package infer-decider --package infer-agent --package infersim --bins
$cargo build --package inferctl --package infer-decider --package infer-agent --package infersim --bins
$cargo test --package infer-tests --test node -- --nocapture --test-threads=1 "$@"
