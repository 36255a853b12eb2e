"""Files of https servers: which addresses a job may reach, through which redirects, how much it may take and how long.

It decides what is refused before a byte is sent. A name is resolved once, and the connection goes to the address that
was looked at: another answer of the name service cannot come in between. Behind a proxy (HTTPS_PROXY) the proxy
resolves and connects: here, what is an address or resolves on this side is looked at all the same, and the rest is the
proxy's to refuse.
"""

import contextlib
import http.client
import os
import socket
import ssl
import string
import threading
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import partial
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from finetune_api import uris
from finetune_api.proxies import PORTS, ProxyError, over_http, proxy_for
from finetune_api.reasons import Reason
from finetune_api.run import Downloads
from finetune_trainer.storage.hub import PATIENCE, Place, answered, retried, watched

BLOCK = 1024 * 1024
LONGEST_NAME = 100
"""Characters of a file's name that are kept: the last ones, which say its format."""
SETTING = "trainer.downloads.{} of the chart, --download-{} of the operator"

Address = IPv4Address | IPv6Address

SPECIAL = tuple(map(ip_network, ("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32")))
"""Not public, whatever `is_global` of this Python says: protocol assignments (some clouds have their metadata there),
6to4 relays, and the platform address of Azure's hosts."""
UNICAST = IPv6Network("2000::/3")
TRANSLATED = (IPv6Network("64:ff9b::/96"), IPv6Network("::/96"))
"""IPv6 prefixes whose last four bytes are an IPv4 address: NAT64 (RFC 6052), and the old compatible form."""


def download(where: Place, limits: Downloads, folder: Path) -> Path:
    """Fetch an https:// URL into `folder` under its own name; returns the file, which is whole when it exists."""
    target = folder / _name(where.uri)
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        retried(where, lambda: _download(where, limits, target))
    return target


