"""`spec.evaluation`: what is measured on held-out data, and when."""

from typing import Annotated

from pydantic import Field

from finetune_api.schema import ApiModel


class Evaluation(ApiModel):
    """What is measured beside the loss."""

    every_steps: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """Optimizer steps between validations. Default: ten times in a run."""
    prompts: Annotated[list[Annotated[str, Field(min_length=1, max_length=4096)]], Field(max_length=8)] = []
    """Prompts that the base and the tuned model answer at the end (sft); the answers stand in the model card."""
    max_new_tokens: Annotated[int, Field(ge=1, le=2048)] = 64
    """Length limit of those answers."""
