"""The trainer as a user that nobody knows: what a platform that gives its own ids (OpenShift's restricted-v2) makes of
it. No entry in /etc/passwd, group 0, no capability, and no name of the user in the environment.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import tiny
from finetune_api.run import Run
from finetune_api.spec.job_spec import FineTuneJobSpec
from finetune_api.stages import STAGES
from finetune_operator import pods

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="only root can become anybody"),
]
SOMEBODY = 1_000_660_000
# Reading what the test's user owns is no part of the question: a checkout may lie in a folder of root's.
READER = "-all,+dac_read_search"
BECOME = ["setpriv", f"--reuid={SOMEBODY}", "--regid=0", "--clear-groups", "--no-new-privs",
          f"--bounding-set={READER}", f"--inh-caps={READER}", f"--ambient-caps={READER}"]  # fmt: skip


@dataclass(frozen=True)
class Place:
    """A run, and the folders that its user may write to: the same that a pod has."""

    run: Run
    file: Path
    home: Path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("any-user")
    model, data = tiny.llama(folder / "model"), tiny.jsonl(folder / "train.jsonl", tiny.completions(60))
    spec = {
        "model": {"uri": f"file://{model}"},
        "dataset": {"train": [{"uri": f"file://{data}"}]},
        "training": {"maxSteps": 4, "batchSize": 4, "maxLength": 64, "precision": "fp32"},
        "output": {"uri": f"file://{folder}/out/any-user"},
        "resources": {"gpus": 0, "cpu": 1},
    }
    for name in ("workspace", "out", "home"):
        (folder / name).mkdir()
        os.chown(folder / name, SOMEBODY, 0)
    resolved = FineTuneJobSpec.model_validate(spec).resolved()
    run = Run(name="any-user", uid="uid-1", workspace=str(folder / "workspace"), spec=resolved)
    file = folder / "run.json"
    file.write_text(run.model_dump_json(by_alias=True, exclude_none=True))
    return Place(run, file, folder / "home")


def test_a_run_succeeds_under_an_id_that_nobody_knows(place: Place) -> None:
    """All stages, with no more environment than the operator gives a pod; the result can be read by other users."""
    own = pods.environment(place.run.spec)
    environment = {"PATH": "/usr/bin:/bin", **own, "HOME": str(place.home), "TMPDIR": str(place.home)}
    for stage in STAGES:
        command = [*BECOME, sys.executable, "-m", "finetune_trainer", stage, "--run", str(place.file), "--port", "0"]
        done = subprocess.run(command, env=environment, cwd=place.home, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{stage}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    published = [path for path in (place.home.parent / "out" / "any-user").rglob("*") if path.is_file()]
    assert "adapter_model.safetensors" in [path.name for path in published]
    assert [path.name for path in published if not path.stat().st_mode & 0o004] == []
    assert {path.stat().st_uid for path in published} == {SOMEBODY}
