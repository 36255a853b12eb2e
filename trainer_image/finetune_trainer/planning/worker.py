"""The process that counts a run's parameters and estimates its memory: `python -m finetune_trainer.planning.worker`.

It is asked in two lines of JSON, the model with its classes and then the data's load, and answers in one.
"""

import json
import logging
import sys
from pathlib import Path
from typing import Any

from finetune_api.spec.job_spec import FineTuneJobSpec
from finetune_api.stages import PREPARE
from finetune_trainer.runtime.failures import Failure
from finetune_trainer.runtime.optional_imports import hide
from finetune_trainer.runtime.process import log_to_stderr

log = logging.getLogger(__name__)


def main() -> int:
    """Read two lines from standard input, answer on standard output."""
    answer, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer
    log_to_stderr(PREPARE)
    sys.excepthook = lambda kind, error, trace: log.critical("unexpected", exc_info=error)
    hide("datasets")
    hide("bitsandbytes")  # no weight is loaded here
    # before the question arrives: the import is the long part
    from finetune_trainer.planning.memory import PlannedModel

    question = json.loads(sys.stdin.buffer.readline())
    folder, spec = Path(question["model"]), FineTuneJobSpec.model_validate(question["spec"])
    try:
        model = PlannedModel(folder, spec, question["labels"])
        load = json.loads(sys.stdin.buffer.readline())
        told = {"total": model.total, "trainable": model.trainable, **_precision(model, spec)}
        json.dump(told | _estimated(model, folder, spec, question["labels"], load), answer)
    except Failure as failure:
        json.dump({"reason": failure.reason, "message": failure.message}, answer)
        return int(failure.code)
    return 0


def _precision(model: Any, spec: FineTuneJobSpec) -> dict[str, str | None]:
    if spec.resources.gpus:
        return {}
    dtype, basis = model.arithmetic
    return {"precision": {2: "bf16", 4: "fp32"}[dtype.itemsize], "precision_basis": basis}


def _estimated(model: Any, folder: Path, spec: FineTuneJobSpec, labels: list[str], load: Any) -> dict[str, Any]:
    """Rows and memory. An architecture that cannot be rehearsed can be trained all the same."""
    from finetune_trainer.planning.micro_batch import fitted
    from finetune_trainer.planning.workload import Workload

    try:
        fit = fitted(model, folder, spec, labels, Workload(**load))
    except Failure:
        raise
    except Exception:
        log.warning("cannot estimate the memory of this run; it goes on without", exc_info=True)
        return {}
    return {"rows": fit.rows, "memory": fit.memory.to_wire()}


if __name__ == "__main__":
    sys.exit(main())
