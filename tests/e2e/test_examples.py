"""Every file in examples/ works as written, and what it leaves is what it says: plain transformers and peft agree.

The real model, the real data, the files as a user would apply them; then the published folder is opened by the lines of
its model card, and its held-out loss is measured again by code that knows nothing of this project.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from e2e import upstream
from e2e.courier import Courier, courier
from e2e.installation import ROOT, Images
from e2e.jobs import Jobs, condition
from e2e.kubectl import Kubectl
from finetune_api.spec.job_spec import FineTuneJobSpec
from finetune_trainer.data.prepared import open_split, read_prepared
from finetune_trainer.models.device import arithmetic
from finetune_trainer.runtime.workspace import Workspace

pytestmark = pytest.mark.timeout(1200)

EXAMPLES = [
    *(path for path in sorted((ROOT / "examples").glob("*.yaml")) if "kind: FineTuneJob\n" in path.read_text()),
    *(pytest.param(path, marks=pytest.mark.matrix) for path in sorted((ROOT / "examples/methods").glob("*.yaml"))),
]

NAMED = {"compose": ("lora-sft.yaml", "methods/qlora.yaml")}
"""Examples that wait for what others publish."""


@pytest.fixture
def workspace(jobs: Jobs, images: Images, tmp_path: Path) -> Callable[[str], Workspace]:
    """A local copy of what `prepare` left on a job's workspace."""

    def copied(name: str) -> Workspace:
        claim = jobs.workspace(name)
        with courier(jobs.kubectl, "workspace-reader", images.trainer, [claim]) as reader:
            reader.take(claim, "prepared", tmp_path / "workspace" / "prepared")
        return Workspace(tmp_path / "workspace")

    return copied


@pytest.fixture
def published(desk: Courier, tmp_path: Path) -> Callable[[str], Path]:
    """A local copy of what lies at a URI."""

    def copied(uri: str) -> Path:
        claim, _, path = uri.removeprefix("pvc://").partition("/")
        return desk.take(claim, path, tmp_path / "artifact")

    return copied


def with_its_workspace(example: Path) -> dict[str, Any]:
    """The example, its workspace kept: what `prepare` left there is compared with."""
    body: dict[str, Any] = yaml.safe_load(example.read_text(encoding="utf-8"))
    workspace = body["spec"].setdefault("resources", {}).setdefault("workspace", {})
    workspace["reclaim"] = {"onSuccess": "Retain"}
    return body


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example(
    example: Path, jobs: Jobs, published: Callable[[str], Path], workspace: Callable[[str], Workspace], assets: Path
) -> None:
    """The job succeeds; its artifact beats its base, and scores with upstream code what the status reports."""
    name = jobs.apply(with_its_workspace(example))
    for other in NAMED.get(example.stem, ()):
        jobs.until_succeeded(jobs.apply(ROOT / "examples" / other), seconds=900)
    job = jobs.until_succeeded(name, seconds=900)
    assert condition(job, "Complete")["status"] == "True"
    assert_columns(jobs.kubectl, name, learns=job["status"]["plan"]["totalSteps"] > 0)
    evaluation = job["status"]["evaluation"]
    assert evaluation["tuned"]["loss"] < evaluation["base"]["loss"]
    folder = published(job["status"]["artifact"]["uri"])
    assert upstream.digest(folder) == job["status"]["artifact"]["digest"]
    spec = FineTuneJobSpec.model_validate(yaml.safe_load(example.read_text(encoding="utf-8"))["spec"])
    base = assets / "models" / spec.model.uri.rpartition("/")[2]
    loss = measured_loss(spec, folder, base, workspace(name), evaluation)
    assert loss == pytest.approx(evaluation["tuned"]["loss"], rel=torch.finfo(torch.bfloat16).eps)


def measured_loss(
    spec: FineTuneJobSpec, artifact: Path, base: Path, workspace: Workspace, evaluation: dict[str, Any]
) -> float:
    """The held-out loss by upstream code, on the split that the job was judged on."""
    page = read_prepared(workspace)
    assert page is not None
    split = open_split(workspace, page, evaluation["split"])
    assert split is not None
    model = upstream.tuned_model(artifact, base)
    # In the job's arithmetic: between bf16 and fp32 the loss of one model differs by more than a rounding of bf16.
    dtype = arithmetic(page.plan.precision or spec.training.precision, torch.device("cpu")).dtype
    return upstream.held_out_loss(model, list(split), page.pad_token_id, dtype)


def assert_columns(kubectl: Kubectl, name: str, learns: bool) -> None:
    """What `kubectl get` shows of a finished job: a loss, where there were steps."""
    header, row = (line.split() for line in kubectl("get", "ftj", name).splitlines())
    assert header[:5] == ["NAME", "PHASE", "REASON", "PROGRESS", "LOSS"]
    assert row[:4] == [name, "Succeeded", "Succeeded", "100"]
    if learns:
        assert float(row[4]) > 0
