"""Which micro-batch a run gets, and what is said to a job that cannot fit the memory that it asks for.

It decides from estimates alone. How they are made is memory.py's business.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from finetune_api.quantities import bytes_of, gibibytes
from finetune_api.reasons import Reason
from finetune_api.spec.job_spec import FineTuneJobSpec
from finetune_api.spec.methods import MEMORY_SAVERS, Method
from finetune_api.spec.scheduling import Resources
from finetune_api.status import Memory
from finetune_trainer.planning.memory import PlannedModel
from finetune_trainer.planning.workload import Workload
from finetune_trainer.runtime.failures import Failure

MARGIN = 1.2
"""A job is refused whose smallest estimate is above the limit by more than this: estimates may be that wrong."""


class Fit(NamedTuple):
    """A micro-batch and what it takes."""

    rows: int
    memory: Memory


def limit(resources: Resources) -> int | None:
    """Bytes that the train stage has: of the GPU, None where nobody said; without a GPU, of the pod."""
    if resources.gpus:
        return None if resources.gpu_memory is None else bytes_of(resources.gpu_memory)
    return bytes_of(resources.memory)


def largest(model: PlannedModel, load: Workload, resources: Resources) -> Fit:
    """The largest choice that fits, else the smallest; where the limit is not known the largest. More rows never need
    less. A rehearsal takes seconds, so the likely answer is tried first."""
    choices, available = load.choices(resources), limit(resources)

    def tried(rows: int) -> Fit:
        return Fit(rows, model.memory(load.shape(rows)))

    if available is not None and model.least > available:
        return tried(choices[0])
    smallest = tried(choices.pop())
    if available is None or smallest.memory.total <= available:
        return smallest
    best = None
    while choices:
        middle = len(choices) // 2
        fit = tried(choices[middle])
        if fit.memory.total <= available:
            best, choices = fit, choices[middle + 1 :]
        else:
            smallest, choices = fit, choices[:middle]
    return best or smallest


def fitted(model: PlannedModel, folder: Path, spec: FineTuneJobSpec, labels: list[str], load: Workload) -> Fit:
    """The micro-batch of the run; raises Failure for one that needs clearly more than there is, and says what fits.

    Estimates are not exact, so a run is refused only if its smallest micro-batch exceeds the limit by MARGIN.
    """
    available = limit(spec.resources)
    fit = largest(model, load, spec.resources)
    if available is None or fit.memory.total <= MARGIN * available:
        return fit
    field, has = ("gpuMemory", spec.resources.gpu_memory) if spec.resources.gpus else ("memory", spec.resources.memory)
    offer = _offer(folder, spec, labels, load, available)
    told = f"{_needs(spec.method.kind, fit)}, and there is {has}"
    otherwise = offer or "nothing that was tried fits: take a smaller model, or more memory"
    raise Failure(Reason.BAD_SPEC, f"spec.resources.{field}: {told}; {otherwise}")


def _needs(what: str, fit: Fit) -> str:
    return f"{what} needs about {gibibytes(fit.memory.total)} at microBatchSize {fit.rows}"


def _offer(folder: Path, spec: FineTuneJobSpec, labels: list[str], load: Workload, available: int) -> str | None:
    """The first alternative that fits: less at once, activations computed twice, then fewer trainable weights."""
    for words, changes in _alternatives(spec):
        changed = spec.model_copy(update=changes)
        try:
            model = PlannedModel(folder, changed, labels)
        except Failure:  # not for this model
            continue
        if model.least <= available:
            fit = largest(model, load._replace(is_fixed=False), spec.resources)
            if fit.memory.total <= available:
                return _needs(words, fit)
    return None


def _alternatives(spec: FineTuneJobSpec) -> Iterator[tuple[str, dict[str, Any]]]:
    thrifty = {"training": spec.training.model_copy(update={"gradient_checkpointing": True})}
    methods = [(kind, {"method": Method.model_validate({kind: {}})}) for kind in MEMORY_SAVERS]
    kind = spec.method.kind
    yield kind, {}
    if not spec.training.gradient_checkpointing:
        yield f"{kind} with training.gradientCheckpointing", thrifty
    yield from ((other, change) for other, change in methods if other != kind)
    yield from (
        (f"{other} with training.gradientCheckpointing", change | thrifty) for other, change in methods if other != kind
    )