def is_public(address: Address) -> bool:
    """Whether it is an address of the public internet: of no host, network, link or group of its own."""
    if isinstance(address, IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and any(address in network for network in TRANSLATED):
            inner = IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is None:
            return address in UNICAST and address.is_global
        address = inner
    return address.is_global and not address.is_multicast and not any(address in network for network in SPECIAL)


class Gate:
    """What one download may reach. Raises Failure for the rest."""

    def __init__(self, where: Place, limits: Downloads) -> None:
        self._where, self._limits = where, limits
        self._late_at = time.monotonic() + limits.timeout_seconds
        self._sockets: list[socket.socket] = []

    @property
    def is_late(self) -> bool:
        return time.monotonic() >= self._late_at

    def connected(self, host: str, port: int) -> socket.socket:
        """A connection to an address of `host` that may be reached."""
        found = _resolved(host, port)
        open_to_us = [address for address in found if self._may_reach(host, address)]
        if not open_to_us:
            raise self._refused(host, found)
        for address in open_to_us[:-1]:
            with contextlib.suppress(OSError):
                return self._connected(address, port)
        return self._connected(open_to_us[-1], port)

    def check_name(self, host: str) -> None:
        """The same for a host that a proxy connects to: as far as it can be known here."""
        try:
            found = _resolved(host, 443)
        except OSError:
            found = []  # only the proxy can resolve it
        barred = [address for address in found if not self._may_reach(host, address)]
        if barred:
            raise self._refused(host, barred)

    def check_redirect(self, url: str) -> None:
        if urlsplit(url).scheme != "https":
            shown = url.partition("?")[0]  # what follows can be a signature that opens the file
            raise self._where.failure(f"redirects to {shown}: only https is followed")

    def check_size(self, size: int) -> None:
        most = self._limits.max_bytes
        if size > most:
            told = SETTING.format("maxBytes", "max-bytes")
            raise self._where.failure(f"is larger than the {most:,} bytes that a download may have ({told})")

    def check_time(self) -> None:
        if self.is_late:
            seconds, told = self._limits.timeout_seconds, SETTING.format("timeoutSeconds", "timeout")
            raise self._where.failure(f"took longer than the {seconds:,} s that a download may take ({told})")

    @contextlib.contextmanager
    def clock(self) -> Iterator[None]:
        """Cut the connection when the time is up: a server that sends a byte now and then never ends a read."""

        def cut() -> None:
            for each in self._sockets:
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(each, socket.SHUT_RDWR)  # below TLS, which another thread reads

        timer = threading.Timer(self._limits.timeout_seconds, cut)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def follow(self, connection: socket.socket) -> None:
        """Have the clock cut this one too."""
        self._sockets.append(connection)

    def _connected(self, address: Address, port: int) -> socket.socket:
        return socket.create_connection((str(address), port), PATIENCE)

    def _may_reach(self, host: str, address: Address) -> bool:
        return is_public(address) or any(_allows(entry, host, address) for entry in self._limits.allow)

    def _refused(self, host: str, addresses: list[Address]) -> Exception:
        why = f"is refused: {host} is {', '.join(map(str, addresses))}, not a public address"
        told = SETTING.format("allow", "allow")
        return self._where.failure(f"{why}; the platform team can allow it ({told}, and of `finetune run`)")


class _Connection(http.client.HTTPSConnection):
    def __init__(self, *arguments: Any, gate: Gate, tls: ssl.SSLContext, **options: Any) -> None:
        super().__init__(*arguments, context=tls, **options)
        self._gate, self._tls, self._behind_proxy = gate, tls, ""

    def set_tunnel(self, host: str, port: int | None = None, headers: Any = None) -> None:
        super().set_tunnel(host, port, headers)
        self._behind_proxy = urlsplit(f"//{host}").hostname or host

    def connect(self) -> None:
        if self._behind_proxy:
            self._gate.check_name(self._behind_proxy)
            super().connect()
            _tell_every_end(self.sock)
            self._gate.follow(self.sock)
        else:
            raw = self._gate.connected(self.host, self.port)
            self.sock = tls = self._tls.wrap_socket(raw, server_hostname=self.host, do_handshake_on_connect=False)
            _tell_every_end(tls)
            self._gate.follow(self.sock)
            tls.do_handshake()


class _Handler(urllib.request.HTTPSHandler):
    """Requests through the proxy that the operator would take: urllib's own handler, which is left out, knows no ranges
    in NO_PROXY, and would send the proxy's password on to where a redirection leads."""

    def __init__(self, gate: Gate) -> None:
        tls = ssl.create_default_context()  # SSL_CERT_FILE and SSL_CERT_DIR name other authorities
        # Python 3.11.2, which Debian 12 has, takes an end that TLS does not tell for one that it does; 3.11.7 does not.
        tls.options &= ~getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)
        super().__init__(context=tls)
        self._connection = partial(_Connection, gate=gate, tls=tls)

    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        proxy = proxy_for(request.full_url, os.environ)
        if proxy is not None:
            _send_through(over_http(proxy), request)
        return self.do_open(self._connection, request)


def _tell_every_end(tls: Any) -> None:
    """Where an answer says no length, only TLS's own end tells a whole one from one that was cut off."""
    tls.suppress_ragged_eofs = False


def _send_through(proxy: str, request: urllib.request.Request) -> None:
    parts = urlsplit(proxy)
    if parts.username:
        user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        request.add_unredirected_header("Proxy-Authorization", f"Basic {b64encode(user.encode()).decode()}")
    host = parts.netloc.rpartition("@")[2]
    request.set_proxy(host if parts.port else f"{host}:{PORTS[parts.scheme]}", parts.scheme)


