//! A network of the node's own: a namespace, and one cable to the host, over which the host reaches Pods and Services.
//! Nothing leaves the machine and no rule of the host's changes.

use std::{net::Ipv4Addr, path::PathBuf, process::Command};

use super::{Error, guard::Guard};

/// Second octets to choose from: 10.100.0.0/16 to 10.199.0.0/16.
const OCTETS: std::ops::Range<u8> = 100..200;
const TRIES: usize = 50;

/// The addresses of one node's network, all in 10.N.0.0/16.
#[derive(Debug, Clone, Copy)]
pub(super) struct Network {
    octet: u8,
}

fn ip(arguments: &str) -> Result<(), String> {
    let output = Command::new("ip").args(arguments.split(' ')).output();
    match output {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

impl Network {
    /// Makes one that nobody has; the guard takes it away again.
    pub(super) fn create(guard: &Guard) -> Result<Self, Error> {
        let mut problem = String::new();
        for _ in 0..TRIES {
            let network = Network {
                octet: fastrand::u8(OCTETS),
            };
            let name = network.name();
            if let Err(error) = ip(&format!("netns add {name}")) {
                problem = error;
                continue;
            }
            // From the end of the world back: processes first (the guard's), then what they were in.
            guard.at_end(&format!("ip netns del {name}"));
            guard.at_end(&format!("ip link del {name}"));
            guard.at_end(&format!(
                "n=50; while [ $n -gt 0 ] && find /sys/fs/cgroup -depth -type d -path '*/{name}*' -exec rmdir {{}} + \
                 2>/dev/null; [ -n \"$(find /sys/fs/cgroup -type d -name {name})\" ] && [ $n -gt 0 ]; \
                 do n=$((n - 1)); sleep 0.1; done"
            ));
            match network.connect() {
                Ok(()) => return Ok(network),
                Err(error) => problem = error,
            }
        }
        Err(Error::Node(problem))
    }

    fn connect(self) -> Result<(), String> {
        let (name, host, node) = (self.name(), self.host(), self.node());
        ip(&format!("link add {name} type veth peer name eth0 netns {name}"))?;
        ip(&format!("addr add {host}/30 dev {name}"))?;
        ip(&format!("link set {name} up"))?;
        ip(&format!("-n {name} link set lo up"))?;
        ip(&format!("-n {name} addr add {node}/30 dev eth0"))?;
        ip(&format!("-n {name} link set eth0 up"))?;
        ip(&format!("-n {name} route add default via {host}"))?;
        for range in [self.pods(), self.services()] {
            ip(&format!("route add {range} via {node} dev {name}"))?;
        }
        Ok(())
    }

    /// Of the namespace, of the cable's end here, of the cgroup.
    pub(super) fn name(self) -> String {
        format!("infer-{}", self.octet)
    }

    /// The namespace as a file.
    pub(super) fn namespace(self) -> PathBuf {
        PathBuf::from("/run/netns").join(self.name())
    }

    /// This machine, as Pods see it.
    pub(super) fn host(self) -> Ipv4Addr {
        Ipv4Addr::new(10, self.octet, 0, 1)
    }

    /// The node.
    pub(super) fn node(self) -> Ipv4Addr {
        Ipv4Addr::new(10, self.octet, 0, 2)
    }

    /// Addresses of the node's Pods.
    pub(super) fn pods(self) -> String {
        format!("10.{}.64.0/24", self.octet)
    }

    /// Addresses of Services.
    pub(super) fn services(self) -> String {
        format!("10.{}.128.0/24", self.octet)
    }
}
