"""What each method would take for one job: the process behind `finetune plan`.

It reads one question from standard input (`model`: a folder with a config.json, `spec`, `methods`) and answers a line
of JSON for each method as soon as it is known. Data is not read: every row is taken to be as long as training.maxLength
and the model allow. Options are the method's defaults, but those of the job's own method are the job's.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from finetune_api.spec.job_spec import FineTuneJobSpec
from finetune_api.spec.methods import Method
from finetune_trainer.data.record_types import RECORD_TYPES
from finetune_trainer.planning.workload import heaviest_load
from finetune_trainer.runtime.failures import Failure
from finetune_trainer.runtime.process import print_readably

TWO_CLASSES = ["0", "1"]
"""Where the job leaves the classes to the data: the head of a classifier is small."""


def main() -> int:
    """Answer one question."""
    print_readably()
    answer, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer
    question = json.loads(sys.stdin.buffer.read())
    folder, spec = Path(question["model"]), FineTuneJobSpec.model_validate(question["spec"]).resolved()
    for kind in question["methods"]:
        method = spec.method if kind == spec.method.kind else Method.model_validate({kind: {}})
        print(json.dumps(row(folder, spec.model_copy(update={"method": method}))), file=answer, flush=True)
    return 0


def row(folder: Path, spec: FineTuneJobSpec) -> dict[str, Any]:
    """One method: parameters, memory and the micro-batch that fits, or why the model cannot be trained so."""
    from finetune_trainer.models.loading import quiet
    from finetune_trainer.planning.memory import PlannedModel
    from finetune_trainer.planning.micro_batch import largest, limit
    from finetune_trainer.pretrained.initial_adapter import composed_here

    quiet()
    told: dict[str, Any] = {"method": spec.method.kind}
    has_labels = RECORD_TYPES[spec.objective.kind].has_labels
    labels = (spec.objective.options.declared_labels or TWO_CLASSES) if has_labels else []
    try:
        with tempfile.TemporaryDirectory() as start:
            model = PlannedModel(folder, composed_here(spec, Path(start)), labels)
        fit = largest(model, heaviest_load(folder, spec), spec.resources)
    except Failure as failure:
        return told | {"refused": failure.message}
    told |= {"totalParameters": model.total, "trainableParameters": model.trainable, "microBatchSize": fit.rows}
    return told | {"memory": fit.memory.to_wire(), "totalBytes": fit.memory.total, "limitBytes": limit(spec.resources)}


if __name__ == "__main__":
    sys.exit(main())
