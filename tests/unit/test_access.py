"""How the API server is reached: in a cluster never through a proxy, else through the one that kubectl would take.

The API server, the proxy and the service account are real; 0.0.0.0 is this machine, and no loopback address to a proxy.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cluster.certificates import Authority, new_authority
from finetune_cli import cluster as cli
from finetune_operator.cluster import Kind, NoCluster, connect

PODS = Kind("v1", "pods")
VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "KUBECONFIG")


class Server:
    """Answers every request with an empty list, as an API server or as a proxy in front of one."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.asked: list[str] = []
        self.tokens: list[str] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.asked.append(self.path)
                server.tokens.append(self.headers.get("Authorization", ""))
                body = json.dumps({"metadata": {"resourceVersion": "1"}, "items": []}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_CONNECT(self) -> None:
                server.asked.append(self.path)
                self.send_error(502)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("0.0.0.0", 0), Handler)
        self._server.daemon_threads = True
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    authority = new_authority(tmp_path_factory.mktemp("authority"))
    authority.server("server", "server", "servers", ["IP:0.0.0.0"])
    return authority


@pytest.fixture
def server(authority: Authority) -> Iterator[Server]:
    """An API server with TLS."""
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(authority.certificate("server"), authority.key("server"))
    running = Server(tls)
    yield running
    running.stop()


@pytest.fixture
def plain() -> Iterator[Server]:
    """An API server without TLS, to which a proxy passes whole requests on."""
    running = Server()
    yield running
    running.stop()


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    running = Server()
    yield running
    running.stop()


@pytest.fixture
def account(authority: Authority, tmp_path: Path) -> Path:
    (tmp_path / "token").write_text("first\n")
    (tmp_path / "ca.crt").write_bytes(authority.certificate("ca").read_bytes())
    return tmp_path


def kubeconfig(folder: Path, server: str, **cluster: str) -> str:
    named = {"name": "c", "cluster": {"server": server, **cluster}}
    context = {"name": "c", "context": {"cluster": "c", "user": "u"}}
    users = [{"name": "u", "user": {"token": "hers"}}]
    parts = {"clusters": [named], "contexts": [context], "users": users, "current-context": "c"}
    file = folder / "kubeconfig"
    file.write_text(json.dumps({"apiVersion": "v1", "kind": "Config", **parts}))
    return str(file)


def ask(environment: dict[str, str], *accounts: Path, then: Any = lambda: None) -> None:
    """List pods, do `then`, and list them again."""

    async def scenario() -> None:
        cluster = await connect(environment, *accounts)
        try:
            await cluster.find(PODS, "team")
            then()
            await cluster.find(PODS, "team")
        finally:
            await cluster.close()

    asyncio.run(scenario())


def test_a_pod_reaches_its_own_api_server_without_a_proxy(
    server: Server, proxy: Server, account: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the environment says; each request bears the token of its moment."""
    environment = {
        "KUBERNETES_SERVICE_HOST": "0.0.0.0",
        "KUBERNETES_SERVICE_PORT": str(server.port),
        "HTTPS_PROXY": f"http://0.0.0.0:{proxy.port}",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    ask(environment, account, then=lambda: (account / "token").write_text("second"))

    assert len(server.asked) == 2
    assert server.tokens == ["Bearer first", "Bearer second"]
    assert proxy.asked == []


def test_a_pod_without_a_service_account_is_told_so(account: Path) -> None:
    """No traceback: what is missing, and what sets it."""
    with pytest.raises(NoCluster, match="automountServiceAccountToken"):
        ask({"KUBERNETES_SERVICE_HOST": "0.0.0.0"}, account / "none")


@pytest.mark.parametrize("exceptions", ["", "10.0.0.0/8", "0.0.0.0:1", "0.0.0.0/8", "*", "0.0.0.0"])
def test_elsewhere_the_environments_proxy_is_taken_and_its_exceptions(
    plain: Server, proxy: Server, tmp_path: Path, exceptions: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranges of addresses count, for the operator and for the command line alike."""
    config = kubeconfig(tmp_path, f"http://0.0.0.0:{plain.port}")
    environment = {"HTTP_PROXY": f"http://0.0.0.0:{proxy.port}", "NO_PROXY": exceptions, "KUBECONFIG": config}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)

    ask(environment)
    cli.connect(None, None).pods("team", "")

    is_excepted = exceptions in ("0.0.0.0/8", "*", "0.0.0.0")
    assert (len(plain.asked), len(proxy.asked)) == ((3, 0) if is_excepted else (0, 3))
    assert set(plain.tokens + proxy.tokens) == {"Bearer hers"}


def test_a_kubeconfigs_own_proxy_is_taken_before_any_other(
    plain: Server, proxy: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`proxy-url` knows no exceptions."""
    config = kubeconfig(tmp_path, f"http://0.0.0.0:{plain.port}", **{"proxy-url": f"http://0.0.0.0:{proxy.port}"})
    environment = {"HTTP_PROXY": "http://0.0.0.0:1", "NO_PROXY": "*", "KUBECONFIG": config}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)

    ask(environment)
    cli.connect(None, None).pods("team", "")

    assert len(proxy.asked) == 3
    assert plain.asked == []


@pytest.mark.parametrize(
    ("text", "words"),
    [("", "no cluster to talk to"), ("[]", "no cluster to talk to"), ("a: [", "no cluster to talk to")],
)
def test_a_kubeconfig_that_says_nothing_is_told_so(tmp_path: Path, text: str, words: str) -> None:
    """Empty, a list or no YAML: no traceback."""
    (tmp_path / "kubeconfig").write_text(text)
    with pytest.raises(NoCluster, match=words):
        ask({"KUBECONFIG": str(tmp_path / "kubeconfig")})


def test_a_proxy_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    """SOCKS needs a library that we do not bring."""
    config = kubeconfig(tmp_path, "https://10.0.0.1", **{"proxy-url": "socks5://10.0.0.2:1080"})
    with pytest.raises(NoCluster, match=r"socks5://10\.0\.0\.2:1080"):
        ask({"KUBECONFIG": config})


def test_a_proxys_password_is_not_told(tmp_path: Path) -> None:
    """Neither of a proxy that cannot be used, nor of one whose address cannot be read."""
    for proxy in ("socks5://user:SECRET@10.0.0.2:1080", "http://user:SEC/RET@10.0.0.2:3128"):
        config = kubeconfig(tmp_path, "https://10.0.0.1", **{"proxy-url": proxy})
        with pytest.raises(NoCluster) as caught:
            ask({"KUBECONFIG": config})
        assert "SEC" not in str(caught.value)


def test_the_official_client_is_imported_for_a_kubeconfig_alone() -> None:
    """It takes longer than all the rest of the operator's start, and kopf would import it for nothing."""
    code = (
        "import sys, finetune_operator.main;"
        "print('kubernetes' in sys.modules);"
        "import kubernetes.aio.config; print('kubernetes' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


def test_no_type_of_the_contract_is_built_before_it_is_used() -> None:
    """A default that is an object of the contract would build its type, and those below it, at each start."""
    code = (
        "import finetune_operator.main; from finetune_api.schema import ApiModel;"
        "left = [ApiModel];"
        "[left.extend(one.__subclasses__()) for one in left];"
        "print(len(left) > 50, [one.__name__ for one in left if one.__pydantic_complete__])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True []"
