"""`finetune validate` and the API server say the same, because both read the generated schema.

Theory: each file in wrong/ is refused, and its leading comment lines are what the user is told; each file in right/ is
accepted. Each rule between fields has an example of both.
"""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from cluster.control_plane import ControlPlane
from cluster.paths import ClusterError
from finetune_api.crd import job_schema
from finetune_cli.manifest.document import Document, read
from finetune_cli.manifest.validation import NOT_ALL_CHECKED, check, job

HERE = Path(__file__).parent
WRONG = sorted(HERE.glob("wrong/*.yaml"))
RIGHT = sorted(HERE.glob("right/*.yaml"))


def name(path: Path) -> str:
    return path.stem


def announced(path: Path) -> list[str]:
    """The messages that a wrong file says it earns."""
    return [line.removeprefix("# ") for line in path.read_text().splitlines() if line.startswith("# ")]


def only_document(path: Path) -> Document:
    (document,) = read(str(path))
    return document


def job_name(path: Path) -> str:
    return str(only_document(path).value["metadata"]["name"])


@pytest.fixture(scope="module")
def refused(control_plane: ControlPlane) -> dict[str, str]:
    """What `kubectl create` says to each wrong file, by the name of the job or of the file; nothing is created."""
    with pytest.raises(ClusterError) as error:
        control_plane.kubectl("create", "--dry-run=server", "-f", str(HERE / "wrong"))
    answers = re.split(r"(?m)^(?=The FineTuneJob |Error from server)", str(error.value))
    named = [(re.search(r'FineTuneJob "([^"]+)" is invalid|/([^/"]+)\.yaml"', text), text) for text in answers]
    return {found[1] or found[2]: text for found, text in named if found}


def refusals(text: str) -> set[str]:
    """The single messages in what kubectl prints."""
    if "strict decoding error" in text:  # all unknown fields, and nothing else is looked at
        return set(re.findall(r'unknown field "[^"]+"', text))
    listed = text.partition(" is invalid: ")[2].strip().removeprefix("[").removesuffix("]")
    messages = re.split(r", (?=(?:<nil>|spec|[a-zA-Z]+[.][][.\w]+): )", listed)
    return {message.removeprefix("<nil>: ") for message in messages if not _is_repeated(message, messages)}


def _is_repeated(message: str, messages: list[str]) -> bool:
    """What Kubernetes says of any object's name, and a wrong type said again: `finetune validate` says it once."""
    if message.startswith(("metadata.", '<nil>: Invalid value: "":')):
        return True
    return "type integer:" in message and message.replace("type integer:", "type integer,string:") in messages


@pytest.mark.parametrize("path", WRONG, ids=name)
def test_validate_tells_what_is_wrong(path: Path) -> None:
    """Each wrong file gets exactly the messages in its first lines."""
    assert sorted(str(problem) for problem in check(only_document(path))) == sorted(announced(path))


@pytest.mark.parametrize("path", WRONG, ids=name)
def test_every_problem_has_a_line_of_the_file(path: Path) -> None:
    """No problem is reported at the comments above the document."""
    lines = path.read_text().splitlines()
    for problem in check(only_document(path)):
        if problem.message != NOT_ALL_CHECKED:
            assert len(announced(path)) < problem.line <= len(lines)


@pytest.mark.parametrize("path", RIGHT, ids=name)
def test_validate_accepts(path: Path) -> None:
    """What is right is accepted, and parses with the contract once its defaults are filled in."""
    document = only_document(path)

    assert check(document) == []
    job(document)


@pytest.mark.integration
@pytest.mark.parametrize("path", WRONG, ids=name)
def test_the_api_server_says_the_same(refused: dict[str, str], path: Path) -> None:
    """The API server refuses each wrong file with the same messages; after an unknown field it looks no further."""
    text = refused.get(path.stem) or refused[job_name(path)]
    said = refusals(text)

    if "strict decoding error" in text:
        assert said
        assert said <= set(announced(path))
    else:
        assert said == set(announced(path))


@pytest.mark.integration
def test_the_api_server_accepts(control_plane: ControlPlane) -> None:
    """The API server takes each right file as it is."""
    taken = control_plane.kubectl("create", "--dry-run=server", "-f", str(HERE / "right"), "-o", "name")

    assert len(taken.split()) == len(RIGHT)


def rules(schema: dict[str, Any]) -> Iterator[str]:
    """The message of every rule that can hold for a single version of the object."""
    for rule in schema.get("x-kubernetes-validations", ()):
        if "oldSelf" not in rule["rule"]:
            yield rule["message"]
    for below in [*schema.get("properties", {}).values(), *([schema["items"]] if "items" in schema else [])]:
        yield from rules(below)


@pytest.mark.parametrize("message", sorted(set(rules(job_schema()))))
def test_every_rule_is_broken_by_a_wrong_file(message: str) -> None:
    """A rule that no example breaks is a rule that nobody has seen work."""
    assert any(message in said for path in WRONG for said in announced(path))


@pytest.mark.parametrize("message", sorted(set(rules(job_schema()))))
def test_every_rule_is_kept_by_a_right_file(message: str) -> None:
    """And one that no example keeps may refuse everything."""
    assert message in all_tried()


@cache
def all_tried() -> set[str]:
    schema = job_schema()
    return set().union(*(tried(only_document(path).value, schema) for path in RIGHT))


def tried(value: Any, schema: dict[str, Any]) -> set[str]:
    """The messages of the rules on what `value` writes out itself."""
    found = {rule["message"] for rule in schema.get("x-kubernetes-validations", ())}
    if isinstance(value, list):
        return found.union(*(tried(item, schema["items"]) for item in value))
    if isinstance(value, dict):
        known = schema.get("properties", {})
        return found.union(*(tried(inner, known[name]) for name, inner in value.items() if name in known))
    return found


@pytest.mark.parametrize("path", WRONG, ids=name)
def test_a_local_run_refuses_the_same_but_for_local_files(path: Path) -> None:
    """`finetune run` has every rule of the cluster, save the one against file://."""
    local = {str(problem) for problem in check(only_document(path), cluster=False)}

    assert local == {message for message in announced(path) if "file:// works only" not in message}
