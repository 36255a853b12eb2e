"""Process 1 of the node's namespaces: starts its daemons, then reaps orphans and recycles volumes until it is killed.

Decides order and readiness. Knows nothing of the host: node.py makes the namespaces, the link and the cgroup.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

from cluster.binaries import binary
from cluster.certificates import write_kubeconfig
from cluster.control_plane import SERVICE_ADDRESS, ControlPlane, kubeconfig_flags
from cluster.image_archive import program_image, write_archive
from cluster.node_settings import (
    API_SERVER_PORT,
    CONTAINERD_SOCKET,
    DNS_ADDRESS,
    HOST_ADDRESS,
    IMAGES,
    NAME,
    NODE_ADDRESS,
    REGISTRY,
    STATE,
    VOLUMES,
    containerd_config,
    kubelet_config,
    pod_network,
    proxy_config,
    registry_config,
    volume,
    volume_folder,
)
from cluster.paths import FOLDER

# tmpfs over each of these: their contents belong to this node, and end with it.
PRIVATE_FOLDERS = (Path("/run"), Path("/var/lib/kubelet"), Path("/var/lib/cni"), Path("/var/log/containers"))
API_SERVER_FLAGS = (
    "--kubelet-preferred-address-types=InternalIP,Hostname",
    "--enable-admission-plugins=NodeRestriction",
)
# A lost node is noticed after 16 s, not 50: tests wait for it.
CONTROLLER_FLAGS = ("--node-monitor-grace-period=16s", "--node-monitor-period=2s")
RECYCLE_SECONDS = 2.0


def main() -> None:
    started = time.monotonic()
    node = Node()
    node.bring_up()
    print(f"the node is ready: {time.monotonic() - started:.1f} s", flush=True)
    (STATE / "ready").touch()
    node.serve()


class Node:
    """The daemons of the single node, seen from inside its namespaces."""

    def __init__(self) -> None:
        pki = STATE / "pki"
        kubelet_client = {"certificate": "api-server.crt", "key": "api-server.key"}
        flags = [f"--kubelet-client-{use}={pki / name}" for use, name in kubelet_client.items()]
        flags += [f"--kubelet-certificate-authority={pki / 'ca.crt'}", *API_SERVER_FLAGS]
        self.plane = ControlPlane(
            folder=STATE,
            address=NODE_ADDRESS,
            api_server_port=API_SERVER_PORT,
            controller_manager=False,
            api_server_flags=tuple(flags),
            controller_manager_flags=CONTROLLER_FLAGS,
        )

    def bring_up(self) -> None:
        connect()
        mount_private_folders()
        self.write_settings()
        self.clean_containerd()
        self.plane.spawn("containerd", ["containerd", "-c", str(STATE / "containerd.toml")])
        self.plane.spawn("registry", [str(binary("registry")), "serve", str(STATE / "registry.yaml")])
        self.plane.start()
        print("API server answers", flush=True)
        self.plane.start_controller_manager()
        self.start_node_daemons()
        self.import_images()
        self.create_objects()
        self.plane.wait_for("the node to be Ready", self.is_ready)
        self.plane.wait_for("CoreDNS to answer", is_dns_answering)

    def write_settings(self) -> None:
        for folder in (STATE / "cni", IMAGES, REGISTRY, *(volume_folder(number) for number in range(VOLUMES))):
            folder.mkdir(parents=True, exist_ok=True)
        (STATE / "resolv.conf").touch()  # empty: pods know only the cluster's own names
        (STATE / "cni" / "10-finetune.conflist").write_text(pod_network())
        (STATE / "registry.yaml").write_text(registry_config())
        pause = program_image(binary("pause"))
        (STATE / "containerd.toml").write_text(containerd_config(pause, with_kubernetes=True))
        (STATE / "containerd-bare.toml").write_text(containerd_config(pause, with_kubernetes=False))

    def clean_containerd(self) -> None:
        """Images outlive a node, its containers must not: the kubelet would take them for its own."""
        if not (IMAGES / "io.containerd.metadata.v1.bolt").exists():
            return
        self.plane.spawn("containerd", ["containerd", "-c", str(STATE / "containerd-bare.toml")])
        self.plane.wait_for("containerd", is_containerd_answering)
        for container in ctr("containers", "ls", "--quiet").split():
            ctr("containers", "rm", container)
        self.plane.processes.pop("containerd").kill()

    def start_node_daemons(self) -> None:
        authority = self.plane.authority
        authority.server("kubelet", f"system:node:{NAME}", "system:nodes", [f"DNS:{NAME}", f"IP:{NODE_ADDRESS}"])
        for name in ("kube-scheduler", "kube-proxy"):
            authority.client(name, f"system:{name}")
        configs = {name: STATE / f"{name}.kubeconfig" for name in ("kubelet", "kube-scheduler", "kube-proxy")}
        for name, path in configs.items():
            write_kubeconfig(path, self.plane.url, authority, name)
        (STATE / "kubelet.yaml").write_text(kubelet_config(authority))
        (STATE / "kube-proxy.yaml").write_text(proxy_config(configs["kube-proxy"]))
        self.plane.wait_for("containerd", is_containerd_answering)
        flags = [
            f"--config={STATE / 'kubelet.yaml'}",
            f"--kubeconfig={configs['kubelet']}",
            f"--node-ip={NODE_ADDRESS}",
        ]
        flags += [f"--root-dir={STATE / 'kubelet'}", f"--cert-dir={STATE / 'pki'}", f"--hostname-override={NAME}"]
        self.plane.spawn("kubelet", [str(binary("kubelet")), *flags])
        flags = [*kubeconfig_flags(configs["kube-scheduler"]), "--leader-elect=false", "--secure-port=0"]
        flags += ["--kube-api-qps=200", "--kube-api-burst=400"]
        self.plane.spawn("kube-scheduler", [str(binary("kube-scheduler")), *flags])
        self.plane.spawn("kube-proxy", [str(binary("kube-proxy")), f"--config={STATE / 'kube-proxy.yaml'}"])

    def import_images(self) -> None:
        present = ctr("images", "ls", "--quiet").split()
        for program in (binary("pause"), binary("coredns")):
            if program_image(program) not in present:
                archive = STATE / "image.tar"
                write_archive(program, archive)
                ctr("images", "import", str(archive))
                archive.unlink()

    def create_objects(self) -> None:
        objects = (FOLDER / "cluster_objects.yaml").read_text()
        objects = objects.replace("COREDNS_IMAGE", program_image(binary("coredns")))
        volumes = [json.dumps(volume(number)) for number in range(VOLUMES)]
        for number in range(VOLUMES):
            empty(volume_folder(number))
        self.plane.kubectl("create", "--filename=-", document="\n---\n".join([objects, *volumes]))

    def is_ready(self) -> bool:
        try:
            node = json.loads(self.plane.request(f"/api/v1/nodes/{NAME}"))
        except OSError:
            return False
        return {"Ready": "True"}.items() <= {c["type"]: c["status"] for c in node["status"]["conditions"]}.items()

    def serve(self) -> None:
        while True:
            self.reap()
            try:
                self.recycle_volumes()
            except OSError as problem:
                print(f"volumes were not recycled: {problem}", flush=True)
            time.sleep(RECYCLE_SECONDS)

    def reap(self) -> None:
        """Everything orphaned in these namespaces becomes our child; a daemon that ends is worth a word."""
        daemons = {process.popen.pid: name for name, process in self.plane.processes.items()}
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if name := daemons.get(ended[0]):
                print(f"{name} ended with status {ended[1]}", flush=True)

    def recycle_volumes(self) -> None:
        """A volume whose claim is gone is emptied and offered again: the pool never runs dry."""
        for item in json.loads(self.plane.request("/api/v1/persistentvolumes"))["items"]:
            if item["status"].get("phase") == "Released":
                empty(Path(item["spec"]["local"]["path"]))
                path = f"/api/v1/persistentvolumes/{item['metadata']['name']}"
                self.plane.request(path, method="PATCH", body={"spec": {"claimRef": None}})


def connect() -> None:
    """Give the end of the link that the host put here its address, and make the kernel route and filter for pods."""
    deadline = time.monotonic() + 10
    while not Path("/sys/class/net/eth0").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    for command in (
        ["link", "set", "lo", "up"],
        ["address", "add", f"{NODE_ADDRESS}/30", "dev", "eth0"],
        ["link", "set", "eth0", "up"],
        ["route", "add", "default", "via", HOST_ADDRESS],  # service addresses need some route to be looked at
    ):
        subprocess.run(["ip", *command], check=True)
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    Path("/proc/sys/net/bridge/bridge-nf-call-iptables").write_text("1")


def mount_private_folders() -> None:
    for folder in PRIVATE_FOLDERS:
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(folder)], check=True)
    subprocess.run(["mount", "--make-rshared", "/"], check=True)


def ctr(*arguments: str) -> str:
    command = ["ctr", "--address", str(CONTAINERD_SOCKET), "--namespace", "k8s.io", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def is_containerd_answering() -> bool:
    command = ["ctr", "--address", str(CONTAINERD_SOCKET), "version"]
    return subprocess.run(command, capture_output=True).returncode == 0


def is_dns_answering() -> bool:
    """Ask CoreDNS, through its Service, where the API server is; the answer ends with the address."""
    name = b"".join(bytes([len(part)]) + part for part in b"kubernetes.default.svc.cluster.local".split(b"."))
    question = b"\x00\x01\x01\x00\x00\x01" + bytes(6) + name + b"\x00\x00\x01\x00\x01"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as query:
        query.settimeout(0.3)
        try:
            query.sendto(question, (DNS_ADDRESS, 53))
            return query.recv(512).endswith(socket.inet_aton(SERVICE_ADDRESS))
        except OSError:
            return False


def empty(folder: Path) -> None:
    """Back to how a new volume looks; an fsGroup may have changed group and mode."""
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    os.chown(folder, 0, 0)
    folder.chmod(0o777)
