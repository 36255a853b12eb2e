"""`spec.model`: the base model."""

from typing import Annotated, ClassVar

from pydantic import Field

from finetune_api.schema import ApiModel
from finetune_api.spec.credentials import Auth, not_a_local_file, plain_path, stays_inside
from finetune_api.uris import MODEL_FORMS, MODEL_PATTERN


class ModelSource(ApiModel):
    """The base model."""

    rules: ClassVar = (not_a_local_file("uri"), stays_inside("uri"), plain_path("uri"))

    uri: Annotated[str, Field(pattern=MODEL_PATTERN, max_length=1024, json_schema_extra={"x-message": MODEL_FORMS})]
    """Where the model lives: `hf://org/name`, or `pvc://claim/path` for a folder in Hugging Face layout (config,
    tokenizer, safetensors)."""
    revision: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    """Branch, tag or commit of an `hf://` model. It is resolved to a commit once and recorded. Default: the main
    branch."""
    auth: Auth | None = None
    """Needed for gated or private models."""