class _Redirects(urllib.request.HTTPRedirectHandler):
    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        self._gate.check_redirect(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _download(where: Place, limits: Downloads, target: Path) -> None:
    draft, gate = target.with_name(f"{target.name}.part"), Gate(where, limits)
    try:
        with gate.clock():
            _transfer(where, gate, draft)
        draft.replace(target)
    except ProxyError as error:
        raise where.failure(f"cannot be reached: {error}") from None
    except (ValueError, http.client.InvalidURL) as error:  # a port that is no number, a host that no name is
        raise where.failure(f"is no address on the web: {error}", reason=Reason.BAD_SPEC) from None
    except (urllib.error.URLError, http.client.HTTPException) as error:
        gate.check_time()
        raise _unreachable(where, error) from None
    finally:
        draft.unlink(missing_ok=True)


def _transfer(where: Place, gate: Gate, draft: Path) -> None:
    request = urllib.request.Request(_quoted(where.uri), headers={"User-Agent": "finetune-operator"})
    if where.token is not None:
        request.add_unredirected_header("Authorization", f"Bearer {where.token}")  # another host must not see it
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _Handler(gate), _Redirects(gate))
    with _opened(opener, request) as answer:
        if answer.headers.get_content_type() == "text/html":
            raise where.failure("is a web page, not data: name the file's own address")
        size = answer.length or 0
        gate.check_size(size)
        with draft.open("wb") as file, watched(draft, where.uri, size):
            for block in _blocks(answer):
                gate.check_size(file.tell() + len(block))
                gate.check_time()
                file.write(block)
            gate.check_time()
            if not file.tell() and answer.length is None and not answer.chunked:
                raise where.failure("ended before it said what is to come", transient=True)
            if size and file.tell() != size:
                raise where.failure(f"ended after {file.tell():,} of {size:,} bytes", transient=True)


def _opened(opener: urllib.request.OpenerDirector, request: urllib.request.Request) -> Any:
    """The answer's head. urllib makes URLErrors of what happens until the request is sent, and not of what comes after:
    a server that says nothing, or hangs up."""
    try:
        return opener.open(request, timeout=PATIENCE)
    except urllib.error.URLError:
        raise
    except OSError as error:
        raise urllib.error.URLError(error) from error


def _blocks(answer: http.client.HTTPResponse) -> Iterator[bytes]:
    """What comes, as it comes. Errors of the connection are URLErrors: those of the disk are another matter."""
    try:
        while block := answer.read1(BLOCK):
            yield block
    except OSError as error:
        if not _is_untold_end(error):
            raise urllib.error.URLError(error) from error
        if answer.length is None:
            raise urllib.error.URLError(
                "its answer ended, and neither a length nor TLS tells that it is whole"
            ) from error
        # Of an answer that says its length, what is missing is told by the number of bytes.


def _is_untold_end(error: OSError) -> bool:
    """Whether the connection ended without a word of TLS; Python 3.11.2 has no class of its own for it."""
    is_named = isinstance(error, ssl.SSLError) and error.reason == "UNEXPECTED_EOF_WHILE_READING"
    return is_named or isinstance(error, ssl.SSLEOFError)


def _unreachable(where: Place, error: Exception) -> Exception:
    if isinstance(error, urllib.error.HTTPError):
        return answered(where, error.code)
    why = error.reason if isinstance(error, urllib.error.URLError) else error
    return where.failure(f"cannot be reached: {why or type(error).__name__}", transient=True)


def _resolved(host: str, port: int) -> list[Address]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [ip_address(str(place[0]).partition("%")[0]) for *_, place in found]


def _allows(entry: str, host: str, address: Address) -> bool:
    """Whether an entry of the list (a network, an address, a host or `*.domain`) covers a host or its address."""
    try:
        network: IPv4Network | IPv6Network = ip_network(entry, strict=False)
    except ValueError:
        return fnmatchcase(host.lower().rstrip("."), entry.lower())
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return address in network or (mapped is not None and mapped in network)


def _quoted(uri: str) -> str:
    parts = urlsplit(uri)
    path, query = (quote(part, string.punctuation) for part in (parts.path, parts.query))
    return urlunsplit((parts.scheme, parts.netloc, path, query, ""))


def _name(uri: str) -> str:
    """What the file is called here: the end of the path, where that is a name."""
    name = PurePosixPath(unquote(urlsplit(uri).path)).name[-LONGEST_NAME:]
    return name if uris.is_plain(name) else "data"
