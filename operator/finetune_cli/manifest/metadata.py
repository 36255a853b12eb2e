"""What Kubernetes asks of the metadata of every object, and no schema of ours says: types, names of labels, owners.

The texts about names and owners are those of the API server (k8s.io/apimachinery, validation of ObjectMeta). Of a wrong
type it speaks in the words of Go; here it is said in those of YAML.
"""

import re
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

from finetune_cli.manifest.document import Route
from finetune_cli.manifest.structural_schema import Violation, dotted

Check = Callable[[Any, Route], Iterator[Violation]]

ANNOTATIONS_LIMIT = 256 * 1024
_NAME = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]"
_LABEL = f"({_NAME})?"
_SUBDOMAIN = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"
_CHARACTERS = "alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character"
_NAME_FORM = (
    f"must consist of {_CHARACTERS} (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is "
    f"'{_NAME}')"
)
_KEY_FORM = f"a valid label key {_NAME_FORM} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
_LABEL_FORM = (
    f"a valid label must be an empty string or consist of {_CHARACTERS} (e.g. 'MyValue',  or 'my_value',  or '12345', "
    f"regex used for validation is '{_LABEL}')"
)
_SUBDOMAIN_FORM = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and "
    f"end with an alphanumeric character (e.g. 'example.com', regex used for validation is '{_SUBDOMAIN}')"
)


def metadata_violations(metadata: Any) -> Iterator[Violation]:
    """What is wrong with `metadata`; of what has the wrong type nothing else is said."""
    if not isinstance(metadata, dict):
        yield Violation(("metadata", "name"), "Required value: name or generateName is required", blocking=True)
        return
    if not metadata.get("name") and not metadata.get("generateName"):
        yield Violation(("metadata", "name"), "Required value: name or generateName is required", blocking=True)
    for name, value in metadata.items():
        check = FIELDS.get(name)
        if check is None:
            yield Violation(("metadata", name), f'unknown field "metadata.{name}"')
        elif value is not None:
            yield from check(value, ("metadata", name))


def _text(value: Any, route: Route) -> Iterator[Violation]:
    if not isinstance(value, str):
        hint = "" if isinstance(value, (dict, list)) else ": put it in quotes"
        yield Violation(route, f"Invalid value: must be a string{hint}", blocking=True)


def _number(value: Any, route: Route) -> Iterator[Violation]:
    if not isinstance(value, int) or isinstance(value, bool):
        yield Violation(route, "Invalid value: must be a whole number", blocking=True)


def _truth(value: Any, route: Route) -> Iterator[Violation]:
    if not isinstance(value, bool):
        yield Violation(route, "Invalid value: must be true or false", blocking=True)


def _time(value: Any, route: Route) -> Iterator[Violation]:
    wrong = list(_text(value, route))
    yield from wrong
    if not wrong and not _is_time(value):
        yield Violation(route, "Invalid value: must be a time such as 2026-01-02T15:04:05Z", blocking=True)


def _is_time(text: str) -> bool:
    try:
        return "T" in text and datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False


def _texts_by_name(value: Any, route: Route) -> Iterator[Violation]:
    """A map of strings whose keys are qualified names: labels and annotations."""
    if not isinstance(value, dict):
        found = "a list" if isinstance(value, list) else "a single value"
        yield Violation(route, f"Invalid value: must be a map, name: value; it is {found}", blocking=True)
        return
    written = {name: text for name, text in value.items() if text is not None}
    for name, text in written.items():
        yield from _text(text, (*route, name))
        yield from _named(name, route, (*route, name))


def _labels(value: Any, route: Route) -> Iterator[Violation]:
    yield from _texts_by_name(value, route)
    for name, text in value.items() if isinstance(value, dict) else ():
        if isinstance(text, str):
            yield from (_told(complaint, text, route, (*route, name)) for complaint in _complaints_of_label(text))


def _annotations(value: Any, route: Route) -> Iterator[Violation]:
    yield from _texts_by_name(value, route)
    if isinstance(value, dict):
        size = sum(len(name.encode()) + len(str(text or "").encode()) for name, text in value.items())
        if size > ANNOTATIONS_LIMIT:
            yield Violation(route, f"Too long: may not be more than {ANNOTATIONS_LIMIT} bytes", blocking=True)


