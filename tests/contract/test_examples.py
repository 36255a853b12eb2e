"""The files in examples/ keep to the contract, and say how to run themselves."""

from pathlib import Path

import pytest
import yaml

from finetune_api.job import FineTuneJob
from finetune_api.spec.methods import Method
from finetune_api.spec.objectives import Objective

EXAMPLES = Path(__file__).parents[2] / "examples"
JOBS = sorted(path for path in EXAMPLES.rglob("*.yaml") if "kind: FineTuneJob" in path.read_text())


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_job_is_one_that_the_api_accepts(path: Path) -> None:
    """Each example parses with the models that the operator and the trainer parse it with."""
    job = FineTuneJob.model_validate(yaml.safe_load(path.read_text()))

    assert job.spec.output.uri == f"pvc://models/{job.metadata.name}"


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_job_begins_with_its_own_command(path: Path) -> None:
    """The second line can be pasted into a shell: it applies this file and watches this job."""
    name = yaml.safe_load(path.read_text())["metadata"]["name"]

    command = path.read_text().splitlines()[1].removeprefix("#").strip()

    assert command == f"kubectl apply -f {path.relative_to(EXAMPLES.parent)} && kubectl get finetunejob {name} --watch"


def test_every_objective_and_method_has_an_example() -> None:
    """What the API offers is shown."""
    jobs = [FineTuneJob.model_validate(yaml.safe_load(path.read_text())) for path in JOBS]

    assert {job.spec.objective.kind for job in jobs} == {field.alias for field in Objective.model_fields.values()}

    assert {job.spec.method.kind for job in jobs} == {field.alias for field in Method.model_fields.values()}
