"""A certificate authority and kubeconfigs for a cluster that lives for minutes, made with openssl (3.0 or newer)."""

from __future__ import annotations

import base64
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

from cluster.paths import ClusterError

VALID_DAYS = "365"
# The machine's own openssl.cnf would add extensions that contradict ours.
EMPTY_CONFIG = "[req]\ndistinguished_name = name\n[name]\n"


@dataclass(frozen=True)
class Authority:
    """A folder that holds NAME.crt and NAME.key pairs, all signed by its own `ca`."""

    folder: Path

    def certificate(self, name: str) -> Path:
        return self.folder / f"{name}.crt"

    def key(self, name: str) -> Path:
        return self.folder / f"{name}.key"

    def client(self, name: str, user: str, group: str = "") -> None:
        """Sign a client certificate: `user` and `group` are what the API server will see."""
        subject = f"/O={group}/CN={user}" if group else f"/CN={user}"
        self._sign(name, subject, "clientAuth", "")

    def server(self, name: str, user: str, group: str, alternatives: list[str]) -> None:
        """Sign a certificate that serves for `alternatives`, such as "IP:127.0.0.1", and is a client too."""
        self._sign(name, f"/O={group}/CN={user}", "serverAuth,clientAuth", ",".join(alternatives))

    def _sign(self, name: str, subject: str, usage: str, alternatives: str) -> None:
        extensions = ["basicConstraints=CA:FALSE", "keyUsage=critical,digitalSignature", f"extendedKeyUsage={usage}"]
        if alternatives:
            extensions.append(f"subjectAltName={alternatives}")
        signer = ["-CA", str(self.certificate("ca")), "-CAkey", str(self.key("ca"))]
        self.issue(name, subject, extensions, signer)

    def issue(self, name: str, subject: str, extensions: list[str], signer: list[str]) -> None:
        """One openssl call makes key, request and certificate; without a signer it signs itself."""
        config = self.folder / "openssl.cnf"
        config.write_text(EMPTY_CONFIG)
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        command += ["-config", str(config)]
        command += ["-days", VALID_DAYS, "-subj", subject, *signer]
        command += ["-keyout", str(self.key(name)), "-out", str(self.certificate(name))]
        for extension in extensions:
            command += ["-addext", extension]
        openssl(command)


def openssl(command: list[str]) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        raise ClusterError("openssl is missing: apt-get install openssl") from None
    except subprocess.CalledProcessError as failed:
        raise ClusterError(f"openssl failed (3.0 or newer is needed): {failed.stderr.strip()[-500:]}") from None


def new_authority(folder: Path) -> Authority:
    """An authority with a fresh root and a key, `service-accounts`, that signs service account tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    authority = Authority(folder)
    roots = ["basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign,digitalSignature"]
    for name in ("ca", "service-accounts"):
        authority.issue(name, f"/CN=finetune-{name}", roots, [])
    return authority


def write_kubeconfig(path: Path, server: str, authority: Authority, name: str) -> None:
    """Write a kubeconfig (JSON is YAML) that acts as client certificate `name`; it stands alone, in one file."""
    user = {"client-certificate-data": encoded(authority.certificate(name))}
    user["client-key-data"] = encoded(authority.key(name))
    cluster = {"server": server, "certificate-authority-data": encoded(authority.certificate("ca"))}
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "finetune", "cluster": cluster}],
        "users": [{"name": name, "user": user}],
        "contexts": [{"name": "finetune", "context": {"cluster": "finetune", "user": name}}],
        "current-context": "finetune",
    }
    path.write_text(json.dumps(document, indent=1))
    path.chmod(0o600)


def encoded(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