def _list_of(check: Check, what: str) -> Check:
    def checked(value: Any, route: Route) -> Iterator[Violation]:
        if not isinstance(value, list):
            yield Violation(route, f"Invalid value: must be a list of {what}", blocking=True)
            return
        for index, item in enumerate(value):
            yield from check(item, (*route, index))

    return checked


def _finalizer(value: Any, route: Route) -> Iterator[Violation]:
    wrong = list(_text(value, route))
    yield from wrong or _named(value, route[:-1], route)


def _object(value: Any, route: Route) -> Iterator[Violation]:
    if not isinstance(value, dict):
        yield Violation(route, "Invalid value: must be an object", blocking=True)


def _owner(value: Any, route: Route) -> Iterator[Violation]:
    """One owner: all of it has to be said."""
    value = {} if value is None else value
    if not isinstance(value, dict):
        yield Violation(route, "Invalid value: must be an object with apiVersion, kind, name and uid", blocking=True)
        return
    for name, part in value.items():
        check = OWNER_FIELDS.get(name)
        if check is None:
            yield Violation((*route, name), f'unknown field "{dotted((*route, name))}"')
        elif part is not None:
            yield from check(part, (*route, name))
    for name in ("apiVersion", "kind", "name", "uid"):
        if not value.get(name) or (name == "apiVersion" and str(value[name]).count("/") > 1):
            text = "version must not be empty" if name == "apiVersion" else "must not be empty"
            said = str(value.get(name) or "")
            yield _told(text, said, (*route[:-1], name), (*route, name) if name in value else route)


def _owners(value: Any, route: Route) -> Iterator[Violation]:
    yield from _list_of(_owner, "owners")(value, route)
    owners = [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []
    leaders = [f"{one.get('kind')}/{one.get('name')}" for one in owners if one.get("controller") is True]
    if len(leaders) > 1:
        text = 'Only one reference can have Controller set to true. Found "true" in references for '
        yield Violation(route, f"Invalid value: {text}{leaders[0]} and {leaders[1]}", blocking=True)


def _named(name: str, field: Route, place: Route) -> Iterator[Violation]:
    """What is wrong with a qualified name: `name`, or `example.com/name`; of labels alone the prefix is lower-case."""
    prefix, slash, last = name.rpartition("/")
    complaints = []
    if "/" in prefix:
        complaints.append(_KEY_FORM)
    else:
        if slash and not prefix:
            complaints.append("prefix part must be non-empty")
        elif slash and not re.fullmatch(_SUBDOMAIN, prefix if field[-1] == "labels" else prefix.lower()):
            complaints.append(f"prefix part {_SUBDOMAIN_FORM}")
        complaints += [f"name part {one}" for one in _complaints_of_name(last)]
    yield from (_told(complaint, name, field, place) for complaint in complaints)


def _complaints_of_name(text: str) -> Iterator[str]:
    if not text:
        yield "must be non-empty"
    elif len(text) > 63:
        yield "must be no more than 63 bytes"
    if not re.fullmatch(_NAME, text):
        yield _NAME_FORM


def _complaints_of_label(text: str) -> Iterator[str]:
    if len(text.encode()) > 63:
        yield "must be no more than 63 bytes"
    if not re.fullmatch(_LABEL, text):
        yield _LABEL_FORM


def _told(complaint: str, value: str, field: Route, place: Route) -> Violation:
    """As the API server says it, by the field; the line is that of the entry."""
    return Violation(field, f'Invalid value: "{value}": {complaint}', at=place)


FIELDS: dict[str, Check] = (
    dict.fromkeys(("name", "generateName", "namespace", "resourceVersion", "selfLink", "uid"), _text)
    | dict.fromkeys(("creationTimestamp", "deletionTimestamp"), _time)
    | dict.fromkeys(("generation", "deletionGracePeriodSeconds"), _number)
    | {
        "labels": _labels,
        "annotations": _annotations,
        "finalizers": _list_of(_finalizer, "names"),
        "managedFields": _list_of(_object, "objects"),
        "ownerReferences": _owners,
    }
)
"""metav1.ObjectMeta."""
OWNER_FIELDS: dict[str, Check] = dict.fromkeys(("apiVersion", "kind", "name", "uid"), _text) | dict.fromkeys(
    ("controller", "blockOwnerDeletion"), _truth
)
