"""Counts a run's parameters in a process of its own, while the data is read.

torch and transformers take ten seconds and half a gigabyte to import: neither should wait in line with the data, nor
stay in the memory of the process that reads it. A spec that cannot be trained (a module name that matches nothing, an
architecture that is not supported) ends the stage as soon as the count has failed, not after hours of reading.
"""

import json
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from finetune_api.reasons import Reason
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.failures import Failure


class Parameters(NamedTuple):
    """Numbers of parameters."""

    total: int
    trainable: int


class ParameterCount:
    """A count under way. Use as a context manager: leaving it ends the process."""

    def __init__(self, model: Path, spec: FineTuneJobSpec) -> None:
        self._question: dict[str, Any] = {"model": str(model), "spec": spec.to_wire()}
        command = [sys.executable, "-m", "finetune_trainer.parameters"]
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
        try:
            self._process.stdin.write(json.dumps(self._question | {"labels": labels}).encode())
            self._process.stdin.close()
        except BrokenPipeError:  # it has died: `result` says so
            pass
        self._process.stdin = None

    def check(self) -> None:
        """Raise the count's failure if there is one by now."""
        if self._asked and self._process.poll() not in (None, 0):
            self.result()

    def result(self) -> Parameters:
        """Wait for the count; raises the Failure that it ended with."""
        output, _ = self._process.communicate()
        try:
            answer = json.loads(output)
        except ValueError:
            code = self._process.returncode
            raise RuntimeError(f"counting parameters ended with code {code}; its own words are above") from None
        if "reason" in answer:
            raise Failure(Reason(answer["reason"]), answer["message"])
        return Parameters(answer["total"], answer["trainable"])


def main() -> int:
    """Read one question from standard input, answer on standard output."""
    answer, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer
    from finetune_trainer.modelling import plan_parameters  # before the question arrives: the import is the long part

    question = json.loads(sys.stdin.buffer.read())
    try:
        total, trainable = plan_parameters(
            Path(question["model"]), FineTuneJobSpec.model_validate(question["spec"]), question["labels"]
        )
    except Failure as failure:
        json.dump({"reason": failure.reason, "message": failure.message}, answer)
        return int(failure.code)
    json.dump({"total": total, "trainable": trainable}, answer)
    return 0


if __name__ == "__main__":
    sys.exit(main())
