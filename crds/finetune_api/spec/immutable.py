"""The CEL rules that keep what defines a run as it is, generated from the models.

It decides what counts as the same: a field that may be edited does not count, and an item of a list that says a default
equals one that leaves it out, because earlier releases wrote the defaults of list items into stored jobs.
"""

from typing import Any, get_args, get_origin

from pydantic.fields import FieldInfo

from finetune_api.schema import ApiModel, Rule


def frozen(field: str, model: type[ApiModel], editable: tuple[str, ...]) -> Rule:
    """`spec.field` cannot change, apart from the paths in `editable`."""
    rest = [path.removeprefix(f"{field}.") for path in editable if path.startswith(f"{field}.")]
    but = f" (apart from {', '.join(rest)})" if rest else ""
    message = f"{field} defines the run and cannot be changed{but}: apply a job under a new name"
    return Rule(_same(field, model, editable), message)


def _same(path: str, model: type[ApiModel], editable: tuple[str, ...]) -> str:
    """CEL: the object at `path` of type `model` is what it was."""
    if not _is_intricate(path, model, editable):
        return f"self.{path} == oldSelf.{path}"
    parts = []
    for name, field in model.model_fields.items():
        below = f"{path}.{field.alias or name}"
        if below in editable:
            continue
        same, (inner, is_list) = f"self.{below} == oldSelf.{below}", model_of(field.annotation)
        if inner is not None:
            same = _same_items(below, inner) if is_list else _same(below, inner, editable)
        is_there = field.is_required() or _has_default(field)
        parts.append(same if is_there else _if_set(below, same))
    return " && ".join(parts)


def _if_set(path: str, same: str) -> str:
    """CEL: absent before and now, or there both times and the same."""
    return f"(has(self.{path}) ? has(oldSelf.{path}) && {same} : !has(oldSelf.{path}))"


def _is_intricate(path: str, model: type[ApiModel], editable: tuple[str, ...]) -> bool:
    """Whether something below counts as the same although it is written otherwise."""
    if any(one.startswith(f"{path}.") for one in editable):
        return True
    found = ((field.alias or name, model_of(field.annotation)) for name, field in model.model_fields.items())
    return any(
        inner is not None and (_defaulted(inner) if is_list else _is_intricate(f"{path}.{alias}", inner, editable))
        for alias, (inner, is_list) in found
    )


def _defaulted(model: type[ApiModel]) -> bool:
    return any(_has_default(field) for field in model.model_fields.values())


def _has_default(field: FieldInfo) -> bool:
    return field.default_factory is not None or (not field.is_required() and field.default is not None)


def _same_items(path: str, model: type[ApiModel]) -> str:
    if not _defaulted(model):
        return f"self.{path} == oldSelf.{path}"
    form = ", ".join(_texts("one", model))
    return f"self.{path}.map(one, [{form}]) == oldSelf.{path}.map(one, [{form}])"


def _texts(item: str, model: type[ApiModel], given: str = "") -> list[str]:
    """CEL: each scalar of `item` as text, with its default where it is absent."""
    texts = []
    for name, field in model.model_fields.items():
        below, (inner, _) = f"{item}.{field.alias or name}", model_of(field.annotation)
        guard = " && ".join(part for part in (given, "" if field.is_required() else f"has({below})") if part)
        if inner is not None:
            texts += _texts(below, inner, guard)
        else:
            texts.append(f"{guard} ? {_text(below, field)} : '{_default(field)}'" if guard else _text(below, field))
    return texts


def _text(expression: str, field: FieldInfo) -> str:
    return expression if str in _scalars(field.annotation) else f"string({expression})"


def _default(field: FieldInfo) -> str:
    if field.is_required() or field.default is None:
        return ""
    return f"{field.default:g}" if isinstance(field.default, int | float) else str(field.default)


def _scalars(annotation: Any) -> set[Any]:
    """The types of plain values in an annotation."""
    if get_origin(annotation) is not None and str(get_origin(annotation)) == "typing.Literal":
        return {type(value) for value in get_args(annotation)}
    parts = get_args(annotation)
    return set().union(*map(_scalars, parts)) if parts else {annotation} if isinstance(annotation, type) else set()


def model_of(annotation: Any) -> tuple[type[ApiModel] | None, bool]:
    """The contract model inside `X`, `X | None`, `list[X]` or `Annotated[...]` of those, None for scalars; and whether
    it is a list's."""
    if isinstance(annotation, type) and issubclass(annotation, ApiModel):
        return annotation, False
    found = [one for part in get_args(annotation) if (one := model_of(part))[0] is not None]
    if not found:
        return None, False
    model, is_list = found[0]
    return model, is_list or get_origin(annotation) is list
