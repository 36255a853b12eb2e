"""The FineTuneJob as one object."""

from typing import ClassVar, Literal

from pydantic import Field

from finetune_api.schema import ApiModel
from finetune_api.spec.job_spec import ROOT_RULES, FineTuneJobSpec, Metadata
from finetune_api.status import FineTuneJobStatus


class FineTuneJob(ApiModel):
    """A language model fine-tuned on your data: checked, trained, evaluated, published and verified."""

    rules: ClassVar = ROOT_RULES

    api_version: Literal["finetune.dev/v1alpha1"] = "finetune.dev/v1alpha1"
    kind: Literal["FineTuneJob"] = "FineTuneJob"
    metadata: Metadata
    spec: FineTuneJobSpec
    """What to fine-tune, on what, how, and where the result goes."""
    status: FineTuneJobStatus = Field(default_factory=FineTuneJobStatus)
    """What the operator observed."""
