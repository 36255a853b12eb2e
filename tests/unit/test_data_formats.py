"""Each format gives the same rows, and what cannot be read is named by file and line."""

import csv
import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from finetune_trainer.data.bad_records import BadRecords
from finetune_trainer.data.formats import DataFile, Row, format_of, rows
from finetune_trainer.runtime.failures import Failure

PLAIN = [{"prompt": "a", "completion": 'é\n,"x'}, {"prompt": "b", "completion": "2"}]


def read(path: Path, format: str | None = None) -> tuple[list[Row], str]:
    """The rows, and the message of the bad ones."""
    bad_records = BadRecords(path.parent / "bad-records.jsonl")
    found = list(rows(DataFile(path, path.name, format or format_of(path.name)), bad_records))  # type: ignore[arg-type]
    try:
        bad_records.check()
    except Failure as failure:
        return found, failure.message
    return found, ""


def refused(path: Path) -> str:
    with pytest.raises(Failure) as caught:
        read(path)
    return caught.value.message


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def as_csv(path: Path, delimiter: str = ",") -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(PLAIN[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(PLAIN)
    return path


def lines(rows: list[dict[str, str]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_all_formats_give_the_same_rows(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(PLAIN), tmp_path / "a.parquet")
    paths = [
        written(tmp_path / "a.jsonl", lines(PLAIN)),
        written(tmp_path / "a.json", json.dumps(PLAIN, indent=1)),
        written(tmp_path / "b.json", lines(PLAIN)),
        written(tmp_path / "a.jsonl.gz", gzip.compress(lines(PLAIN).encode())),
        as_csv(tmp_path / "a.csv"),
        as_csv(tmp_path / "a.tsv", "\t"),
        tmp_path / "a.parquet",
    ]
    for path in paths:
        found, message = read(path)
        assert ([row for _, row in found], message) == (PLAIN, ""), path.name


def test_each_line_of_text_is_a_row(tmp_path: Path) -> None:
    """Empty lines are skipped, and still counted."""
    assert read(written(tmp_path / "a.txt", "one\r\n\n three\n"))[0] == [(1, {"text": "one"}), (3, {"text": " three"})]


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    """Editors on Windows put one before JSON and CSV alike."""
    mark = b"\xef\xbb\xbf"
    for name in ("a.jsonl", "a.json"):
        assert read(written(tmp_path / name, mark + b'{"a": 1}\n{"a": 2}\n'))[0][0][1] == {"a": 1}
    assert read(written(tmp_path / "b.json", mark + b'[{"a": 1}]'))[0] == [(1, {"a": 1})]
    assert read(written(tmp_path / "a.csv", mark + b"a\n1\n"))[0] == [(2, {"a": "1"})]


def test_broken_json_far_into_a_file_is_named_by_its_line(tmp_path: Path) -> None:
    """The issue's own case: line 70,001 of 100,000. The lines after it are read on, for more of the kind."""
    good = '{"text": "x"}\n'
    path = written(tmp_path / "a.jsonl", good * 70_000 + '{"text": "x"\n' + good * 29_999)
    found, message = read(path)
    assert len(found) == 99_999
    assert message == "1 record cannot be used:\na.jsonl:70001: broken JSON: Expecting ',' delimiter at column 13"


def test_every_bad_line_is_told_and_the_first_twenty_in_the_message(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", "[1]\n" * 30 + '"x"\n7\nnull\n{"a": 1}\n')
    found, message = read(path)
    assert [row for _, row in found] == [{"a": 1}]
    told = message.split("\n")
    assert told[0] == "33 records cannot be used:"
    assert told[1] == "a.jsonl:1: expected a JSON object, found a list"
    assert len(told) == 22
    assert told[21] == f"all of them: {tmp_path}/bad-records.jsonl"
    everything = [json.loads(line) for line in (tmp_path / "bad-records.jsonl").read_text().splitlines()]
    assert [entry["line"] for entry in everything] == list(range(1, 34))
    assert everything[32] == {"file": "a.jsonl", "line": 33, "problem": "expected a JSON object, found null"}


def test_a_wrong_encoding_is_named_by_line_and_byte(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", b'{"text": "x"}\n' + '{"text": "café"}\n'.encode("latin-1"))
    told = "byte 0xe9 at byte 27 of the file is not UTF-8: save the file as UTF-8"
    assert read(path)[1] == f"1 record cannot be used:\na.jsonl:2: {told}"
    assert read(written(tmp_path / "a.csv", b"text\nx\ncaf\xe9\n"))[1].endswith("a.csv:3: " + told.replace("27", "10"))
    array = written(tmp_path / "a.json", b'[{"text": "x"},\n{"text": "caf\xe9"}]')
    assert refused(array) == "a.json:2: " + told.replace("27", "29")


def test_a_string_that_does_not_end_is_told_in_a_sentence(tmp_path: Path) -> None:
    """Python says `starting at`, and leaves the place to whoever catches it."""
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": "b\n')
    assert read(path)[1] == "1 record cannot be used:\na.jsonl:1: broken JSON: Unterminated string at column 7"


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt"])
def test_utf16_is_recognised(tmp_path: Path, name: str) -> None:
    """Excel's "Unicode text"."""
    assert (
        refused(written(tmp_path / name, "text\nx\n".encode("utf-16")))
        == f"{name}:1: the file is UTF-16: save it as UTF-8"
    )


def test_ragged_csv_rows_are_named_by_line(tmp_path: Path) -> None:
    """Lines are counted as an editor shows them, also after a field of several lines."""
    path = written(tmp_path / "a.csv", 'text,label\n"a\nb",1\nx\ny,2,3\n\nz,4\n')
    found, message = read(path)
    assert found == [(2, {"text": "a\nb", "label": "1"}), (7, {"text": "z", "label": "4"})]
    assert message == (
        "2 records cannot be used:\n"
        "a.csv:4: 1 fields where the header has 2\n"
        "a.csv:5: 3 fields where the header has 2"
    )  # fmt: skip


def test_an_open_quote_in_csv_is_named_by_the_line_where_its_row_begins(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", 'text,label\na,1\n"b,2\nc,3\n')
    assert read(path)[1] == "1 record cannot be used:\na.csv:3: broken CSV: unexpected end of data"


def test_a_csv_header_with_a_column_twice_is_refused(tmp_path: Path) -> None:
    assert refused(written(tmp_path / "a.csv", "a,b,a\n")) == "a.csv:1: column 'a' occurs twice in the header"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"a": 1},\n {"a" 2}]', "a.json:2: broken JSON: Expecting ':' delimiter"),
        ('[{"a": 1},\n {"a": "b', "a.json:2: broken JSON: Unterminated string"),
        ('[{"a": 1},\n {"a": 2}\n', None),
        ('{"a": [1, 2],\n "b": [3, 4]}', "a.json: expected a JSON array of objects, found an object"),
        ('"text"', "a.json: expected a JSON array of objects, found something else"),
        ("", "a.json: expected a JSON array of objects, found something else"),
    ],
)
def test_broken_json_files_are_told(tmp_path: Path, content: str, message: str | None) -> None:
    path = written(tmp_path / "a.json", content)
    if message is None:
        assert read(path)[1] == "1 record cannot be used:\na.json:3: broken JSON: the array is not closed"
    else:
        assert refused(path) == message


def test_a_json_array_longer_than_a_block_is_read_piece_by_piece(tmp_path: Path) -> None:
    """Values that lie across the borders of blocks are whole."""
    many = [{"text": f"{number} " * 40} for number in range(20_000)]
    found, _ = read(written(tmp_path / "a.json", json.dumps(many, indent=0)))
    assert [row for _, row in found] == many
    assert found[1][0] == 5


def test_a_broken_gzip_file_is_told(tmp_path: Path) -> None:
    whole = gzip.compress(lines(PLAIN * 1000).encode())
    assert refused(written(tmp_path / "a.jsonl.gz", whole[:-20])).startswith("a.jsonl.gz: broken gzip file: ")
    assert refused(written(tmp_path / "b.jsonl.gz", lines(PLAIN))).startswith(
        "b.jsonl.gz: broken gzip file: Not a gzipped"
    )


def test_a_file_that_is_not_parquet_is_told(tmp_path: Path) -> None:
    message = refused(written(tmp_path / "a.parquet", lines(PLAIN)))
    assert message.startswith("a.parquet: not a readable Parquet file: ")


def test_deep_nesting_and_huge_numbers_are_bad_records_too(tmp_path: Path) -> None:
    """The parser's own limits are the record's fault."""
    path = written(tmp_path / "a.jsonl", "[" * 100_000 + "\n" + '{"a": ' + "9" * 5000 + "}\n")
    told = read(path)[1].split("\n")
    assert told[1].startswith("a.jsonl:1: broken JSON: ")
    assert told[2].startswith("a.jsonl:2: broken JSON: Exceeds the limit")


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("a.jsonl", "jsonl"),
        ("A.JSON", "json"),
        ("a.ndjson.gz", "jsonl"),
        ("a.tsv", "csv"),
        ("a.bin", None),
        ("gz", None),
    ],
)
def test_the_suffix_tells_the_format(name: str, format: str | None) -> None:
    assert format_of(name) == format
