"""What the daemons of the single node are told: addresses, and their configuration files as plain values.

Pure: nothing is written or started here. LAYOUT and RUNTIME are the only places the node writes to.
"""

from __future__ import annotations

import json
from pathlib import Path

from cluster.certificates import Authority
from cluster.paths import CLUSTER

NAME = "finetune-node"
HOST_ADDRESS = "172.31.253.1"
NODE_ADDRESS = "172.31.253.2"
POD_RANGE = "10.244.0.0/16"
POD_SUBNET = "10.244.0.0/24"
DNS_ADDRESS = "10.96.0.10"
API_SERVER_PORT = 6443
REGISTRY_PORT = 5000
CGROUP = "finetune-node"
HOST_LINK = "finetune0"
VOLUMES = 64

STATE = CLUSTER / "node"  # gone after `down`
IMAGES = CLUSTER / "containerd"  # survives `down`, so that a warm `up` pulls nothing
REGISTRY = CLUSTER / "registry"  # survives too
KUBECONFIG = STATE / "admin.kubeconfig"
# Of the node's own /run: two sockets, gone with its mount namespace.
CONTAINERD_SOCKET = Path("/run/containerd/containerd.sock")


def containerd_config(pause_image: str, with_kubernetes: bool) -> str:
    """TOML for containerd 1.6 or newer. Without Kubernetes it can be cleaned of what the last node left."""
    disabled = ["aufs", "btrfs", "devmapper", "zfs"]
    plugins = [f"io.containerd.snapshotter.v1.{name}" for name in disabled]
    plugins += [] if with_kubernetes else ["io.containerd.grpc.v1.cri"]
    return f"""version = 2
root = "{IMAGES}"
disabled_plugins = {json.dumps(plugins)}
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause_image}"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{STATE / "cni"}"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    discard_unpacked_layers = true
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
"""


def pod_network() -> str:
    """A bridge for the pods. The host routes to it, so nothing is masqueraded, and it enforces no NetworkPolicy."""
    ranges, routes = [[{"subnet": POD_SUBNET}]], [{"dst": "0.0.0.0/0"}]
    addresses = {"type": "host-local", "dataDir": str(STATE / "cni-addresses"), "ranges": ranges, "routes": routes}
    bridge = {"type": "bridge", "bridge": "pods0", "isGateway": True, "hairpinMode": True, "ipam": addresses}
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
    return json.dumps({"cniVersion": "0.4.0", "name": "finetune", "plugins": [bridge, portmap]})


def kubelet_config(authority: Authority) -> str:
    """Nothing is evicted for want of disk or memory: how full this machine is must not decide how a test ends."""
    never = dict.fromkeys(
        ("memory.available", "nodefs.available", "nodefs.inodesFree", "imagefs.available", "imagefs.inodesFree"), "0%"
    )
    client_ca = {"clientCAFile": str(authority.certificate("ca"))}
    settings = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": NODE_ADDRESS,
        "authentication": {"anonymous": {"enabled": False}, "webhook": {"enabled": True}, "x509": client_ca},
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(authority.certificate("kubelet")),
        "tlsPrivateKeyFile": str(authority.key("kubelet")),
        "clusterDomain": "cluster.local",
        "clusterDNS": [DNS_ADDRESS],
        "resolvConf": str(STATE / "resolv.conf"),
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{CGROUP}",
        "failCgroupV1": False,
        "failSwapOn": False,
        "containerRuntimeEndpoint": f"unix://{CONTAINERD_SOCKET}",
        "podLogsDir": str(STATE / "pod-logs"),
        "volumePluginDir": str(STATE / "volume-plugins"),
        "evictionHard": never,
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "serializeImagePulls": False,
        "nodeStatusUpdateFrequency": "4s",
        "maxPods": 200,
        "kubeAPIQPS": 200,
        "kubeAPIBurst": 400,
    }
    return json.dumps(settings, indent=1)


def proxy_config(kubeconfig: Path) -> str:
    """No conntrack limits: they belong to the whole machine, not to this node."""
    unlimited = {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"}
    settings = {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "iptables",
        "clientConnection": {"kubeconfig": str(kubeconfig)},
        "clusterCIDR": POD_RANGE,
        "hostnameOverride": NAME,
        "bindAddress": NODE_ADDRESS,
        "nodePortAddresses": [f"{NODE_ADDRESS}/32"],
        "conntrack": unlimited,
    }
    return json.dumps(settings, indent=1)


def registry_config() -> str:
    """Plain HTTP: containerd asks for nothing better from a name that starts with localhost."""
    storage = {"filesystem": {"rootdirectory": str(REGISTRY)}, "delete": {"enabled": True}}
    settings = {"version": 0.1, "log": {"level": "warn"}, "storage": storage}
    return json.dumps({**settings, "http": {"addr": f":{REGISTRY_PORT}"}})


def volume_folder(number: int) -> Path:
    return STATE / "volumes" / f"{number:02}"


def volume(number: int) -> dict[str, object]:
    """One of the pool of volumes. Its size is nominal: nothing measures or limits what is written."""
    here = {"key": "kubernetes.io/hostname", "operator": "In", "values": [NAME]}
    spec = {
        "capacity": {"storage": "100Gi"},
        "accessModes": ["ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany"],
        "persistentVolumeReclaimPolicy": "Retain",
        "storageClassName": "standard",
        "local": {"path": str(volume_folder(number))},
        "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [here]}]}},
    }
    metadata = {"name": f"local-{number:02}"}
    return {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": metadata, "spec": spec}
