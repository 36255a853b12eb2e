"""Theory: an https:// source is read from the public internet and from what the platform team allows, from nowhere
else: not through a redirection, not by another spelling of an address, not by a name that changes its mind; and it is
neither larger nor slower than it may be.
"""

import os
import re
import select
import socket
import ssl
import struct
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

import servers
from finetune_api.reasons import Reason
from finetune_api.run import Downloads
from finetune_trainer.runtime.failures import Failure
from finetune_trainer.storage import hub, web

BODY = b'{"text": "a"}\n'
ALLOWED = Downloads(allow=["localhost"])


@pytest.fixture
def answers() -> dict[str, servers.Answer]:
    return {"/a.jsonl": servers.Answer(BODY)}


@pytest.fixture
def server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: dict[str, servers.Answer]
) -> Iterator[servers.Server]:
    """A server whose certificate is trusted, and no proxy."""
    for name in ("https_proxy", "HTTPS_PROXY", "no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(hub, "PAUSES", (0.0, 0.0))
    folder = tmp_path / "tls"
    folder.mkdir()
    with servers.https(answers, folder, "data.invalid") as running:
        monkeypatch.setenv("SSL_CERT_FILE", str(folder / "cert.pem"))
        yield running


def place(uri: str) -> hub.Place:
    return hub.Place(uri, "spec.dataset.train[0]", Reason.DATASET_UNAVAILABLE)


def fetched(uri: str, limits: Downloads, folder: Path) -> bytes:
    return web.download(place(uri), limits, folder / "downloads").read_bytes()


def refusal(uri: str, limits: Downloads, folder: Path) -> Failure:
    with pytest.raises(Failure) as caught:
        fetched(uri, limits, folder)
    assert caught.value.message.startswith(f"spec.dataset.train[0]: {uri} ")
    assert not list((folder / "downloads").iterdir()), "something was left"
    return caught.value


# --- which addresses ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0", "224.0.0.1", "240.0.0.1",
     "255.255.255.255", "100.64.0.1", "100.100.100.200", "192.0.0.192", "198.18.0.1", "168.63.129.16",
     "::", "::1", "fe80::1", "fd00:ec2::254", "fec0::1", "ff02::1", "2001:db8::1", "2001::1", "::ffff:10.0.0.1",
     "::ffff:169.254.169.254", "::127.0.0.1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "2002:7f00:1::", "100::1"],
)  # fmt: skip
def test_an_address_that_is_no_public_one(address: str) -> None:
    assert not web.is_public(ip_address(address))


@pytest.mark.parametrize(
    "address", ["1.1.1.1", "8.8.8.8", "93.184.216.34", "2606:4700::1111", "64:ff9b::808:808", "::ffff:8.8.8.8"]
)
def test_a_public_address(address: str) -> None:
    assert web.is_public(ip_address(address))


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.1", "2130706433", "0x7f.1", "[::ffff:127.0.0.1]"])
def test_a_private_server_is_not_even_connected_to(tmp_path: Path, server: servers.Server, host: str) -> None:
    """However its address is spelled; the message says what the address is and who may allow it."""
    uri = f"{server.url.replace('localhost', host)}/a.jsonl"
    failure = refusal(uri, Downloads(), tmp_path)
    assert (failure.reason, failure.code) == ("DatasetUnavailable", 66)
    assert "127.0.0.1, not a public address" in failure.message.replace("::ffff:7f00:1", "127.0.0.1")
    assert "trainer.downloads.allow of the chart, --download-allow" in failure.message
    assert server.seen == []


@pytest.mark.parametrize("allow", ["localhost", "LocalHost", "*", "127.0.0.0/8", "127.0.0.1"])
def test_what_the_platform_team_allows_is_read(tmp_path: Path, server: servers.Server, allow: str) -> None:
    assert fetched(f"{server.url}/a.jsonl", Downloads(allow=[allow]), tmp_path) == BODY


@pytest.mark.parametrize("allow", ["10.0.0.0/8", "*.localhost", "host", "::1"])
def test_what_it_does_not_mean_stays_closed(tmp_path: Path, server: servers.Server, allow: str) -> None:
    refusal(f"{server.url}/a.jsonl", Downloads(allow=[allow]), tmp_path)


