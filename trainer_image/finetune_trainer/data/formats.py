"""Reads the rows of one file, whatever its format: jsonl, json, csv, parquet or text; gzip where the name ends in .gz.

It decides what a row is and names what cannot be read by line. It knows no record and no column that matters.
Memory is bounded by the longest row, never by the file.
"""

import codecs
import csv
import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal, cast

from finetune_api.reasons import Reason
from finetune_trainer.data.bad_records import BadRecords
from finetune_trainer.runtime.failures import FULL, Failure
from finetune_trainer.runtime.volumes import UNREACHABLE, explained

Format = Literal["jsonl", "json", "csv", "parquet", "text"]
Row = tuple[int, dict[str, Any]]
"""The line (parquet: row) that it starts on, counted from 1, and its columns."""

SUFFIXES: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".txt": "text",
    ".md": "text",
}
LONGEST = 64 * 1024 * 1024
"""Bytes of the longest row; longer ones are a mistake in the file or in its format."""
BLOCK = 1024 * 1024
WIDE_MARKS = {codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16", codecs.BOM_UTF32_BE: "UTF-32"}


class Meter:
    """How far reading has come, in bytes on disk."""

    def __init__(self) -> None:
        self._before = 0
        self._stream: IO[bytes] | None = None

    @property
    def position(self) -> int:
        """Bytes read so far."""
        open_now = self._stream is not None and not self._stream.closed
        return self._before + (self._stream.tell() if open_now and self._stream else 0)

    def follow(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def finish(self, size: int) -> None:
        """A file of `size` bytes is read to its end."""
        self._before += size
        self._stream = None


@dataclass(frozen=True)
class DataFile:
    """A file on this machine, and the name that its owner knows it by."""

    path: Path
    name: str
    format: Format
    meter: Meter = field(default_factory=Meter, compare=False)

    @property
    def unit(self) -> str:
        """What rows are counted in."""
        return "row" if self.format == "parquet" else "line"


def format_of(name: str) -> Format | None:
    """The format that a file's name promises; None where it promises none."""
    path = PurePosixPath(name.lower())
    return SUFFIXES.get(PurePosixPath(path.stem).suffix if path.suffix == ".gz" else path.suffix)


def rows(file: DataFile, bad_records: BadRecords) -> Iterator[Row]:
    """The rows of `file`; those that cannot be read go to `bad_records`. Raises Failure if all of it cannot."""
    try:
        yield from READERS[file.format](file, bad_records)
        file.meter.finish(file.path.stat().st_size)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise Failure(Reason.DATASET_INVALID, f"{file.name}: broken gzip file: {error}") from None
    except OSError as error:
        if error.errno in FULL or error.filename not in (None, str(file.path)):
            raise  # of the workspace, which takes the bad records
        why, transient = explained(error, file.path), error.errno in UNREACHABLE
        raise Failure(Reason.DATASET_UNAVAILABLE, f"{file.name}: {why}", transient=transient) from None


def _jsonl(file: DataFile, bad_records: BadRecords) -> Iterator[Row]:
    for number, line in _text_lines(file, bad_records):
        if line.isspace():
            continue
        try:
            row = json.loads(line.rstrip())
        except json.JSONDecodeError as error:
            bad_records.add(file.name, number, f"broken JSON: {_why(error)} at column {error.colno}")
        except (ValueError, RecursionError) as error:
            bad_records.add(file.name, number, f"broken JSON: {error}")
        else:
            if isinstance(row, dict):
                yield number, row
            else:
                bad_records.add(file.name, number, f"expected a JSON object, found {kind_of(row)}")


def _json(file: DataFile, bad_records: BadRecords) -> Iterator[Row]:
    """An array of objects; a file of one object a line, as often named .json, is read as jsonl."""
    with _opened(file) as stream:
        window = _Window(file.name, stream)
        if window.skip_space() == "[":
            yield from _array(window, file, bad_records)
            return
        if window.next != "{" or not window.is_lines():
            found = kind_of({}) if window.next == "{" else "something else"
            raise Failure(Reason.DATASET_INVALID, f"{file.name}: expected a JSON array of objects, found {found}")
    yield from _jsonl(file, bad_records)


def _array(window: "_Window", file: DataFile, bad_records: BadRecords) -> Iterator[Row]:
    window.take(1)
    while window.skip_space(",") not in ("]", ""):
        number = window.line
        row = window.value()
        if isinstance(row, dict):
            yield number, row
        else:
            bad_records.add(file.name, number, f"expected a JSON object, found {kind_of(row)}")
    if window.next == "":
        bad_records.add(file.name, window.line, "broken JSON: the array is not closed")


def _why(error: ValueError | RecursionError) -> str:
    """Python's words; some end as if a place followed (`Unterminated string starting at`)."""
    return str(getattr(error, "msg", error)).removesuffix(" at").removesuffix(" starting")


class _Window:
    """A sliding view of a JSON text, so that an array need not fit into memory."""

    def __init__(self, name: str, stream: IO[bytes]) -> None:
        self.line = 1
        self._name = name
        self._text = ""
        self._at = 0
        self._decoder = json.JSONDecoder()
        self._stream = stream
        self._utf8 = codecs.getincrementaldecoder("utf-8-sig")()

    @property
    def next(self) -> str:
        return self._text[self._at : self._at + 1]

    def skip_space(self, also: str = "") -> str:
        """Go to the next character that is neither white space nor in `also`; '' at the end."""
        while True:
            while self.next and (self.next.isspace() or self.next in also):
                self.take(1)
            if self.next or not self._more(BLOCK):
                return self.next

    def take(self, count: int) -> None:
        self.line += self._text.count("\n", self._at, self._at + count)
        self._at += count

    def value(self) -> Any:
        """The JSON value that starts here; raises Failure when it is broken."""
        size = BLOCK
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except (ValueError, RecursionError) as error:
                if len(self._text) - self._at < LONGEST and self._more(size):
                    size *= 2
                    continue
                line = self.line + self._text.count("\n", self._at, getattr(error, "pos", self._at))
                raise Failure(Reason.DATASET_INVALID, f"{self._name}:{line}: broken JSON: {_why(error)}") from None
            self.take(end - self._at)
            return value

    def is_lines(self) -> bool:
        """Whether the first line alone is a JSON value: then the file is one object a line."""
        while "\n" not in self._text[self._at :] and len(self._text) < LONGEST and self._more(BLOCK):
            pass
        try:
            json.loads(self._text[self._at :].split("\n", 1)[0])
        except ValueError:
            return False
        return True

    def _more(self, size: int) -> bool:
        block = self._stream.read(size)
        try:
            text = self._utf8.decode(block, final=not block)
        except UnicodeDecodeError as error:
            line = self.line + self._text.count("\n", self._at) + error.object[: error.start].count(b"\n")
            raise Failure(Reason.DATASET_INVALID, f"{self._name}:{line}: {_not_utf8(error)}") from None
        self._text = self._text[self._at :] + text
        self._at = 0
        return bool(block)


def _csv(file: DataFile, bad_records: BadRecords) -> Iterator[Row]:
    csv.field_size_limit(LONGEST)
    delimiter = "\t" if ".tsv" in file.path.suffixes else ","
    reader = csv.reader(
        (line for _, line in _text_lines(file, bad_records, stop=True)), delimiter=delimiter, strict=True
    )
    header: list[str] | None = None
    number = 1
    try:
        for fields in reader:
            if header is None:
                header = _header(file, fields)
            elif len(fields) == len(header):
                yield number, dict(zip(header, fields, strict=True))
            elif fields:
                bad_records.add(file.name, number, f"{len(fields)} fields where the header has {len(header)}")
            number = reader.line_num + 1
    except csv.Error as error:
        bad_records.add(file.name, number, f"broken CSV: {error}")


def _header(file: DataFile, fields: list[str]) -> list[str]:
    names = [field.strip() for field in fields]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise Failure(Reason.DATASET_INVALID, f"{file.name}:1: column {twice[0]!r} occurs twice in the header")
    return names


def _parquet(file: DataFile, bad_records: BadRecords) -> Iterator[Row]:
    import pyarrow  # slow to import, and needed for this format only
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(file.path, memory_map=False)
        number = 1
        for batch in table.iter_batches(batch_size=256, use_threads=False):
            for row in batch.to_pylist():
                yield number, row
                number += 1
    except (pyarrow.ArrowInvalid, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the storage; pyarrow has OSErrors of its own for broken content
        raise Failure(Reason.DATASET_INVALID, f"{file.name}: not a readable Parquet file: {error}") from None


def _text(file: DataFile, bad_records: BadRecords) -> Iterator[Row]:
    for number, line in _text_lines(file, bad_records):
        if not line.isspace():
            yield number, {"text": line.rstrip("\r\n")}


READERS: dict[Format, Callable[[DataFile, BadRecords], Iterator[Row]]] = {
    "jsonl": _jsonl,
    "json": _json,
    "csv": _csv,
    "parquet": _parquet,
    "text": _text,
}


def _text_lines(file: DataFile, bad_records: BadRecords, stop: bool = False) -> Iterator[tuple[int, str]]:
    """Decoded lines with their ends; what is not UTF-8 goes to `bad_records`, and ends the file if `stop`."""
    with _opened(file) as stream:
        number, offset = 0, 0
        while line := stream.readline(LONGEST):
            number += 1
            if number == 1:
                line = _without_mark(file, line)
            if len(line) == LONGEST:
                raise Failure(Reason.DATASET_INVALID, f"{file.name}:{number}: a line of more than {LONGEST >> 20} MiB")
            try:
                yield number, line.decode()
            except UnicodeDecodeError as error:
                bad_records.add(file.name, number, _not_utf8(error, offset))
                if stop:
                    return
            offset += len(line)


def _without_mark(file: DataFile, line: bytes) -> bytes:
    for mark, name in WIDE_MARKS.items():
        if line.startswith(mark):
            raise Failure(Reason.DATASET_INVALID, f"{file.name}:1: the file is {name}: save it as UTF-8")
    return line.removeprefix(codecs.BOM_UTF8)


def _not_utf8(error: UnicodeDecodeError, offset: int = 0) -> str:
    byte = error.object[error.start]
    return f"byte 0x{byte:02x} at byte {offset + error.start} of the file is not UTF-8: save the file as UTF-8"


@contextmanager
def _opened(file: DataFile) -> Iterator[IO[bytes]]:
    with file.path.open("rb", buffering=BLOCK) as stream:
        file.meter.follow(stream)
        if file.path.suffix == ".gz":
            with gzip.GzipFile(fileobj=stream) as unpacked:
                yield cast(IO[bytes], unpacked)
        else:
            yield stream


def kind_of(value: Any) -> str:
    """What a JSON value is, in words."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)
