"""etcd, kube-apiserver and kube-controller-manager as plain processes: a real Kubernetes API without a kubelet.

Decides their flags, ports and order. Stops only what it started. Knows nothing of nodes, images or pods that run.
"""

from __future__ import annotations

import json
import random
import shutil
import socket
import ssl
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from cluster.binaries import binary
from cluster.certificates import Authority, new_authority, write_kubeconfig
from cluster.kubectl import kubectl
from cluster.paths import ClusterError

SERVICE_RANGE = "10.96.0.0/16"
SERVICE_ADDRESS = "10.96.0.1"
START_SECONDS = 60.0


@dataclass(frozen=True)
class Process:
    """A daemon that we started, and where it writes what it says."""

    popen: subprocess.Popen[bytes]
    log: Path

    def is_alive(self) -> bool:
        return self.popen.poll() is None

    def kill(self) -> None:
        """SIGKILL: a throw-away API server would otherwise wait for its watches to end."""
        self.popen.kill()
        self.popen.wait()


class ControlPlane:
    """A Kubernetes control plane on one address, as a context manager.

    `folder` holds everything it writes; without it a temporary one is made, and removed by `stop`.
    `api_server_port` 0 picks a free one. `api_server_flags` and `controller_manager_flags` are appended to ours.
    """

    def __init__(
        self,
        *,
        folder: Path | None = None,
        address: str = "127.0.0.1",
        api_server_port: int = 0,
        controller_manager: bool = True,
        api_server_flags: tuple[str, ...] = (),
        controller_manager_flags: tuple[str, ...] = (),
    ) -> None:
        self.is_temporary = folder is None
        self.folder = folder or Path(tempfile.mkdtemp(prefix="finetune-control-plane-"))
        self.address = address
        self.port = api_server_port or free_port()
        self.kubeconfig = self.folder / "admin.kubeconfig"
        self.processes: dict[str, Process] = {}
        self._etcd_ports = free_port(), free_port()
        self._with_controller_manager = controller_manager
        self._api_server_flags = api_server_flags
        self._controller_manager_flags = controller_manager_flags
        # A daemon dies with the thread that started it (see `spawn`), so that thread has to live as long as we do.
        self._starter = ThreadPoolExecutor(max_workers=1)

    @property
    def url(self) -> str:
        return f"https://{self.address}:{self.port}"

    def __enter__(self) -> ControlPlane:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def start(self) -> None:
        """Come up; returns when the API answers and, with a controller manager, when pods can be made."""
        self.authority = self._certificates()
        self.start_etcd()
        self.start_api_server()
        if self._with_controller_manager:
            self.start_controller_manager()
            self.wait_for("the default service account", lambda: self._answers(DEFAULT_ACCOUNT))

    def stop(self) -> None:
        """Kill what we started, in reverse order, and remove the folder if we made it up. Safe to call twice."""
        for name in reversed(list(self.processes)):
            self._stop(name)
        self._starter.shutdown()
        if self.is_temporary:
            shutil.rmtree(self.folder, ignore_errors=True)

    def start_etcd(self) -> None:
        client, peer = (f"http://127.0.0.1:{port}" for port in self._etcd_ports)
        flags = ["--name=finetune", f"--data-dir={self.folder / 'etcd'}", "--unsafe-no-fsync", "--log-level=warn"]
        flags += [f"--listen-client-urls={client}", f"--advertise-client-urls={client}"]
        flags += [f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}"]
        self.spawn("etcd", [str(binary("etcd")), *flags, f"--initial-cluster=finetune={peer}"])

    def start_api_server(self) -> None:
        """Start it, or start it again after `stop_api_server`: same address, same data."""
        flags = [*self._api_server_defaults(), *self._api_server_flags]
        self.spawn("kube-apiserver", [str(binary("kube-apiserver")), *flags])
        self.wait_for("the API server", lambda: self._answers("/readyz"))

    def stop_api_server(self) -> None:
        """Connections are refused from here on; the data stays."""
        self._stop("kube-apiserver")

    def start_controller_manager(self) -> None:
        keys = self.authority
        flags = [*kubeconfig_flags(self.folder / "controller-manager.kubeconfig"), "--secure-port=0"]
        flags += [f"--service-account-private-key-file={keys.key('service-accounts')}", "--leader-elect=false"]
        flags += [f"--root-ca-file={keys.certificate('ca')}", "--use-service-account-credentials"]
        # The defaults (20 and 30) are for a busy cluster; here they only slow the start.
        flags += ["--kube-api-qps=300", "--kube-api-burst=600", f"--service-cluster-ip-range={SERVICE_RANGE}"]
        command = [str(binary("kube-controller-manager")), *flags, *self._controller_manager_flags]
        self.spawn("kube-controller-manager", command)

    def stop_controller_manager(self) -> None:
        """Jobs make no pods and nothing is garbage collected from here on."""
        self._stop("kube-controller-manager")

    def kubectl(self, *arguments: str, document: str | None = None) -> str:
        """What kubectl says as admin; `document` is its stdin. ClusterError with its words when it fails."""
        return kubectl(self.kubeconfig, *arguments, document=document)

    def request(self, path: str, *, method: str = "GET", body: object = None) -> bytes:
        """What the API server answers to the admin; a `body` is sent as a JSON merge patch. OSError when it refuses."""
        headers = {"Content-Type": "application/merge-patch+json"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        context = ssl.create_default_context(cafile=self.authority.certificate("ca"))
        context.load_cert_chain(self.authority.certificate("admin"), self.authority.key("admin"))
        no_proxy = urllib.request.ProxyHandler({})
        opener = urllib.request.build_opener(no_proxy, urllib.request.HTTPSHandler(context=context))
        with opener.open(request, timeout=5) as response:
            return bytes(response.read())

    def spawn(self, name: str, command: list[str]) -> None:
        """Start a daemon that the kernel ends with us, however we end."""
        log = self.folder / "log" / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            popen = self._starter.submit(
                subprocess.Popen,
                ["setpriv", "--pdeathsig=KILL", *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            ).result()
        self.processes[name] = Process(popen, log)

    def wait_for(self, what: str, is_true: Callable[[], bool], seconds: float = START_SECONDS) -> None:
        """Wait for a condition; ClusterError with the log when a daemon ends or time is up."""
        deadline = time.monotonic() + seconds
        while not is_true():
            for name, process in self.processes.items():
                if not process.is_alive():
                    raise ClusterError(f"{name} ended while waiting for {what}:\n{tail(process.log)}")
            if time.monotonic() > deadline:
                logs = self.folder / "log"
                raise ClusterError(f"gave up after {seconds:.0f} s waiting for {what}; logs are in {logs}")
            time.sleep(0.05)

    def _stop(self, name: str) -> None:
        if process := self.processes.pop(name, None):
            process.kill()

    def _certificates(self) -> Authority:
        authority = new_authority(self.folder / "pki")
        names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"]
        names = [f"DNS:{name}" for name in (*names, "localhost")]
        addresses = [f"IP:{address}" for address in {"127.0.0.1", self.address, SERVICE_ADDRESS}]
        authority.server("api-server", "kube-apiserver", "system:masters", names + addresses)
        authority.client("admin", "admin", "system:masters")
        authority.client("controller-manager", "system:kube-controller-manager")
        write_kubeconfig(self.kubeconfig, self.url, authority, "admin")
        write_kubeconfig(self.folder / "controller-manager.kubeconfig", self.url, authority, "controller-manager")
        return authority

    def _api_server_defaults(self) -> list[str]:
        keys = self.authority
        flags = [f"--etcd-servers=http://127.0.0.1:{self._etcd_ports[0]}"]
        flags += [f"--service-cluster-ip-range={SERVICE_RANGE}", "--allow-privileged=true"]
        flags += [f"--bind-address={self.address}", f"--advertise-address={self.address}", f"--secure-port={self.port}"]
        flags += [f"--client-ca-file={keys.certificate('ca')}", f"--tls-cert-file={keys.certificate('api-server')}"]
        flags += [f"--tls-private-key-file={keys.key('api-server')}", "--authorization-mode=Node,RBAC"]
        flags += ["--service-account-issuer=https://kubernetes.default.svc.cluster.local"]
        flags += [f"--service-account-key-file={keys.certificate('service-accounts')}"]
        flags += [f"--service-account-signing-key-file={keys.key('service-accounts')}"]
        return [*flags, "--endpoint-reconciler-type=none"] if self.address.startswith("127.") else flags

    def _answers(self, path: str) -> bool:
        try:
            self.request(path)
        except OSError:
            return False
        return True


DEFAULT_ACCOUNT = "/api/v1/namespaces/default/serviceaccounts/default"


def kubeconfig_flags(kubeconfig: Path) -> list[str]:
    """The three flags with which a control plane component is told whom to ask for what, who and whether."""
    return [f"--{use}kubeconfig={kubeconfig}" for use in ("", "authentication-", "authorization-")]


def free_port() -> int:
    """A port that nothing listens on, below the range that the kernel gives to outgoing connections."""
    while True:
        port = random.SystemRandom().randrange(20000, 32000)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port


def tail(log: Path, lines: int = 15) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
