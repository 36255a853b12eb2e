"""Every record that cannot be used, by file and line: the first of them for the message, all of them in a file.

It decides how bad records are told. It knows no format and no rule.
"""

import json
from pathlib import Path
from typing import IO

from finetune_api.reasons import Reason
from finetune_api.text import printable
from finetune_trainer.runtime.failures import Failure

SHOWN = 20
"""Bad records in the message."""
ROOM = 1700
"""Characters that they may take in it; the rest names the file with all of them."""
LIMIT = 1_000_000
"""After so many, reading on teaches nothing."""


class BadRecords:
    """Collects bad records. `path` gets one JSON object a line, as soon as the first is added."""

    def __init__(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        self.count = 0
        self._path = path
        self._file: IO[str] | None = None
        self._first: list[str] = []

    def add(self, file: str, number: int, problem: str, unit: str = "line") -> None:
        """Record `number` (a line, or a row counted from 1) of `file` has a `problem`."""
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("w", encoding="utf-8", errors="backslashreplace")
        self._file.write(json.dumps({"file": file, unit: number, "problem": problem}) + "\n")
        self.count += 1
        file, problem = printable(file), printable(problem)
        if len(self._first) < SHOWN:
            self._first.append(
                f"{file}:{number}: {problem}" if unit == "line" else f"{file}, {unit} {number}: {problem}"
            )
        if self.count >= LIMIT:
            self.check()

    def check(self) -> None:
        """Raise DatasetInvalid if there is a bad record."""
        if self._file is not None:
            self._file.close()
        if self.count:
            raise Failure(Reason.DATASET_INVALID, self._message())

    def _message(self) -> str:
        shown: list[str] = []
        for line in self._first:
            if sum(map(len, shown)) + len(line) > ROOM and shown:
                break
            shown.append(line)
        head = "1 record cannot be used" if self.count == 1 else f"{self.count} records cannot be used"
        rest = "" if len(shown) == self.count else f"\nall of them: {self._path}"
        return f"{head}:\n" + "\n".join(shown) + rest
