"""The stages of a run, in their order. Each is one pod that starts where the one before has ended."""

from typing import Literal

StageName = Literal["prepare", "train", "publish"]
PREPARE: Literal["prepare"] = "prepare"
"""Data, model and plan are checked and made ready; no GPU is held."""
TRAIN: Literal["train"] = "train"
"""The optimizer's steps, and what is measured before and after them."""
PUBLISH: Literal["publish"] = "publish"
"""The result is written to its place and read back."""
STAGES: tuple[StageName, ...] = (PREPARE, TRAIN, PUBLISH)
