#!/usr/bin/env bash
# pin.sh KUBERNETES ETCD KWOK HELM: writes go.mod and go.sum of the four modules anew, for these versions.
# For a person who moves the tests to other versions: tests/cluster/pin.sh 1.36.3 3.6.16 0.8.0 3.22.0
set -euo pipefail
[ $# = 4 ] || { sed -n '2,3s/^# //p' "$0" >&2; exit 2; }
cd "$(dirname "$0")"

# pin DIRECTORY MODULE VERSION PACKAGE...; further lines of go.mod on stdin
pin() {
  local directory=$1 module=$2 version=$3
  shift 3
  rm -f "$directory/go.mod" "$directory/go.sum"
  mkdir -p "$directory"
  {
    printf '// Written by ../pin.sh.\nmodule matrixinfer.test/%s\n\ngo 1.26.0\n\n' "$directory"
    cat
    printf 'tool (\n'
    printf '\t%s\n' "$@"
    printf ')\n\nrequire %s v%s\n' "$module" "$version"
  } >"$directory/go.mod"
  # -e: tests of dependencies of dependencies may ask for modules that nobody serves any more.
  (cd "$directory" && GOFLAGS=-mod=mod go mod tidy -e)
}

# Kubernetes keeps its libraries in one tree and replaces them by path, which is not possible from outside: each is
# published as a module of its own, v0.X.Y for v1.X.Y.
upstream=$(go mod download -json "k8s.io/kubernetes@v$1" | sed -n 's/^.*"GoMod": "\(.*\)".*$/\1/p')
libraries=v0.${1#1.}
{
  grep '^godebug' "$upstream" && echo
  echo 'replace ('
  awk -v version="$libraries" '/=> \.\/staging\// { printf "\t%s => %s %s\n", $1, $1, version }' "$upstream"
  printf ')\n\n'
} | pin kubernetes k8s.io/kubernetes "$1" \
  k8s.io/kubernetes/cmd/{kube-apiserver,kube-controller-manager,kube-scheduler,kube-proxy,kubectl,kubelet}
pin etcd go.etcd.io/etcd/server/v3 "$2" go.etcd.io/etcd/server/v3 </dev/null
pin kwok sigs.k8s.io/kwok "$3" sigs.k8s.io/kwok/cmd/kwok </dev/null
pin helm helm.sh/helm/v3 "$4" helm.sh/helm/v3/cmd/helm </dev/null