@pytest.mark.parametrize("entry", ["10.0.0.0/33", "https://data.example.com", "", "a b", "*.", "a/b"])
def test_an_entry_that_means_nothing_is_refused(entry: str) -> None:
    with pytest.raises(ValidationError, match="neither a host"):
        Downloads(allow=[entry])


def test_a_name_is_resolved_once(tmp_path: Path, server: servers.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name service that says something else the second time is not asked a second time; and of several addresses
    only those that are allowed are tried."""
    asked = []
    real = socket.getaddrinfo

    def answer(host: str, port: int, *arguments: Any, **options: Any) -> Any:
        if host != "localhost":
            return real(host, port, *arguments, **options)
        asked.append(host)
        found = [] if len(asked) > 1 else ["10.255.255.1", "127.0.0.1"]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    assert fetched(f"{server.url}/a.jsonl", Downloads(allow=["127.0.0.1"]), tmp_path) == BODY
    assert asked == ["localhost"]


# --- redirections ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("http://example.com/a.jsonl?signature=x", "redirects to http://example.com/a.jsonl: only https is followed"),
        ("https://127.0.0.1:{port}/a.jsonl", "is refused: 127.0.0.1 is 127.0.0.1, not a public address"),
        ("https://169.254.169.254/latest/meta-data", "is refused: 169.254.169.254 is 169.254.169.254, not a public"),
        ("https://[fd00:ec2::254]/latest", "is refused: fd00:ec2::254 is fd00:ec2::254, not a public address"),
        ("file:///etc/passwd", "cannot be read (HTTP 302)"),
        ("https://example.com:port/", "is no address on the web"),
    ],
)
def test_a_redirection_leads_no_further_than_a_uri(
    tmp_path: Path, server: servers.Server, answers: dict[str, servers.Answer], target: str, message: str
) -> None:
    where = target.replace("{port}", server.url.rpartition(":")[2])
    answers["/go"] = servers.Answer(code=302, headers={"Location": where})
    assert f" {message}" in refusal(f"{server.url}/go", ALLOWED, tmp_path).message
    assert len(server.seen) == 1


def test_a_circle_of_redirections_ends(
    tmp_path: Path, server: servers.Server, answers: dict[str, servers.Answer]
) -> None:
    answers["/go"] = servers.Answer(code=302, headers={"Location": "/go"})
    assert "cannot be read (HTTP 302)" in refusal(f"{server.url}/go", ALLOWED, tmp_path).message


# --- size, time and names -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [servers.Answer(b"x" * 101), servers.Answer(b"65\r\n" + b"x" * 101 + b"\r\n0\r\n\r\n", headers={
        "Transfer-Encoding": "chunked"})],
    ids=["announced", "unannounced"],
)  # fmt: skip
def test_a_download_is_not_larger_than_it_may_be(
    tmp_path: Path, server: servers.Server, answers: dict[str, servers.Answer], answer: servers.Answer
) -> None:
    answers["/big.jsonl"] = answer
    failure = refusal(f"{server.url}/big.jsonl", Downloads(allow=["*"], max_bytes=100), tmp_path)
    assert "is larger than the 100 bytes that a download may have (trainer.downloads.maxBytes" in failure.message
    assert not failure.transient


@pytest.mark.parametrize("part", ["head", "body"])
def test_a_download_is_not_slower_than_it_may_be(tmp_path: Path, server: servers.Server, part: str) -> None:
    """A server that sends a little now and then would keep any timeout of a single read from coming."""

    class Dripping(servers.Quiet):
        def do_GET(self) -> None:
            self.wfile.write(b"HTTP/1.1 200 OK\r\n" + (b"\r\n" if part == "body" else b""))
            try:
                while not select.select([self.connection], [], [], 0.05)[0]:
                    self.wfile.write(b"x")
            except OSError:
                pass

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "tls" / "cert.pem", tmp_path / "tls" / "key.pem")
    with servers.serving(Dripping, context) as slow:
        failure = refusal(f"{slow.url}/slow.jsonl", Downloads(allow=["*"], timeout_seconds=1), tmp_path)
    assert "took longer than the 1 s that a download may take (trainer.downloads.timeoutSeconds" in failure.message
    assert not failure.transient


def silence(connection: ssl.SSLSocket) -> None:
    connection.recv(1)


def reset(connection: ssl.SSLSocket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    os.close(connection.detach())


def hang_up(connection: ssl.SSLSocket) -> None:
    """As a server or a proxy that ends in order: TLS says that nothing is to come."""
    connection.unwrap()


def drop(connection: ssl.SSLSocket) -> None:
    """Without a word of TLS."""
    connection.shutdown(socket.SHUT_WR)


def babble(connection: ssl.SSLSocket) -> None:
    socket.socket.send(connection, b"this is no TLS")


@contextmanager
def answering(folder: Path, answer: Callable[[servers.Quiet], None]) -> Iterator[servers.Server]:
    """A server with TLS, of whose answers nothing is said for it."""

    class Handler(servers.Quiet):
        def do_GET(self) -> None:
            answer(self)

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "tls" / "cert.pem", folder / "tls" / "key.pem")
    with servers.serving(Handler, context) as serving:
        yield serving


@pytest.mark.parametrize("part", ["", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"])
@pytest.mark.parametrize(
    ("then", "told"),
    [
        (silence, "cannot be reached: .*timed out"),
        (reset, "reset by peer|closed connection|EOF occurred"),
        (babble, "SSL"),
    ],
)
def test_a_connection_that_breaks_may_be_tried_again(
    tmp_path: Path, server: servers.Server, monkeypatch: pytest.MonkeyPatch, part: str, then: Any, told: str
) -> None:
    """Whenever it does: before the answer, in its head or in its body."""
    monkeypatch.setattr(web, "PATIENCE", 0.3)
    asked = []

    def breaks(request: servers.Quiet) -> None:
        asked.append(request.path)
        request.wfile.write(part.encode())
        then(request.connection)

    with answering(tmp_path, breaks) as breaking:
        failure = refusal(f"{breaking.url}/a.jsonl", ALLOWED, tmp_path)
    assert re.search(told, failure.message)
    assert (failure.reason, failure.code, len(asked)) == ("DatasetUnavailable", 70, 3)


@pytest.fixture(params=["this Python", "an older one"])
def any_python(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Older ones let OpenSSL overlook an end that TLS does not tell, unless they are told otherwise."""
    made = ssl.create_default_context

    def lenient() -> ssl.SSLContext:
        context = made()
        context.options |= ssl.OP_IGNORE_UNEXPECTED_EOF
        return context

    if request.param == "an older one":
        monkeypatch.setattr(ssl, "create_default_context", lenient)


@pytest.mark.parametrize(
    ("head", "then"),
    [
        ("HTTP/1.1 200 OK\r\n", drop),
        ("HTTP/1.1 200 OK\r\n", hang_up),
        ("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n", hang_up),
        ('HTTP/1.1 200 OK\r\n\r\n{"text":', drop),
    ],
)
def test_an_answer_that_is_cut_off_is_no_file(
    tmp_path: Path, server: servers.Server, any_python: None, monkeypatch: pytest.MonkeyPatch, head: str, then: Any
) -> None:
    """Though it says no length: an end in its head, and one that TLS does not tell, are no ends of a file."""
    monkeypatch.setattr(web, "PATIENCE", 1)

    def ends(request: servers.Quiet) -> None:
        request.wfile.write(head.encode())
        then(request.connection)

    with answering(tmp_path, ends) as ending:
        failure = refusal(f"{ending.url}/a.jsonl", ALLOWED, tmp_path)
    assert (failure.reason, failure.code) == ("DatasetUnavailable", 70)


def test_an_answer_without_a_length_ends_where_tls_says(tmp_path: Path, server: servers.Server) -> None:
    """As servers of HTTP/1.0 send what they make on the way."""

    def ends(request: servers.Quiet) -> None:
        request.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n" + BODY)
        hang_up(request.connection)

    with answering(tmp_path, ends) as ending:
        assert fetched(f"{ending.url}/a.jsonl", ALLOWED, tmp_path) == BODY


@pytest.mark.parametrize(
    ("path", "name"),
    [("/a.jsonl?b=c", "a.jsonl"), ("/", "data"), ("/%2e%2e", "data"), ("/..%2f..%2fetc%2fpasswd", "passwd"),
     ("/a%00b", "data"), ("/%1b[2J", "data"), ("/x/" + "a" * 300 + ".jsonl", "a" * 94 + ".jsonl"),
     ("/gr%C3%B6%C3%9Fe.csv", "größe.csv")],
)  # fmt: skip
def test_a_server_does_not_choose_where_a_file_lies(
    tmp_path: Path, server: servers.Server, answers: dict[str, servers.Answer], path: str, name: str
) -> None:
    answers[path] = servers.Answer(BODY, headers={"Content-Disposition": 'attachment; filename="../../x"'})
    file = web.download(place(f"{server.url}{path}"), ALLOWED, tmp_path / "downloads")
    assert file == tmp_path / "downloads" / name
    assert file.read_bytes() == BODY


# --- a proxy --------------------------------------------------------------------------------------------------------


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch, server: servers.Server) -> Iterator[servers.Server]:
    """It knows `data.invalid` and nothing else."""
    with servers.proxy({"data.invalid:443": server.port}) as running:
        monkeypatch.setenv("HTTPS_PROXY", running.url)
        yield running


