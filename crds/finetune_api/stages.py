"""The stages of a run, in their order. Each is one pod that starts where the one before has ended."""

from typing import Literal

StageName = Literal["prepare", "train", "publish"]
STAGES: tuple[StageName, ...] = ("prepare", "train", "publish")
