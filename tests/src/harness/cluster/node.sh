# A machine of one's own for a kubelet, run as the first process of fresh mount and process namespaces: when it is killed,
# everything in it goes, with every mount. Arguments: the node's directory, its name, its address, the programs' directory,
# its cgroup, the directory of images, the directory of CNI plugins.
set -eu
own=$1 name=$2 address=$3 programs=$4 cgroup=$5 images=$6
mount --make-rprivate /
# Where containerd, kubelet and CNI keep things by default; outside, these directories stay as they are.
mkdir -p "$own/run" "$own/log" "$own/lib"
mount --bind "$own/run" /run
mkdir -p /run/containerd /run/netns /run/lock
mount --bind /run /run
mount --make-shared /run
for part in containerd kubelet cni; do
  mkdir -p "$own/lib/$part" "/var/lib/$part"
  mount --bind "$own/lib/$part" "/var/lib/$part"
done
mount --make-shared /var/lib/kubelet
mount --bind "$own/log" /var/log
# The kubelet insists on these settings of the whole machine. It reads what it wants to read; nothing is set.
mkdir -p "$own/settings"
set_for_kubelet() {
  echo "$2" >"$own/settings/$(echo "$1" | tr / _)"
  mount --bind "$own/settings/$(echo "$1" | tr / _)" "/proc/sys/$1"
}
set_for_kubelet vm/overcommit_memory 1
set_for_kubelet vm/panic_on_oom 0
set_for_kubelet kernel/panic 10
set_for_kubelet kernel/panic_on_oops 1
set_for_kubelet kernel/keys/root_maxkeys 1000000
set_for_kubelet kernel/keys/root_maxbytes 25000000
# This one belongs to the network namespace, which is ours.
echo 1 >/proc/sys/net/ipv4/ip_forward
# One cgroup in each hierarchy (version 1), or one in all (version 2).
for hierarchy in /sys/fs/cgroup /sys/fs/cgroup/*; do
  [ -e "$hierarchy/cgroup.procs" ] || continue
  if [ -e "$hierarchy/cgroup.controllers" ] && [ "$hierarchy" = /sys/fs/cgroup ]; then
    echo '+cpu +cpuset +memory +pids' >"$hierarchy/cgroup.subtree_control" || true
  fi
  mkdir -p "$hierarchy/$cgroup"
  for file in cpuset.cpus cpuset.mems; do
    if [ -e "$hierarchy/$file" ] && [ -e "$hierarchy/$cgroup/$file" ]; then
      cat "$hierarchy/$file" >"$hierarchy/$cgroup/$file"
    fi
  done
  [ "$hierarchy" != /sys/fs/cgroup ] || break
done
# Each starts again when it ends, so that a test may kill it.
keep_running() {
  log=$1
  shift
  while :; do
    "$@" >>"$own/$log.log" 2>&1 || true
    sleep 1
  done
}
keep_running containerd containerd -c "$own/containerd.toml" &
until ctr version >/dev/null 2>&1; do sleep 0.1; done
for image in "$images"/*.tar; do
  ctr -n k8s.io images import "$image" >>"$own/images.log" 2>&1
done
keep_running kubelet "$programs/kubelet" --config="$own/kubelet.yaml" --kubeconfig="$own/kubelet.kubeconfig" \
  --hostname-override="$name" --node-ip="$address" --root-dir=/var/lib/kubelet --cert-dir=/var/lib/kubelet/pki &
keep_running kube-proxy "$programs/kube-proxy" --config="$own/kube-proxy.yaml" &
wait
