"""Servers on loopback: the part of the Hugging Face Hub that its client asks for, and files over https."""

import contextlib
import hashlib
import json
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Repository:
    """A repository of the fake hub; `token` is the one that may read it."""

    files: dict[str, bytes]
    gated: bool = False
    token: str | None = None


@dataclass
class Answer:
    """What the https server says at a path; `failures` are HTTP codes that it says first."""

    body: bytes = b""
    code: int = 200
    token: str | None = None
    failures: list[int] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)


@contextmanager
def hub(repositories: dict[str, Repository], context: ssl.SSLContext | None = None) -> Iterator["Server"]:
    """A hub with `models/org/name` and `datasets/org/name`, each with one branch, main, at COMMIT; with a `context`
    over TLS."""

    class Handler(Quiet):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            self.seen.append(f"{self.command} {self.path}")
            parts = unquote(urlsplit(self.path).path).strip("/").split("/")
            about = parts[0] == "api"
            kind = parts[1] if about else "datasets" if parts[0] == "datasets" else "models"
            parts = parts[2:] if about else parts[1:] if parts[0] == "datasets" else parts
            found = repositories.get(f"{kind}/{'/'.join(parts[:2])}")
            rest = parts[2:]
            if found is None or (found.token and self.headers.get("Authorization") != f"Bearer {found.token}"):
                code = "GatedRepo" if found and found.gated else "RepoNotFound"
                return self.say(401, b"", {"X-Error-Code": code, "X-Error-Message": "no"})
            revision = rest[1] if len(rest) > 1 else "main"
            if revision not in ("main", COMMIT):
                return self.say(404, b"", {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "no"})
            if about:
                return self.say(200, self.page("/".join(parts[:2]), found), {"Content-Type": "application/json"})
            content = found.files["/".join(rest[2:])]
            return self.say(200, content, {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT})

        def page(self, name: str, found: Repository) -> bytes:
            files = [{"rfilename": path, "size": len(content)} for path, content in found.files.items()]
            return json.dumps({"id": name, "sha": COMMIT, "siblings": files}).encode()

    with serving(Handler, context) as server:
        yield server


@contextmanager
def https(answers: dict[str, Answer], folder: Path, *names: str) -> Iterator["Server"]:
    """A server of files over TLS, for localhost and these names; its certificate is `folder`/cert.pem."""

    class Handler(Quiet):
        def do_GET(self) -> None:
            self.seen.append(f"{self.path} {self.headers.get('Authorization')}")
            self.passwords.append(self.headers.get("Proxy-Authorization"))
            answer = answers.get(self.path, Answer(code=404))
            if answer.failures:
                return self.say(answer.failures.pop(0), b"", {})
            if answer.token and self.headers.get("Authorization") != f"Bearer {answer.token}":
                return self.say(401, b"", {})
            return self.say(answer.code, answer.body, answer.headers)

    with serving(Handler, certified(folder, "localhost", *names)) as server:
        yield server


def certified(folder: Path, *names: str) -> ssl.SSLContext:
    """TLS with a certificate for 127.0.0.1, 0.0.0.0 and these names that nobody but `folder`/cert.pem vouches for."""
    known = ",".join(["IP:127.0.0.1", "IP:0.0.0.0", *(f"DNS:{name}" for name in names)])
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    command += ["-days", "2", "-subj", f"/CN={names[0]}", "-addext", f"subjectAltName={known}"]
    files = ["-keyout", folder / "key.pem", "-out", folder / "cert.pem"]
    subprocess.run([*command, *files], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return context


@contextmanager
def proxy(places: dict[str, int]) -> Iterator["Server"]:
    """A forward proxy: it alone knows at which local port the hosts of `places` (`name:443`) are."""

    class Handler(Quiet):
        def do_CONNECT(self) -> None:
            self.seen.append(self.path)
            self.passwords.append(self.headers.get("Proxy-Authorization"))
            if self.path not in places:
                self.say(403, b"", {})
                return
            with socket.create_connection(("127.0.0.1", places[self.path])) as there:
                self.send_response(200)
                self.end_headers()
                back = threading.Thread(target=_pump, args=(there, self.connection), daemon=True)
                back.start()
                _pump(self.connection, there)
                back.join()
            self.close_connection = True

    with serving(Handler) as server:
        yield server


def _pump(source: socket.socket, target: socket.socket) -> None:
    """Pass on what comes until it ends."""
    with contextlib.suppress(OSError):
        while block := source.recv(65536):
            target.sendall(block)
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


class Quiet(BaseHTTPRequestHandler):
    seen: list[str]
    passwords: list[str | None]

    def say(self, code: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@dataclass
class Server:
    """A running server: its address, the requests that it has seen, and what it was told as a proxy with each."""

    url: str
    seen: list[str]
    passwords: list[str | None]

    @property
    def port(self) -> int:
        return urlsplit(self.url).port or 0


@contextmanager
def serving(handler: type[Quiet], context: ssl.SSLContext | None = None) -> Iterator[Server]:
    handler.seen, handler.passwords = [], []
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        scheme = "http" if context is None else "https"
        yield Server(f"{scheme}://localhost:{server.server_address[1]}", handler.seen, handler.passwords)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
