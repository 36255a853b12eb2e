"""What `train` leaves for `publish`: the artifact's weights in their final layout, and all that was measured.

It decides the layout of the result folder. It knows nothing of models, and imports no torch: to publish an adapter
needs none.

`result/`  artifact/ (as the method saves it) · result.json
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from finetune_api import uris
from finetune_api.schema import ApiModel
from finetune_api.status import EvaluationResult
from finetune_trainer.runtime.files import new_folder, write_file
from finetune_trainer.training.state import Identity, RunState, check_identity

PAGE, ARTIFACT = "result.json", "artifact"


class Result(ApiModel):
    """The page `result.json`."""

    identity: Identity
    evaluation: EvaluationResult
    state: RunState
    details: dict[str, Any] = {}
    """Per model (base, tuned), what is too large for a status."""
    kind: Literal["adapter", "model"]
    """What `artifact/` holds: an adapter or a whole model."""
    loader: Literal["peft", "transformers", "finetune_trainer"]
    """The library that loads it."""
    auto_class: str
    """The transformers class that loads the base model with the head that was trained."""
    quantization: dict[str, Any] | None = None
    """Arguments of transformers' BitsAndBytesConfig, with which the base was loaded to learn and to be measured; None:
    in full precision."""
    versions: dict[str, str] = {}
    """Of the libraries that trained."""


@contextmanager
def draft(folder: Path, result: Result) -> Iterator[Path]:
    """The folder for the artifact; the result stands when the block ends."""
    with new_folder(folder) as place:
        (place / ARTIFACT).mkdir()
        yield place / ARTIFACT
        write_file(place / PAGE, result.model_dump_json(by_alias=True, exclude_none=True, indent=1))


def read(folder: Path) -> Result | None:
    """The finished result that lies there; None where there is none yet."""
    try:
        return Result.model_validate_json((folder / PAGE).read_bytes())
    except FileNotFoundError:
        return None


def read_own(folder: Path, identity: Identity) -> Result | None:
    """The same; raises Failure for the result of another run."""
    result = read(folder)
    if result is not None:
        check_identity(result.identity, identity, folder)
    return result


def base_name(uri: str) -> str:
    """What the artifact calls its base model: the hub's name for `hf://`, the path for `file://`, else the URI."""
    parsed = uris.parse(uri)
    return {"hf": parsed.name, "file": parsed.path}.get(parsed.scheme, str(parsed))
