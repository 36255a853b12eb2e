"""What a dataset is made of, as a key before it is read and as a fingerprint after.

It decides what both cover: what changes neither makes no other data.
"""

import hashlib
from typing import Any

from finetune_trainer.data import sources
from finetune_trainer.data.preparation import Preparation
from finetune_trainer.runtime.files import sha256_of

LAYOUT = 1
"""Version of what is made of the same input: raise it when that changes."""


def data_key(job: Preparation) -> str:
    """Covers all that shapes the data, with stamps of the sources in place of their content: they are not read yet."""
    stamps = [sources.stamp(job.run, place) for place in sources.placed(job.spec.dataset)]
    return sha256_of({"shape": _shape(job), "dataset": job.spec.dataset.to_wire(), "stamps": stamps})


def _shape(job: Preparation) -> dict[str, Any]:
    """What decides how records become tokens."""
    return {
        "layout": LAYOUT,
        "objective": job.spec.objective.to_wire(),
        "seed": job.spec.training.seed,
        "maxLength": job.max_length,
        "packing": job.packing,
        "tokenizer": hashlib.sha256(job.tokenizer.backend.to_str().encode()).hexdigest(),
        "tokens": job.tokenizer.tokens,
        "template": job.tokenizer.template_source,
        **({"pairs": True} if job.in_pairs else {}),
    }


def fingerprint_of(job: Preparation, digests: list[str], names: list[str]) -> str:
    shares = {name: getattr(job.spec.dataset, name).fraction for name in ("validation", "test")}
    return "sha256:" + sha256_of({"shape": _shape(job), "tables": digests, "labels": names, "shares": shares})
