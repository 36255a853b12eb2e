"""What `finetune run` makes of a job before its first stage starts."""

from pathlib import Path

import pytest

from finetune_api.job import FineTuneJob
from finetune_api.spec import Metadata
from finetune_cli.local import GPU_FILES, _for_this_machine
from unit.observed import spec


@pytest.mark.parametrize("driver", [None, *GPU_FILES])
def test_a_machine_without_a_gpu_trains_on_its_cpu(tmp_path: Path, driver: str | None) -> None:
    """A driver's device file is what a machine with a GPU has; without one the job is prepared for the CPU too."""
    if driver:
        (tmp_path / driver).touch()
    job = FineTuneJob(metadata=Metadata(name="a"), spec=spec())
    assert _for_this_machine(job, tmp_path).spec.resources.gpus == (1 if driver else 0)
    assert job.spec.resources.gpus == 1
