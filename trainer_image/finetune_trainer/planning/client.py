"""Counts a run's parameters and estimates its memory in a process of its own, while the data is read.

The process is asked twice: for the parameters as soon as the classes are known, and for the memory when the data is.
torch and transformers take ten seconds and half a gigabyte to import: neither should wait in line with the data, nor
stay in the memory of the process that reads it. A spec that cannot be trained (a module name that matches nothing, an
architecture that is not supported) ends the stage as soon as the count has failed, not after hours of reading.
"""

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from finetune_api.reasons import Reason
from finetune_api.spec.job_spec import FineTuneJobSpec
from finetune_api.status import Memory
from finetune_trainer.runtime.failures import Failure


class Parameters(NamedTuple):
    """Numbers of parameters, and what the run's micro-batches take."""

    total: int
    trainable: int
    rows: int | None = None
    """Of a micro-batch; None where memory could not be estimated."""
    memory: Memory | None = None
    precision: str | None = None
    """Of the run's products, where the machine that counted is one that trains: a CPU."""
    precision_basis: str | None = None
    """What `precision: auto` took it by."""


class ParameterCount:
    """A count under way. Use as a context manager: leaving it ends the process."""

    def __init__(self, model: Path, spec: FineTuneJobSpec) -> None:
        self._question: dict[str, Any] = {"model": str(model), "spec": spec.to_wire()}
        command = [sys.executable, "-m", "finetune_trainer.planning.worker"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._asked = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def ask(self, labels: list[str]) -> None:
        """Begin to count, with the classes known. The second time it does nothing."""
        if self._asked or self._process.stdin is None:
            return
        self._asked = True
        with contextlib.suppress(BrokenPipeError):  # it has died: `result` says so
            self._tell(self._question | {"labels": labels})

    def _tell(self, question: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(question).encode() + b"\n")
        self._process.stdin.flush()

    def check(self) -> None:
        """Raise the count's failure if there is one by now."""
        if self._asked and self._process.poll() not in (None, 0):
            self._answer(b"")

    def result(self, load: dict[str, Any]) -> Parameters:
        """Wait for the count and the estimate for `load` (workload.Load); raises the Failure that they ended with."""
        return self._answer(json.dumps(load).encode() + b"\n")

    def _answer(self, question: bytes) -> Parameters:
        output, _ = self._process.communicate(question)
        try:
            answer = json.loads(output)
        except ValueError:
            code = self._process.returncode
            raise RuntimeError(f"counting parameters ended with code {code}; its own words are above") from None
        if "reason" in answer:
            raise Failure(Reason(answer["reason"]), answer["message"])
        memory = Memory.model_validate(answer["memory"]) if "memory" in answer else None
        told = {name: answer.get(name) for name in ("rows", "precision", "precision_basis")}
        return Parameters(answer["total"], answer["trainable"], memory=memory, **told)
