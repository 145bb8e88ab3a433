# The agent's image for those who have a container engine; `make images` makes the same without one.
# Context: a directory with the static binary (cargo build --release --target x86_64-unknown-linux-musl -p infer-agent).
FROM scratch
COPY infer-agent /infer-agent
USER 65532:65532
ENTRYPOINT ["/infer-agent"]
