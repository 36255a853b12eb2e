"""One stage as a process of this machine: started, asked how it is doing, asked to stop.

It decides how to talk to the process. What the stage does is the trainer's business, and this package never imports it.
"""

import contextlib
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from finetune_api import labels
from finetune_api.events import PROGRESS_LIMIT, ProgressReport
from finetune_api.stages import StageName

MODULE = "finetune_trainer"
POLL_SECONDS = 0.5
LOOPBACK = "127.0.0.1"
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # this machine is never behind its own proxy


def is_installed() -> bool:
    """Whether the trainer and what it trains with are there; neither is imported."""
    return all(importlib.util.find_spec(name) is not None for name in (MODULE, "torch"))


class StageProcess:
    """A running stage. `lock` is a file descriptor that it keeps open as long as it lives."""

    def __init__(self, stage: StageName, run_file: Path, log: Path, lock: int) -> None:
        self.stage = stage
        self._port = _free_port()
        command = [sys.executable, "-m", MODULE, stage, "--run", str(run_file), "--port", str(self._port)]
        command += ["--host", LOOPBACK]  # nobody else is to read along
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            # In a session of its own: Ctrl-C reaches us alone, and we tell the stage what to do.
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                pass_fds=(lock,),
            )

    def progress(self) -> Iterator[ProgressReport]:
        """What the stage says about itself, twice a second, until it ends."""
        while not self.has_ended():
            report = self._ask()
            if report is not None:
                yield report

    def has_ended(self, wait_seconds: float = POLL_SECONDS) -> bool:
        """Wait for the end, but not for longer."""
        try:
            self._process.wait(wait_seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def exit_code(self) -> int:
        """Wait for the end; 128 + the number of the signal that ended it, as in a shell and in a container."""
        code = self._process.wait()
        return 128 - code if code < 0 else code

    def stop(self) -> None:
        """Ask for a checkpoint and the end."""
        self._process.terminate()

    def kill(self) -> None:
        """End it and what it has started, now."""
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def _ask(self) -> ProgressReport | None:
        url = f"http://{LOOPBACK}:{self._port}{labels.PROGRESS_PATH}"
        try:
            with _OPENER.open(url, timeout=2) as page:
                return ProgressReport.model_validate_json(page.read(PROGRESS_LIMIT))
        except (OSError, ValidationError):  # not yet, or just ended
            return None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port
