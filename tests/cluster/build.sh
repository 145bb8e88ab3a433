#!/usr/bin/env bash
# build.sh [--where] [base|node|all]...: builds a Kubernetes control plane out of Go modules, once.
#
#   base  etcd, kube-apiserver, kube-controller-manager, kube-scheduler, kwok, and helm: what the API-server suite needs
#         (default)
#   node  kubelet and kube-proxy, for a real node
#   all   both, and kubectl
#
# The programs' directory goes to stdout, everything else to stderr. What is there is not built again; --where builds
# nothing. INFER_TEST_CACHE names another cache than .cache/cluster.
# Exit codes: 0 they are there; 1 a build failed; 2 wrong usage; 3 cannot be built here (no Go, no module proxy).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
say() { echo "tests/cluster/build.sh: $*" >&2; }

version_of() { awk -v module="$2" '$1 == module || ($1 == "require" && $2 == module) { print $(NF - ($NF == "indirect" ? 2 : 0)); exit }' "$here/$1/go.mod"; }
# An indirect requirement ends in "// indirect": its version is third from the end.
kubernetes=$(version_of kubernetes k8s.io/kubernetes)
etcd=$(version_of etcd go.etcd.io/etcd/server/v3)
kwok=$(version_of kwok sigs.k8s.io/kwok)
helm=$(version_of helm helm.sh/helm/v3)
cache=${INFER_TEST_CACHE:-$here/../../.cache/cluster}
mkdir -p "$cache"
bin=$(cd "$cache" && pwd)/kubernetes-$kubernetes-etcd-$etcd-kwok-$kwok-helm-$helm/bin

base=(kube-apiserver kube-controller-manager kube-scheduler etcd kwok helm)
node=(kubelet kube-proxy)
wanted=() build=yes
for argument in "$@"; do
  case $argument in
    --where) build=no ;;
    base) wanted+=("${base[@]}") ;;
    node) wanted+=("${node[@]}") ;;
    all) wanted+=("${base[@]}" "${node[@]}" kubectl) ;;
    *) say "no such part: $argument (base, node, all)"; exit 2 ;;
  esac
done
[ ${#wanted[@]} -gt 0 ] || wanted=("${base[@]}")
missing() { for name in "${wanted[@]}"; do [ -x "$bin/$name" ] || echo "$name"; done; }

if [ $build = no ] || [ -z "$(missing)" ]; then
  echo "$bin"
  exit 0
fi
command -v go >/dev/null || { say "needs Go 1.26 or later, which is not installed"; exit 3; }
export CGO_ENABLED=0 GOFLAGS='-buildvcs=false -mod=readonly'
(cd "$here/etcd" && go env GOVERSION) >/dev/null || { say "needs Go 1.26 or later; this is $(cd / && go env GOVERSION)"; exit 3; }

mkdir -p "$bin"
# One build at a time; whoever waits finds everything there.
if command -v flock >/dev/null; then
  exec 9>"$bin/.lock"
  flock 9
fi

# compile NAME MODULE-DIRECTORY PACKAGE LINKER-FLAGS
compile() {
  cd "$here/$2"
  go list -deps -f '{{""}}' "$3" >/dev/null || { say "the sources of $1 cannot be had (see above)"; exit 3; }
  nice -n 5 go build -trimpath -ldflags "-s -w $4" -o "$bin/.$1" "$3" || { say "$1 does not build"; exit 1; }
  mv "$bin/.$1" "$bin/$1"
}
minor=${kubernetes#v1.}
helm_stamp="-X helm.sh/helm/v3/internal/version.version=$helm"
component=k8s.io/component-base/version
# Without these the API server calls itself v0.0.0 and clients doubt it.
stamp="-X $component.gitVersion=$kubernetes -X $component.gitMajor=1 -X $component.gitMinor=${minor%%.*}"
# Without these helm takes every cluster that it cannot ask for 1.20.
for package in helm.sh/helm/v3/pkg/chartutil helm.sh/helm/v3/pkg/lint/rules; do
  helm_stamp+=" -X $package.k8sVersionMajor=1 -X $package.k8sVersionMinor=${minor%%.*}"
done
began=$SECONDS
for name in $(missing); do
  say "building $name (the whole takes 7 to 12 minutes on two cores, once)"
  start=$SECONDS
  case $name in
    etcd) (compile etcd etcd go.etcd.io/etcd/server/v3 "") ;;
    kwok) (compile kwok kwok sigs.k8s.io/kwok/cmd/kwok "") ;;
    helm) (compile helm helm helm.sh/helm/v3/cmd/helm "$helm_stamp") ;;
    *) (compile "$name" kubernetes "k8s.io/kubernetes/cmd/$name" "$stamp") ;;
  esac
  say "$name: $((SECONDS - start)) s"
done
say "all there after $((SECONDS - began)) s"
echo "$bin"
