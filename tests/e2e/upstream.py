"""A published folder as somebody sees it who has only its model card: measured with transformers and peft.

The prepared split is read with the trainer's own reader; everything that has to do with the model is upstream's.
"""

import contextlib
import hashlib
import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

Record = dict[str, Any]
BATCH = 8


def digest(folder: Path) -> str:
    """The digest of an artifact, after each file was compared with its manifest."""
    manifest = folder / "manifest.json"
    files: dict[str, Any] = json.loads(manifest.read_bytes())["files"]
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == {
        *files,
        manifest.name,
    }
    for name, entry in files.items():
        assert sha256(folder / name) == entry["sha256"], name
        assert (folder / name).stat().st_size == entry["sizeBytes"], name
    return f"sha256:{sha256(manifest)}"


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tuned_model(artifact: Path, base: Path) -> transformers.PreTrainedModel:
    """The tuned model in fp32, or in its 4 bits, by the very lines of its model card; the base lies at `base`."""
    card = (artifact / "README.md").read_text(encoding="utf-8")
    (lines,) = (block for block in re.findall(r"```python\n(.*?)```", card, re.DOTALL) if "from_pretrained" in block)
    names: dict[str, Any] = {}
    with contextlib.chdir(artifact):
        exec(re.sub(r'from_pretrained\("(?!\.")[^"]*"', f"from_pretrained({str(base)!r}", lines), names)
    model: transformers.PreTrainedModel = names["model"].eval()
    return model if "quantization" in names else model.float()


def held_out_loss(
    model: transformers.PreTrainedModel, records: Sequence[Record], padding: int, dtype: torch.dtype
) -> float:
    """Mean cross-entropy in nats, products in `dtype`: per learnt token where records have a mask, else per record."""
    if model.config.pad_token_id is None:
        model.config.pad_token_id = padding  # a classifier finds the last token of a row by it
    total, count = 0.0, 0
    with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype is not torch.float32):
        for batch in batches(records):
            chosen, targets = (answers if model.config.is_encoder_decoder else judged)(model, batch, padding)
            total += torch.nn.functional.cross_entropy(chosen, targets, reduction="sum").item()
            count += len(targets)
    return total / count if count else math.nan


def batches(records: Sequence[Record]) -> Iterator[list[Record]]:
    """Records of similar length together."""
    ordered = sorted(records, key=lambda record: len(record["input_ids"]))
    return (ordered[start : start + BATCH] for start in range(0, len(ordered), BATCH))


def padded(sequences: Sequence[Sequence[int]], padding: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, mask), int64 [sequences, longest], filled up on the right."""
    length = max(map(len, sequences))
    ids = torch.full((len(sequences), length), padding)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.tensor(sequence)
        mask[row, : len(sequence)] = 1
    return ids, mask


def judged(model: Any, batch: list[Record], padding: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(logits, targets) of what is learnt, from a model that reads whole records."""
    ids, mask = padded([record["input_ids"].tolist() for record in batch], padding)
    logits = model(input_ids=ids, attention_mask=mask).logits.float()
    if "label" in batch[0]:
        return logits, torch.tensor([record["label"] for record in batch])
    logits = logits[:, -ids.shape[1] :]  # peft counts virtual tokens in front
    places = [torch.tensor(record["loss_mask"].nonzero()[0]) for record in batch]
    chosen = [row[learnt - 1] for row, learnt in zip(logits, places, strict=True)]
    return torch.cat(chosen), torch.cat([row[learnt] for row, learnt in zip(ids, places, strict=True)])


def answers(model: Any, batch: list[Record], padding: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The same from an encoder-decoder, whose encoder reads what is not learnt; it shifts its labels by itself."""
    ids, mask = padded([record["input_ids"][~record["loss_mask"]].tolist() for record in batch], padding)
    targets, learnt = padded([record["input_ids"][record["loss_mask"]].tolist() for record in batch], padding)
    logits = model(input_ids=ids, attention_mask=mask, labels=targets).logits.float()
    return logits[learnt.bool()], targets[learnt.bool()]
