"""Which way a request takes: NO_PROXY is read as kubectl reads it, ranges included."""

from __future__ import annotations

import pytest

from finetune_api.proxies import ProxyError, checked, named, over_http, proxy_for

PROXY = "http://proxy:3128"


@pytest.mark.parametrize(
    ("exceptions", "url", "is_excepted"),
    [
        ("10.96.0.0/12", "https://10.96.0.1:443", True),
        ("10.96.0.0/12", "https://10.200.0.1:443", False),
        ("fd00::/8", "https://[fd00::1]:6443", True),
        ("10.0.0.1", "https://10.0.0.1:6443", True),
        ("10.0.0.1:6443", "https://10.0.0.1:6443", True),
        ("10.0.0.1:443", "https://10.0.0.1:6443", False),
        ("10.0.0.1:443", "https://10.0.0.1", True),
        ("[fd00::1]:6443", "https://[fd00::1]:6443", True),
        ("fd00::1", "https://[fd00::1]:6443", True),
        ("example.com", "https://example.com", True),
        ("example.com", "https://api.example.com:6443", True),
        ("example.com", "https://notexample.com", False),
        (".example.com", "https://api.example.com", True),
        (".example.com", "https://example.com", False),
        ("*.example.com", "https://api.example.com", True),
        ("EXAMPLE.com:6443", "https://Api.Example.com:6443", True),
        ("a.b, example.com , c.d", "https://example.com", True),
        ("*", "https://10.0.0.1", True),
        ("0.1", "https://10.0.0.1", False),
        ("", "https://10.0.0.1", False),
        (",,:,/8,nonsense/9", "https://10.0.0.1", False),
        ("", "https://127.0.0.1:6443", True),
        ("", "https://127.9.9.9:6443", True),
        ("", "https://[::1]:6443", True),
        ("", "https://localhost:6443", True),
    ],
)
def test_what_no_proxy_excepts(exceptions: str, url: str, is_excepted: bool) -> None:
    """A name covers what is below it, `.name` only that; an address or range covers addresses; loopback always."""
    assert proxy_for(url, {"HTTPS_PROXY": PROXY, "NO_PROXY": exceptions}) == (None if is_excepted else PROXY)


def test_each_scheme_has_its_own_proxy() -> None:
    """In capitals or not; an address without a scheme is of http."""
    environment = {"http_proxy": "plain:80", "HTTPS_PROXY": "https://secure:443"}

    assert proxy_for("http://10.0.0.1", environment) == "http://plain:80"
    assert proxy_for("https://10.0.0.1", environment) == "https://secure:443"
    assert proxy_for("https://10.0.0.1", {"HTTP_PROXY": PROXY}) is None


@pytest.mark.parametrize(
    "password",
    ["pa/SECRET", "pa#SECRET", "pa?SECRET", "SEC RET", "SEC\nRET", "SECRET\x7f", "SECRÉT", "[SECRET", "p:SECRET@h:0"],
)
def test_a_proxy_that_cannot_be_read_is_not_quoted(password: str) -> None:
    """A password may stand in it, and libraries take what comes before its `/` or `#` for the host."""
    proxy = f"http://user:{password}@proxy:3128".replace("@h:0@proxy:3128", "@h:0")
    told = "write http://user:password@host:port, other characters of the password as %XX"
    for read in (checked, over_http):
        with pytest.raises(ProxyError, match=told) as caught:
            read(proxy)
        assert "SEC" not in str(caught.value)
    for environment in ({"HTTPS_PROXY": proxy}, {"all_proxy": proxy}, {"HTTP_PROXY": proxy}):
        with pytest.raises(ProxyError, match=told):
            named(environment)


def test_a_proxy_that_speaks_another_protocol_is_named_without_its_password() -> None:
    assert checked("socks5://user:SECRET@proxy:1080") == "socks5://user:SECRET@proxy:1080"
    with pytest.raises(ProxyError, match="the proxy socks5://proxy:1080 cannot be used"):
        over_http("socks5://user:SECRET@proxy:1080")


@pytest.mark.parametrize(
    "proxy", ["http://proxy", "http://proxy:3128/", "https://user:p%2Fss@proxy:3128", "http://u:p@ss@[fd00::1]:3128"]
)
def test_a_proxy_that_can_be_used_is_taken_as_it_is(proxy: str) -> None:
    assert over_http(proxy) == proxy
    assert over_http("proxy:3128") == "http://proxy:3128"
