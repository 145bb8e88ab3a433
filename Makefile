# What a person types. `make help` lists it.
.DEFAULT_GOAL := help
SHELL := /bin/bash
CARGO ?= cargo
TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
BINARIES := $(TARGET_DIR)/debug

.PHONY: help
help: ## This list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

.PHONY: build
build: ## Every binary, for debugging
	$(CARGO) build --workspace --bins

.PHONY: demo
demo: build ## A local fleet through rise, burst, fall and zero, explained, with an HTML report (no GPU, no cluster)
	$(BINARIES)/infer-demo run

.PHONY: demo-vllm
demo-vllm: build ## The same with real vLLM processes on the CPU (installs vLLM into .cache/vllm at first: about 6 GB)
	tests/real-engines/setup-vllm.sh .cache/vllm
	$(BINARIES)/infer-demo vllm --lab .cache/vllm

# Nothing is built where the user names a cluster or brings programs of his own.
.PHONY: control-plane
control-plane: ## A Kubernetes control plane for the tests, built with Go once (7 to 12 minutes on two cores)
	@if [ -z "$$INFER_TEST_KUBECONFIG$$KUBEBUILDER_ASSETS" ]; then \
	  tests/cluster/build.sh >/dev/null || { code=$$?; [ $$code = 3 ] || exit $$code; \
	    echo 'skipped: no control plane (see above): nothing is tested against a Kubernetes API server'; }; fi

.PHONY: test
test: build control-plane ## Every test
	@[ -d ../shared ] || echo 'skipped: no ../shared here: conformance vectors, captures of real engines and traces are not tested'
	$(CARGO) test --workspace --no-fail-fast

.PHONY: e2e-node
e2e-node: ## Real Pods on a real node of this machine: the chart, agents, scaling, drains (needs root; 2 minutes when built)
	tests/tests/node/run.sh

# ring has C in it, which the C compiler of glibc compiles as well.
.PHONY: images
images: ## OCI images of decider and agent in dist/, without a container engine
	rustup target add x86_64-unknown-linux-musl
	CC_x86_64_unknown_linux_musl=gcc $(CARGO) build --release --target x86_64-unknown-linux-musl -p infer-agent -p infer-decider
	for name in infer-agent infer-decider; do \
	  $(CARGO) run --quiet -p infer-image -- --binary $(TARGET_DIR)/x86_64-unknown-linux-musl/release/$$name \
	    --name matrixinfer/$$name:$$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1) --out dist/$$name.tar || exit 1; done

.PHONY: lint
lint: ## Format, clippy, dependency rules
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	@if command -v cargo-deny >/dev/null; then $(CARGO) fetch --quiet --locked && $(CARGO) deny --offline check bans licenses sources; \
	else echo 'skipped: cargo-deny is not installed (cargo install cargo-deny); deny.toml was not checked'; fi

.PHONY: bench
bench: ## Measure everything that is promised; results go to bench/results/*.json
	bench/run

.PHONY: clean-fleet
clean-fleet: ## End whatever a killed demo has left running
	@for dir in .run/*/; do [ -d "$$dir" ] && $(BINARIES)/infer-decider cleanup --state-dir "$$dir"; done; true
