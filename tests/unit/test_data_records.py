"""Columns play parts; a record that lacks one, or has it wrong, is told in its owner's words."""

from typing import Any

import pytest

from finetune_api.spec.dataset import Source
from finetune_trainer.data.records import Record, shape_of
from finetune_trainer.runtime.failures import BadRecordError, Failure

CHAT = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


def shape(row: dict[str, Any], objective: str = "sft", **columns: str) -> Any:
    source = Source.model_validate({"uri": "pvc://c/a.jsonl", "columns": columns})
    return shape_of(row, source, "spec.dataset.train[0]", "a.jsonl", objective)


@pytest.mark.parametrize(
    ("row", "columns", "kind", "record"),
    [
        ({"messages": CHAT}, {}, "chat", Record(messages=CHAT)),
        ({"turns": CHAT, "text": "x"}, {"messages": "turns"}, "chat", Record(messages=CHAT)),
        ({"prompt": "p", "completion": "c"}, {}, "prompt", Record(prompt="p", text="c")),
        ({"q": "p", "a": "c"}, {"prompt": "q", "completion": "a"}, "prompt", Record(prompt="p", text="c")),
        ({"prompt": "p", "answer": "c"}, {"completion": "answer"}, "prompt", Record(prompt="p", text="c")),
        ({"text": "t"}, {}, "text", Record(text="t")),
        ({"messages": CHAT, "text": "t"}, {"text": "text"}, "text", Record(text="t")),
    ],
)
def test_columns_make_a_record(row: dict[str, Any], columns: dict[str, str], kind: str, record: Record) -> None:
    found = shape(row, **columns)
    assert (found.kind, found.record(row)) == (kind, record)


@pytest.mark.parametrize(("label", "name"), [("spam", "spam"), (1, "1"), (2.0, "2"), (True, "True")])
def test_labels_are_words(label: Any, name: str) -> None:
    """Numbers name classes as well; 2.0 is what a table makes of 2."""
    row = {"text": "t", "label": label}
    assert shape(row, "classification").record(row) == Record(text="t", label=name)


@pytest.mark.parametrize(
    ("row", "columns", "objective", "message"),
    [
        (
            {"question": "q", "answer": "a"},
            {"prompt": "question", "completion": "reply"},
            "sft",
            "a.jsonl: no column 'reply' (spec.dataset.train[0].columns.completion); "
            "its columns are: 'question', 'answer'",
        ),
        (
            {"question": "q", "answer": "a"},
            {},
            "sft",
            "a.jsonl: sft needs the columns 'messages'; or 'prompt' and 'completion'; or 'text'; "
            "its columns are: 'question', 'answer'. Map them in spec.dataset.train[0].columns",
        ),
        (
            {"text": "t", "class": "c"},
            {},
            "classification",
            "a.jsonl: classification needs the columns 'text' and 'label'; its columns are: 'text', 'class'. "
            "Map them in spec.dataset.train[0].columns",
        ),
        ({"text;label": "t;c"}, {"label": "label"}, "classification", "a.jsonl: no column 'label' "
         "(spec.dataset.train[0].columns.label); its columns are: 'text;label'"),
    ],
)  # fmt: skip
def test_columns_that_make_no_record_are_refused(
    row: dict[str, Any], columns: dict[str, str], objective: str, message: str
) -> None:
    """The message has the columns that are there and the field that maps them."""
    with pytest.raises(Failure) as caught:
        shape(row, objective, **columns)
    assert (caught.value.reason, caught.value.message) == ("DatasetInvalid", message)


@pytest.mark.parametrize(
    ("first", "row", "problem"),
    [
        ({"text": ""}, {"txt": "x"}, "no field 'text'; the record has: 'txt'"),
        ({"text": ""}, {"text": None}, "'text' is null, expected text"),
        ({"text": ""}, {"text": 4}, "'text' is a number, expected text"),
        ({"messages": CHAT}, {"messages": "hello"}, "'messages' is text, expected a list of messages"),
        ({"messages": CHAT}, {"messages": []}, "'messages' is an empty list"),
        ({"messages": CHAT}, {"messages": ["x"]}, "messages[0] is text, expected an object with role and content"),
        ({"messages": CHAT}, {"messages": [{"role": "user"}]}, "messages[0] has no 'content'"),
        ({"messages": CHAT}, {"messages": [*CHAT, {"content": "x"}]}, "messages[2] has no 'role'"),
        ({"messages": CHAT}, {"messages": [{"role": 1, "content": ""}]}, "messages[0].role is a number, expected text"),
        ({"messages": CHAT}, {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
         "messages[0].content is a list, expected text"),
    ],
)  # fmt: skip
def test_bad_records_are_told(first: dict[str, Any], row: dict[str, Any], problem: str) -> None:
    with pytest.raises(BadRecordError, match=r".") as caught:
        shape(first).record(row)
    assert str(caught.value) == problem


@pytest.mark.parametrize(
    ("label", "problem"),
    [("", "'label' is empty, expected a label"), (None, "'label' is null, expected a label"),
     (1.5, "'label' is a number, expected a label"), ([1], "'label' is a list, expected a label")],
)  # fmt: skip
def test_bad_labels_are_told(label: Any, problem: str) -> None:
    with pytest.raises(BadRecordError) as caught:
        shape({"text": "", "label": "x"}, "classification").record({"text": "t", "label": label})
    assert str(caught.value) == problem


def test_a_message_may_call_a_tool_instead_of_speaking() -> None:
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}]
    assert shape({"messages": messages}).record({"messages": messages}).messages == messages
