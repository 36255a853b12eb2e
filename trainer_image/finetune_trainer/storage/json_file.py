"""A JSON file of a model, as an object.

It decides that a missing file says nothing, and that a broken one is the model's fault.
"""

import json
from pathlib import Path
from typing import Any

from finetune_api.reasons import Reason
from finetune_trainer.runtime.failures import Failure


def read_json(path: Path, name: str) -> dict[str, Any]:
    """A JSON object of the model `name`; {} where there is no such file. Raises ModelInvalid when it is broken."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:
        raise Failure(Reason.MODEL_INVALID, f"{name}: {path.name} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise Failure(Reason.MODEL_INVALID, f"{name}: {path.name} is not a JSON object")
    return content
