"""Writes the types of `trainer.podTemplate` into the chart's values.schema.json: `python -m finetune_api.values FILE`.

It owns the lines of that file that begin with `"pods.`, one for each type, and leaves the others alone.
"""

import json
import sys
from pathlib import Path
from typing import Any

from finetune_api.spec.pod_template import PodTemplate

OWN = '    "pods.'
OPENING = '  "definitions": {'


def definitions() -> dict[str, Any]:
    """JSON schemas by name. Keys of maps are left to the operator, which says more about them."""
    schema = PodTemplate.model_json_schema(by_alias=True, ref_template="#/definitions/pods.{model}")
    types = {**schema.pop("$defs"), "PodTemplate": schema}
    return {f"pods.{name}": _bare(one) for name, one in sorted(types.items())}


def _bare(schema: Any, *, is_field_map: bool = False) -> Any:
    """Without what only people read, and without the null of an optional field that Kubernetes does not know."""
    if isinstance(schema, list):
        return [_bare(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if "anyOf" in schema and not schema.get("nullable") and {"type": "null"} in schema["anyOf"]:
        (one,) = (option for option in schema["anyOf"] if option != {"type": "null"})
        return _bare(one)
    spoken = () if is_field_map else ("title", "description", "default", "x-message", "nullable")
    return {
        name: _bare(part, is_field_map=name == "properties" and not is_field_map)
        for name, part in schema.items()
        if name not in spoken
    }


def written(text: str) -> str:
    """The text of values.schema.json with these types in it."""
    lines = [line for line in text.splitlines() if not line.startswith(OWN)]
    place = lines.index(OPENING) + 1
    own = [f"    {json.dumps(name)}: {json.dumps(one)}," for name, one in definitions().items()]
    return "\n".join([*lines[:place], *own, *lines[place:]]) + "\n"


def main() -> None:
    file, *check = sys.argv[1:]
    text = Path(file).read_text()
    if check and text != written(text):
        sys.exit(f"{file} is not what `make generate` writes")
    Path(file).write_text(written(text))


if __name__ == "__main__":
    main()
