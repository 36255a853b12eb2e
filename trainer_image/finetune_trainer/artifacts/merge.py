"""The adapter merged into its base: one plain model, written only if it says what the adapter says.

It decides how close is equal. It knows no method: merging is the method's own business.
"""

import logging
from pathlib import Path
from typing import Any

import torch
import transformers

from finetune_api.reasons import Reason
from finetune_api.run import Run
from finetune_trainer.artifacts import result as results
from finetune_trainer.data.prepared import Prepared, open_split
from finetune_trainer.methods import METHODS
from finetune_trainer.models import device, loading
from finetune_trainer.objectives import OBJECTIVES
from finetune_trainer.pretrained.base_model import check_unchanged
from finetune_trainer.runtime.failures import Failure
from finetune_trainer.runtime.workspace import Workspace

log = logging.getLogger(__name__)

TOLERANCE = 1e-3
"""Largest difference of logits, as a share of the largest logit: fp32 sums in another order differ by far less."""
RECORDS, TOKENS = 3, 128
"""How much of the training data the two are compared on."""


def merge(run: Run, page: Prepared, workspace: Workspace, target: Path) -> None:
    """Write the merged model to `target` and read it back; raises Failure if its logits differ from the adapter's."""
    device.use_cores()
    loading.quiet()
    head, adapted = reopened(run, page, workspace)
    inputs = prompts(page, workspace)
    expected = logits(adapted, inputs)
    METHODS[run.spec.method.kind].merged(adapted).save_pretrained(target)
    plain = getattr(transformers, head.auto_class).from_pretrained(target, local_files_only=True)
    compare(expected, logits(plain, inputs))


def reopened(run: Run, page: Prepared, workspace: Workspace) -> tuple[loading.Head, Any]:
    """The adapter that training left, on its base in full precision, and as what that base is opened."""
    check_unchanged(run, Path(page.model_path), page.model_stamp, page.model_revision)
    config = loading.config_of(Path(page.model_path))
    head = OBJECTIVES[run.spec.objective.kind].suited(config).head(tuple(page.labels))
    base = loading.load(Path(page.model_path), head, page.pad_token_id)
    return head, METHODS[run.spec.method.kind].reopen(base, workspace.result / results.ARTIFACT)


def prompts(page: Prepared, workspace: Workspace) -> list[torch.Tensor]:
    """int64 [1, up to TOKENS] of each of the first records."""
    split = open_split(workspace, page, "train")
    assert split is not None
    return [
        torch.tensor(split[index]["input_ids"][:TOKENS], dtype=torch.int64).unsqueeze(0)
        for index in range(min(RECORDS, len(split)))
    ]


def logits(model: Any, prompts: list[torch.Tensor]) -> list[torch.Tensor]:
    """float32, of each prompt."""
    model.eval()
    places = ("input_ids", "decoder_input_ids") if model.config.is_encoder_decoder else ("input_ids",)
    with torch.no_grad():
        return [model(**dict.fromkeys(places, prompt)).logits.float() for prompt in prompts]


def compare(expected: list[torch.Tensor], found: list[torch.Tensor]) -> None:
    largest = max(float(logits.abs().max()) for logits in expected)
    difference = max(float((a - b).abs().max()) for a, b in zip(expected, found, strict=True))
    log.info("merged model against adapter: logits differ by at most %.1e", difference)
    if not difference <= TOLERANCE * max(1.0, largest):
        raise Failure(
            Reason.ARTIFACT_INVALID,
            f"the merged model's logits differ from the adapter's by {difference:.3g}: publish without output.merge",
        )
