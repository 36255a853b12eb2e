"""What `finetune run` makes of a job before its first stage starts."""

import re
from pathlib import Path

import pytest

from finetune_api.job import FineTuneJob
from finetune_api.reasons import Reason
from finetune_api.spec.job_spec import Metadata
from finetune_cli.commands.run import GPU_FILES, NEXT_HERE, _for_this_machine
from unit.observed import spec


@pytest.mark.parametrize("driver", [None, *GPU_FILES])
def test_a_machine_without_a_gpu_trains_on_its_cpu(tmp_path: Path, driver: str | None) -> None:
    """A driver's device file is what a machine with a GPU has; without one the job is prepared for the CPU too."""
    if driver:
        (tmp_path / driver).touch()
    job = FineTuneJob(metadata=Metadata(name="a"), spec=spec())
    assert _for_this_machine(job, tmp_path).spec.resources.gpus == (1 if driver else 0)
    assert job.spec.resources.gpus == 1


def test_every_end_of_a_stage_has_a_next_step_for_this_machine() -> None:
    """One that works here: nothing is applied, and nobody looks at spec.restarts."""
    trainer = Path(__file__).parents[2] / "trainer_image" / "finetune_trainer"
    named = {name for path in trainer.rglob("*.py") for name in re.findall(r"\bReason\.([A-Z_]+)", path.read_text())}
    only_in_pods = {Reason.RUN_CHANGED}
    assert {Reason[name] for name in named} - only_in_pods == NEXT_HERE.keys()
    assert not [step for step in NEXT_HERE.values() if re.search(r"restarts|[Aa]pply|kubectl|namespace", step)]
