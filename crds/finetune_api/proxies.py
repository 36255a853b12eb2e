"""Through which proxy an address is reached, by the rules of Go's httpproxy package, which are kubectl's.

Python's own rules differ where it hurts: they know no ranges in NO_PROXY, and clusters are named there by ranges.
"""

from collections.abc import Mapping
from ipaddress import ip_address, ip_network
from urllib.parse import urlsplit

PORTS = {"http": 80, "https": 443}
VARIABLES = ("http_proxy", "https_proxy", "all_proxy")
"""Where an environment names proxies; in capitals too."""


class ProxyError(ValueError):
    """A proxy's address cannot be used. The message does not quote it, because a password may stand in it."""


def proxy_for(url: str, environment: Mapping[str, str]) -> str | None:
    """The proxy that the environment names for `url`; None: there is none, or NO_PROXY excepts the host. Raises
    ProxyError."""
    parts = urlsplit(url)
    proxy = _variable(environment, f"{parts.scheme}_proxy")
    host, port = (parts.hostname or "").lower(), parts.port or PORTS.get(parts.scheme, 0)
    if not proxy or host == "localhost" or _is_loopback(host):
        return None
    excepted = _variable(environment, "no_proxy").lower().split(",")
    if any(_covers(one.strip(), host, port) for one in excepted):
        return None
    return checked(proxy)


def named(environment: Mapping[str, str]) -> list[str]:
    """Every proxy that the environment names; raises ProxyError."""
    return [checked(proxy) for name in VARIABLES if (proxy := _variable(environment, name))]


def checked(proxy: str) -> str:
    """`proxy` with its scheme; raises ProxyError for what libraries would misread, and quote with the password."""
    address = proxy if "://" in proxy else f"http://{proxy}"
    if not _is_address(address):
        told = "the proxy's address (proxy-url, HTTPS_PROXY, HTTP_PROXY or ALL_PROXY) cannot be read"
        raise ProxyError(f"{told}: write http://user:password@host:port, other characters of the password as %XX")
    return address


def over_http(proxy: str) -> str:
    """The same for a proxy that has to be spoken to in http: SOCKS needs a library that is not here."""
    address = checked(proxy)
    parts = urlsplit(address)
    if parts.scheme not in PORTS:
        shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        raise ProxyError(f"the proxy {shown} cannot be used: set proxy-url or HTTPS_PROXY to an http:// address")
    return address


def _is_address(text: str) -> bool:
    """Whether it is scheme, user, host and port, and nothing else: a `/` or `#` in a password ends the host."""
    try:
        parts = urlsplit(text)
        has_port = parts.port != 0
    except ValueError:
        return False
    rest = (parts.path.strip("/"), parts.query, parts.fragment)
    return bool(parts.hostname) and has_port and not any(rest) and all("!" <= char <= "~" for char in text)


def _variable(environment: Mapping[str, str], name: str) -> str:
    return environment.get(name.upper()) or environment.get(name) or ""


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _covers(exception: str, host: str, port: int) -> bool:
    """True when one entry of NO_PROXY names the host: as `*`, a range, an address, a domain or `.domain`, with a port
    or for all ports."""
    if exception == "*":
        return True
    name, wanted = _split_port(exception)
    if not name or wanted not in ("", str(port)):
        return False
    try:
        address = ip_address(host)
    except ValueError:
        # `*.a.b` and `.a.b` mean what is below a.b, `a.b` that and itself.
        domain = name.removeprefix("*")
        return host.endswith(domain if domain.startswith(".") else f".{domain}") or host == domain
    try:
        return address in ip_network(name, strict=False)
    except ValueError:
        return False


def _split_port(text: str) -> tuple[str, str]:
    """`host:port` and `[v6]:port` in two; what has no port as it is."""
    name, colon, port = text.rpartition(":")
    if colon and port.isdigit() and (":" not in name or (name.startswith("[") and name.endswith("]"))):
        return name.strip("[]"), port
    return text.strip("[]"), ""
