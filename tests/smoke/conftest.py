"""What the tests of the stages share: nobody leaves a signal handler behind."""

import signal
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """The stage installs handlers of its own."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
