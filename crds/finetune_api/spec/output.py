"""`spec.output`: where the result goes."""

from typing import Annotated, ClassVar

from pydantic import Field

from finetune_api.schema import ApiModel
from finetune_api.spec.credentials import not_a_local_file, plain_path, stays_inside
from finetune_api.uris import OUTPUT_FORMS, OUTPUT_PATTERN


class Output(ApiModel):
    """Where the result goes."""

    rules: ClassVar = (not_a_local_file("uri"), stays_inside("uri"), plain_path("uri"))

    uri: Annotated[str, Field(pattern=OUTPUT_PATTERN, max_length=1024, json_schema_extra={"x-message": OUTPUT_FORMS})]
    """Folder for the result: `pvc://claim/path`. What is there is replaced only if an earlier run of this job put it
    there."""
    merge: bool = False
    """Also publish the whole model with the adapter merged in, under `merged/`."""
