"""The operator's own HTTP server: probes and metrics, for whoever asks from whichever kind of network."""

from __future__ import annotations

import asyncio
import socket

import aiohttp
import pytest

from finetune_operator import probes


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_it_is_served_to_either_family_of_addresses(host: str) -> None:
    """The kubelet of a cluster of IPv6 alone probes an address of IPv6."""
    if ":" in host and not socket.has_dualstack_ipv6():
        pytest.skip("this kernel has no IPv6")

    async def scenario() -> None:
        runner = await probes.serve(0, lambda: False)
        try:
            url = f"http://{host}:{runner.addresses[0][1]}"
            async with aiohttp.ClientSession() as session:
                for path, status in (("/healthz", 200), ("/readyz", 503), ("/metrics", 200)):
                    async with session.get(url + path) as answer:
                        assert answer.status == status
        finally:
            await runner.cleanup()

    asyncio.run(scenario())