def test_a_proxy_connects_where_one_is_named(tmp_path: Path, server: servers.Server, proxy: servers.Server) -> None:
    assert fetched("https://data.invalid/a.jsonl", Downloads(), tmp_path) == BODY
    assert proxy.seen == ["data.invalid:443"]


@pytest.mark.parametrize("exceptions", ["0.0.0.0", "0.0.0.0/8", "x.example, 0.0.0.0/8"])
def test_no_proxy_is_read_as_the_operator_reads_it(
    tmp_path: Path, server: servers.Server, proxy: servers.Server, monkeypatch: pytest.MonkeyPatch, exceptions: str
) -> None:
    """Ranges included, and an address that ends like another is not that one."""
    uri = f"https://0.0.0.0:{server.port}/a.jsonl"
    allowed = Downloads(allow=["0.0.0.0"])
    monkeypatch.setenv("NO_PROXY", exceptions)
    assert fetched(uri, allowed, tmp_path) == BODY
    assert proxy.seen == []

    monkeypatch.setenv("NO_PROXY", "0.0")
    refusal(uri, allowed, tmp_path / "again")
    assert set(proxy.seen) == {f"0.0.0.0:{server.port}"}


def test_a_proxys_password_is_the_proxys_alone(
    tmp_path: Path,
    server: servers.Server,
    answers: dict[str, servers.Answer],
    proxy: servers.Server,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A server that is reached without it, after a redirection, is not told."""
    monkeypatch.setenv("HTTPS_PROXY", proxy.url.replace("://", "://user:p%2Fw@"))
    monkeypatch.setenv("NO_PROXY", "0.0.0.0/8")
    there = f"https://0.0.0.0:{server.port}"
    answers["/go"] = servers.Answer(code=302, headers={"Location": f"{there}/a.jsonl"})
    assert fetched("https://data.invalid/go", Downloads(allow=["0.0.0.0"]), tmp_path) == BODY
    assert proxy.passwords == [f"Basic {b64encode(b'user:p/w').decode()}"]
    assert server.passwords == [None, None]


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("http://user:SEC/RET@127.0.0.1:1", "write http://user:password@host:port"),
        ("socks5://user:SECRET@127.0.0.1:1", "the proxy socks5://127.0.0.1:1 cannot be used"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_told_without_its_password(
    tmp_path: Path, server: servers.Server, monkeypatch: pytest.MonkeyPatch, address: str, told: str
) -> None:
    """Of files and of the hub, whose client quotes what it cannot read."""
    monkeypatch.setenv("HTTPS_PROXY", address)
    where = place("hf://team/data")
    with pytest.raises(Failure) as caught:
        hub.repository(where, "dataset", None)
    for failure in (caught.value, refusal("https://data.invalid/a.jsonl", Downloads(), tmp_path)):
        assert "cannot be reached: the proxy" in failure.message
        assert told in failure.message
        assert (failure.reason, "SEC" in failure.message) == ("DatasetUnavailable", False)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "169.254.169.254", "2130706433", "[::1]"])
def test_a_proxy_is_not_asked_for_what_is_known_to_be_private(tmp_path: Path, proxy: servers.Server, host: str) -> None:
    assert "not a public address" in refusal(f"https://{host}/a.jsonl", Downloads(), tmp_path).message
    assert proxy.seen == []


def test_a_name_that_only_the_proxy_knows_is_the_proxys_business(tmp_path: Path, proxy: servers.Server) -> None:
    assert "cannot be reached: " in refusal("https://other.invalid/a.jsonl", Downloads(), tmp_path).message
    assert set(proxy.seen) == {"other.invalid:443"}
