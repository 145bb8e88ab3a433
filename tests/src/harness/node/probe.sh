# Tries what a node needs of the kernel and of this machine's rights, in namespaces of its own that end with it; prints
# what does not work, one a line. $1: an empty directory, where containers' file systems would be.
cd "$1" || exit 1
try() {
  what=$1
  shift
  "$@" >/dev/null 2>&1 || echo "$what"
}
mkdir lower upper work merged
try "overlayfs in $1 (TMPDIR names another place)" mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work merged
try "pairs of network devices (veth)" ip link add probe0 type veth peer name probe1
try "nftables" nft add table ip probe
try "nftables with NAT" nft add chain ip probe nat '{ type nat hook prerouting priority -100 ; }'
try "routing (net.ipv4.ip_forward)" sh -c 'echo 1 >/proc/sys/net/ipv4/ip_forward'
# Version 2 has one hierarchy for all controllers, version 1 one for each.
cgroup=infer-probe-$$
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
  for controller in cpu memory pids; do
    try "cgroup controller $controller" grep -qw "$controller" /sys/fs/cgroup/cgroup.controllers
  done
  try "cgroups to write to" mkdir "/sys/fs/cgroup/$cgroup"
  rmdir "/sys/fs/cgroup/$cgroup" 2>/dev/null
else
  for controller in cpu cpuacct cpuset memory pids devices; do
    try "cgroup controller $controller to write to" mkdir "/sys/fs/cgroup/$controller/$cgroup"
    rmdir "/sys/fs/cgroup/$controller/$cgroup" 2>/dev/null
  done
fi
exit 0
