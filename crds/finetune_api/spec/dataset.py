"""`spec.dataset`: the records to learn from and to be judged on."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from finetune_api.schema import ApiModel, Rule, exactly_one_of
from finetune_api.spec.credentials import REVISION_OF_THE_HUB, Auth, not_a_local_file, plain_path, stays_inside
from finetune_api.uris import DATASET_FORMS, DATASET_PATTERN

ColumnName = Annotated[str, Field(min_length=1, max_length=128)]


class Columns(ApiModel):
    """Which column of the data plays which part. A part left out is looked for under its own name."""

    rules: ClassVar = (
        Rule(
            "!(has(self.messages) && (has(self.prompt) || has(self.completion) || has(self.text)))",
            "messages excludes prompt, completion and text: a record is one of chat, prompt/completion or text",
        ),
    )

    messages: ColumnName | None = None
    """Chat: a list of `{role, content}`."""
    prompt: ColumnName | None = None
    """The prompt of a prompt/completion record."""
    completion: ColumnName | None = None
    """The answer to learn."""
    text: ColumnName | None = None
    """Plain text (`sft`), or the text to classify."""
    label: ColumnName | None = None
    """The class of a record (`classification`)."""


class Source(ApiModel):
    """One set of records."""

    rules: ClassVar = (
        not_a_local_file("uri"),
        stays_inside("uri"),
        plain_path("uri"),
        REVISION_OF_THE_HUB,
    )

    uri: Annotated[str, Field(pattern=DATASET_PATTERN, max_length=1024, json_schema_extra={"x-message": DATASET_FORMS})]
    """Where it lives: `pvc://claim/path`, `configmap://name/key`, `https://…`, `hf://org/name[/path]`."""
    format: Literal["auto", "jsonl", "json", "csv", "parquet", "text"] = "auto"
    """File format. Default: `auto`, which goes by the file's suffix. `text` makes each non-empty line a plain-text
    record."""
    revision: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    """Branch, tag or commit of an `hf://` dataset. Default: the main branch."""
    columns: Columns = Field(default_factory=Columns)
    auth: Auth | None = None
    """Needed for gated or private data."""


class Split(ApiModel):
    """Held-out data: a share of the training records, or sources of its own."""

    rules: ClassVar = (exactly_one_of("fraction", "sources"),)

    fraction: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Share of the training records split off by `training.seed`, by label for classification. 0 turns the split
    off."""
    sources: Annotated[list[Source], Field(min_length=1, max_length=32)] | None = None
    """Separate data. Labels that training never saw are an error."""


SplitName = Literal["train", "validation", "test"]


class Dataset(ApiModel):
    """The records to learn from and to be judged on."""

    train: Annotated[list[Source], Field(min_length=1, max_length=32)]
    """Training data; several sources are read one after the other and shuffled together."""
    validation: Split = Field(default_factory=lambda: Split(fraction=0.05))
    """Watched during training: early stopping and the choice of the best checkpoint look at it."""
    test: Split = Field(default_factory=lambda: Split(fraction=0.05))
    """Looked at once, at the end, with the base model and with the tuned one."""
    template: Annotated[str, Field(min_length=1, max_length=16384)] | None = None
    """Jinja chat template that replaces the tokenizer's own."""
    packing: Literal["auto", "always", "never"] = "auto"
    """Several records in one row, kept apart by position and attention. `auto` packs where attention kernels take
    document boundaries (CUDA) and groups by length elsewhere."""
