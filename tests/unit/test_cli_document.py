"""Manifests mean what kubectl takes them to mean, and every value knows its line.

Theory: kubectl reads YAML with go-yaml and sends JSON. A reader that disagrees accepts what the cluster refuses.
"""

from pathlib import Path

import pytest

from finetune_cli.manifest.document import Document, UnreadableError, parse, read, scalar


def only(text: str | bytes) -> Document:
    (document,) = parse(text.encode() if isinstance(text, str) else text, "job.yaml")
    return document


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-4", 0.0002),
        ("1e3", 1000),
        ("8.0", 8),
        ("-.5", -0.5),
        ("1_000", 1000),
        ("0x10", 16),
        ("010", 8),
        ("0o17", 15),
        ("08", 8),
        ("yes", True),
        ("Off", False),
        ("y", True),
        ("~", None),
        ("", None),
        ("2026-01-02", "2026-01-02"),
        ("1:30", "1:30"),
        ("500m", "500m"),
        ("1e", "1e"),
        ("_1", "_1"),
    ],
)
def test_unquoted_scalars_mean_what_go_yaml_takes_them_for(text: str, value: object) -> None:
    """Numbers, booleans and nulls as go-yaml resolves them; a float without a fraction is an integer in JSON."""
    assert scalar(text) == value
    assert type(scalar(text)) is type(value)


def test_quoted_scalars_are_text() -> None:
    """Quotes and block styles keep text as it is; an explicit tag decides otherwise."""
    assert only("a: '5'\nb: \"yes\"\nc: |\n  1\nd: !!str 7\n").value == {"a": "5", "b": "yes", "c": "1\n", "d": "7"}


def test_every_value_knows_its_line() -> None:
    """A field's line is that of its key, an item's that of its first field."""
    document = only("a: 1\nb:\n  - x: 1\n    y:\n      2\n  - 3\n")

    assert [document.line(route) for route in [("a",), ("b", 0, "y"), ("b", 1)]] == [1, 4, 6]


def test_what_is_missing_has_the_line_of_what_surrounds_it() -> None:
    """A required field that is absent is reported where it should have stood."""
    assert only("a:\n  b: {c: 1}\n").line(("a", "b", "d", 0)) == 2


def test_lines_count_over_all_documents_of_a_file() -> None:
    """The second document's lines are those of the file."""
    first, second = parse(b"---\na: 1\n---\n---\nb: 2\n", "job.yaml")

    assert (first.line(("a",)), second.line(("b",))) == (2, 5)


def test_merged_keys_come_after_own_ones() -> None:
    """`<<` fills in what the mapping has not said itself."""
    assert only("base: &b {x: 1, y: 2}\nuse:\n  <<: *b\n  y: 3\n").value["use"] == {"x": 1, "y": 3}


def test_a_byte_order_mark_is_no_part_of_the_text() -> None:
    """Windows editors put one in front."""
    assert only(b"\xef\xbb\xbfa: 1\n").value == {"a": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: 1\na: 2\n", 'job.yaml:2: key "a" already set in map'),
        (b"a: 1\nb: [1, 2\nc: 3\n", "job.yaml:3: "),
        (b"a: 1\nb: \xe9t\xe9\n", "job.yaml:2: not UTF-8"),
        (b"a: .inf\n", "job.yaml:1: .inf is not a number"),
        (b"a: &a [*a]\n", "job.yaml:1: nested too deeply"),
        (b"\tb: 1\n", "job.yaml:1: "),
        (b"a: 1\n\x00\n", "job.yaml: "),
        (b"? [1]\n: 2\n", "job.yaml:1: a key must be a word"),
        (b"<<: 5\n", "job.yaml:1: map merge requires"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_line(content: bytes, message: str) -> None:
    """Broken YAML is one clear line."""
    with pytest.raises(UnreadableError) as error:
        list(parse(content, "job.yaml"))

    assert str(error.value).startswith(message)


def test_aliases_that_multiply_are_refused() -> None:
    """A few lines that stand for millions of values do not take the machine down."""
    levels = "".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]\n" for n in range(1, 9))

    with pytest.raises(UnreadableError, match="aliases that multiply"):
        only(f"l0: &l0 [x]\n{levels}")


@pytest.mark.parametrize(("name", "message"), [("none.yaml", "No such file"), (".", "Is a directory")])
def test_a_file_that_is_not_there_is_named(tmp_path: Path, name: str, message: str) -> None:
    """The error starts with the path as it was given."""
    with pytest.raises(UnreadableError, match=message) as error:
        read(str(tmp_path / name))

    assert str(error.value).startswith(str(tmp_path))
