"""A manifest file as kubectl reads it: plain values, and the line that each of them stands on.

It decides what a YAML scalar means; kubectl's reader is go-yaml: `2e-4` is a number, `yes` a boolean, `0o17` an
integer. It knows nothing of FineTuneJobs.
"""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

Route = tuple[str | int, ...]
"""Keys and indices from the root of a document to a value."""

STANDARD_INPUT = "-"
_PLAIN = "tag:finetune.dev,2026:plain"
_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("bool", "int", "float", "null")} | {_PLAIN}
_DEPTH, _SIZE = 64, 100_000

_WORDS: dict[str, bool | None] = (
    dict.fromkeys(("", "~", "null", "Null", "NULL"))
    | {word: True for name in ("y", "yes", "true", "on") for word in (name, name.capitalize(), name.upper())}
    | {word: False for name in ("n", "no", "false", "off") for word in (name, name.capitalize(), name.upper())}
)
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*|0[xX][0-9a-fA-F]+|0[bB][01]+|0[oO]?[0-7]+)")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_INFINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


class UnreadableError(Exception):
    """A file that cannot be read as YAML; the message starts with `file:line:`."""

    def __init__(self, file: str, line: int | None, message: str) -> None:
        super().__init__(f"{file}:{line}: {message}" if line else f"{file}: {message}")


@dataclass(frozen=True)
class Document:
    """One YAML document of a file."""

    value: Any
    file: str = ""
    lines: dict[Route, int] = field(default_factory=dict)

    def line(self, route: Route) -> int:
        """The line of `route`, or of the nearest thing around it that stands in the file."""
        while route and route not in self.lines:
            route = route[:-1]
        return self.lines.get(route, 1)


def read(file: str) -> list[Document]:
    """All documents of `file` that are not empty; `-` is standard input. Raises UnreadableError."""
    name = "standard input" if file == STANDARD_INPUT else file
    try:
        content = sys.stdin.buffer.read() if file == STANDARD_INPUT else Path(file).read_bytes()
    except OSError as error:
        raise UnreadableError(name, None, error.strerror or str(error)) from None
    return list(parse(content, name))


def parse(content: bytes, file: str) -> Iterator[Document]:
    """The documents in `content`; raises UnreadableError."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UnreadableError(file, line, "not UTF-8: save the file in that encoding") from None
    try:
        for node in yaml.compose_all(text, Loader=_Loader):
            document = _Reading(file).document(node)
            if document.value is not None:
                yield document
    except yaml.MarkedYAMLError as error:
        raise UnreadableError(file, *_where(error)) from None
    except yaml.YAMLError as error:
        raise UnreadableError(file, None, str(error).partition("\n")[0]) from None


def _where(error: yaml.MarkedYAMLError) -> tuple[int | None, str]:
    mark = error.problem_mark or error.context_mark
    message = "; ".join(part for part in (error.problem, error.context) if part)
    return (mark.line + 1 if mark else None), message


class _Loader(yaml.SafeLoader):
    """Leaves the meaning of unquoted scalars to us: PyYAML's own is that of YAML 1.1, where `2e-4` is a string."""

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> Any:
        return _PLAIN if kind is yaml.ScalarNode and implicit[0] else super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]


class _Reading:
    """Turns one tree of nodes into plain values."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.lines: dict[Route, int] = {}
        self.nodes = 0

    def document(self, node: yaml.Node) -> Document:
        self.lines[()] = _line(node)
        return Document(self._value(node, ()), self.file, self.lines)

    def _value(self, node: yaml.Node, route: Route) -> Any:
        self.nodes += 1
        if len(route) > _DEPTH or self.nodes > _SIZE:
            raise UnreadableError(self.file, _line(node), "nested too deeply, or aliases that multiply")
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, route)
        if isinstance(node, yaml.SequenceNode):
            return [self._item(item, (*route, index)) for index, item in enumerate(node.value)]
        return self._scalar(node) if node.tag in _TAGS else node.value

    def _item(self, node: yaml.Node, route: Route) -> Any:
        self.lines[route] = _line(node)
        return self._value(node, route)

    def _mapping(self, node: yaml.MappingNode, route: Route) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in self._merged(node):
            name = self._key(key)
            if name not in result:
                self.lines[(*route, name)] = _line(key)
                result[name] = self._value(value, (*route, name))
        return result

    def _merged(self, node: yaml.MappingNode) -> list[tuple[yaml.Node, yaml.Node]]:
        """The entries of a mapping, its own first, then those of `<<`, which never replace one."""
        own = [(key, value) for key, value in node.value if not _is_merge(key)]
        seen: set[str] = set()
        for key, _ in own:
            name = self._key(key)
            if name in seen:
                raise UnreadableError(self.file, _line(key), f'key "{name}" already set in map')
            seen.add(name)
        merged = [value for key, value in node.value if _is_merge(key)]
        lists = [value.value if isinstance(value, yaml.SequenceNode) else [value] for value in merged]
        sources = [source for several in lists for source in several]
        if any(not isinstance(source, yaml.MappingNode) for source in sources):
            raise UnreadableError(self.file, _line(node), "map merge requires map or sequence of maps as the value")
        return own + [entry for source in sources for entry in source.value]

    def _key(self, node: yaml.Node) -> str:
        if not isinstance(node, yaml.ScalarNode):
            raise UnreadableError(self.file, _line(node), "a key must be a word")
        value = self._scalar(node) if node.tag in _TAGS else node.value
        return value if isinstance(value, str) else str(node.value)

    def _scalar(self, node: yaml.Node) -> bool | int | float | str | None:
        if _INFINITE.fullmatch(node.value):
            raise UnreadableError(self.file, _line(node), f"{node.value} is not a number that JSON can carry")
        return scalar(node.value)


def scalar(text: str) -> bool | int | float | str | None:
    """What an unquoted `text` means. A float without a fraction is an integer, as after kubectl's trip through JSON."""
    if text in _WORDS:
        return _WORDS[text]
    plain = text.replace("_", "") if text[:1].isdigit() or text[:1] in "+-" else text
    if _INTEGER.fullmatch(plain):
        return _integer(plain)
    if _FLOAT.fullmatch(plain):
        number = float(plain)
        return int(number) if number.is_integer() and abs(number) < 1e21 else number
    return text


def _integer(text: str) -> int:
    digits = text.lstrip("+-")
    octal = len(digits) > 1 and digits[0] == "0" and digits[1].isdigit()
    return int(text, 8 if octal else 0)


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1


def _is_merge(node: yaml.Node) -> bool:
    return node.tag == _PLAIN and node.value == "<<"
