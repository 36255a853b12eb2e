"""A stop that was asked for by a signal, and is answered where the run can be left without loss."""

import signal
import threading
from types import FrameType

from finetune_api.reasons import Reason
from finetune_trainer.runtime.failures import Failure


class StopRequest:
    """Set by SIGTERM and SIGINT, looked at where the run can be left without loss."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def install(self) -> None:
        """Answer SIGTERM and SIGINT from now on; a second SIGINT ends the process at once."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.is_set():
            raise KeyboardInterrupt
        self.set()

    def set(self) -> None:
        self._event.set()

    def is_set(self) -> bool:
        return self._event.is_set()

    def check(self) -> None:
        """Raise Failure if a stop was asked for: for work that is done again by the next attempt."""
        if self.is_set():
            raise Failure(Reason.PREEMPTED, "asked to stop; the next attempt goes on from the last checkpoint")
