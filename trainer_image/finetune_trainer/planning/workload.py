"""What the data asks of a run: as it was prepared, or, where nobody has read it, the most that the job allows.

It imports no torch: the process that asks has none.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from finetune_api.spec.job_spec import FineTuneJobSpec
from finetune_api.spec.scheduling import Resources
from finetune_trainer.data.packing import longest
from finetune_trainer.data.preparation import Preparation
from finetune_trainer.data.prepared import Prepared
from finetune_trainer.data.record_types import RECORD_TYPES
from finetune_trainer.planning.batch_size import MOST_AT_ONCE, batches, schedule
from finetune_trainer.pretrained.base_model import is_encoder_decoder, longest_input


@dataclass(frozen=True)
class Shape:
    """What goes through the model at once."""

    rows: int
    length: int
    """Tokens of the longest row; of an encoder-decoder's longest input."""
    packed: bool = False
    """Whether several records share a row."""
    answer: int = 0
    """Tokens of the longest answer, where it stands in a row of its own: with encoder-decoders."""
    accumulates: bool = False
    """Whether the gradients of earlier micro-batches are there already."""


class Workload(NamedTuple):
    """What the data asks of a run."""

    length: int
    """Tokens of the longest row; of an encoder-decoder's longest input."""
    packed: bool
    batch: int
    """Rows of an optimizer step; the most, where `in_one_pass`."""
    usual: int
    """Rows of a micro-batch where nothing speaks for more or for less."""
    is_fixed: bool
    """Whether the job says so."""
    answer: int = 0
    """Tokens of the longest answer, where it stands in a row of its own: with encoder-decoders."""
    in_one_pass: bool = False
    """Whether a step is one micro-batch, however large that turns out."""

    def choices(self, resources: Resources) -> list[int]:
        """Rows that a micro-batch may have, ascending. More than usual help only a GPU, and only if it has room."""
        if self.is_fixed:
            return [self.usual]
        if self.in_one_pass:
            return [1 << power for power in range(self.batch.bit_length())]
        most = self.batch if resources.gpus and resources.gpu_memory else min(self.batch, self.usual)
        return [rows for rows in range(1, most + 1) if self.batch % rows == 0]

    def shape(self, rows: int) -> Shape:
        return Shape(
            rows, self.length, self.packed, self.answer, accumulates=rows < self.batch and not self.in_one_pass
        )


def prepared_load(job: Preparation, page: Prepared) -> dict[str, Any]:
    """What the data asks of the run, as Load says it."""
    records = page.data.train_examples or 0
    rows = page.data.packed_rows or records
    length, answer = longest(job.workspace.prepared, page.splits.values(), job.in_pairs)
    in_one_pass = job.spec.training.batch_size == "auto"
    micro, accumulation, _ = schedule(job.spec.training, records, rows)
    most = min(MOST_AT_ONCE, max(1, rows))
    return {
        "length": page.max_length if page.packing else length,
        "answer": answer,
        "packed": page.packing,
        "batch": most if in_one_pass else micro * accumulation,
        "usual": most if in_one_pass else micro,
        "is_fixed": job.spec.training.micro_batch_size != "auto",
        "in_one_pass": in_one_pass,
    }


def heaviest_load(folder: Path, spec: FineTuneJobSpec) -> Any:
    """The heaviest data that the job allows."""
    config = json.loads((folder / "config.json").read_bytes())
    length = min(spec.training.max_length, longest_input(config) or spec.training.max_length)
    in_pairs = RECORD_TYPES[spec.objective.kind].has_answers and is_encoder_decoder(config)
    can_be_packed = spec.objective.options.takes_packed_rows and spec.method.options.takes_packed_rows and not in_pairs
    packed = can_be_packed and spec.dataset.packing != "never" and spec.resources.gpus > 0
    answer = length if in_pairs else 0
    batch, micro = batches(spec.training)
    is_fixed, in_one_pass = spec.training.micro_batch_size != "auto", spec.training.batch_size == "auto"
    return Workload(length, packed, batch, micro, is_fixed, answer, in_one_pass)
