"""Which way a request takes: NO_PROXY is read as kubectl reads it, ranges included."""

from __future__ import annotations

import pytest

from finetune_operator.proxies import proxy_for

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
