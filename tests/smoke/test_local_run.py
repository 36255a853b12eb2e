"""`finetune run` with the real trainer and a tiny model.

One story, because each stage is a process that loads torch: bad data is refused and corrected, training is interrupted
and resumed, the finished run is asked for once more. Each test looks at one part of it.
"""

import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

import tiny

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
STEPS = 900


@dataclass(frozen=True)
class Ending:
    """What one `finetune run` left."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Story:
    """The endings, in order, and the folder that it was told in."""

    folder: Path
    bad_data: Ending
    interrupted: Ending
    resumed: Ending
    again: Ending


def write_job(folder: Path, model: Path, steps: int = STEPS) -> None:
    """A job that trains for `steps`, saying so every tenth of them."""
    spec = {
        "model": {"uri": f"file://{model}"},
        "dataset": {"train": [{"uri": "pvc://data/train.jsonl"}]},
        "training": {"maxSteps": steps, "batchSize": 8, "maxLength": 64, "precision": "fp32"},
        "evaluation": {"prompts": ["hello"], "maxNewTokens": 2, "everySteps": STEPS},
        "output": {"uri": "pvc://out/tiny"},
        "resources": {"gpus": 0},
    }
    job = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "tiny"}, "spec": spec}
    (folder / "job.yaml").write_text(yaml.safe_dump(job))


def start(folder: Path) -> subprocess.Popen[str]:
    finetune = Path(sys.executable).parent / "finetune"
    command = [str(finetune), "run", "job.yaml", "--volume", "data=data", "--volume", "out=out"]
    return subprocess.Popen(
        command, cwd=folder, env=ENVIRONMENT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def finish(process: subprocess.Popen[str]) -> Ending:
    out, err = process.communicate(timeout=600)
    return Ending(process.returncode, out, err)


def interrupt_in_training(process: subprocess.Popen[str]) -> Ending:
    """Ctrl-C as soon as steps are reported."""
    assert process.stdout is not None
    begun = any(re.match(rf"train: [1-9]\d*/{STEPS}", line) for line in process.stdout)
    process.send_signal(signal.SIGINT)
    ending = finish(process)
    assert begun, ending
    return ending


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    folder = tmp_path_factory.mktemp("local-run")
    (folder / "data").mkdir()
    data = tiny.jsonl(folder / "data" / "train.jsonl", tiny.completions(64))
    write_job(folder, tiny.llama(folder / "model"))
    lines = data.read_text().splitlines()
    data.write_text("\n".join([*lines[:6], '{"prompt": "broken', *lines[6:]]))
    bad_data = finish(start(folder))
    data.write_text("\n".join(lines))
    interrupted = interrupt_in_training(start(folder))
    return Story(folder, bad_data, interrupted, resumed=finish(start(folder)), again=finish(start(folder)))


def test_bad_data_is_named_with_file_and_line(story: Story) -> None:
    """The exit code is prepare's, the message the record's, with the next step and no traceback."""
    assert story.bad_data.code == 65
    assert "prepare failed: DatasetInvalid" in story.bad_data.err
    assert re.search(r"train\.jsonl.*7", story.bad_data.err)
    assert "Next: Correct the records" in story.bad_data.err
    assert "Traceback" not in story.bad_data.err


def test_an_interrupted_run_says_how_to_go_on(story: Story) -> None:
    """Ctrl-C in mid-training ends with 130 after the checkpoint is saved."""
    assert (story.interrupted.code, story.interrupted.err) == (130, "")
    assert "run the same command again to resume" in story.interrupted.out


def test_the_same_command_resumes(story: Story) -> None:
    """Prepared data is not prepared again, and training does not start from nothing."""
    assert (story.resumed.code, story.resumed.err) == (0, "")
    assert re.search(r"✓ prepare +done before", story.resumed.out)
    steps = [int(step) for step in re.findall(rf"^train: (\d+)/{STEPS}", story.resumed.out, re.MULTILINE)]
    assert steps[0] > 0


def test_the_end_is_a_summary(story: Story) -> None:
    """Held-out loss before and after, where the artifact is, and its digest."""
    assert "Succeeded" in story.resumed.out
    assert re.search(r"loss +[\d.]+ +[\d.]+", story.resumed.out)
    assert re.search(r"digest +sha256:[0-9a-f]{64}", story.resumed.out)
    assert list((story.folder / "out" / "tiny").glob("*.safetensors"))


def test_a_finished_run_is_not_done_twice(story: Story) -> None:
    """The same command once more shows the same result at once."""
    assert (story.again.code, story.again.err) == (0, "")
    assert story.again.out.count("done before") == 3
    assert "digest" in story.again.out


def test_another_spec_is_refused(story: Story) -> None:
    """A workspace holds one run: what changed is named, and what can be done."""
    write_job(story.folder, story.folder / "model", steps=STEPS + 1)
    ending = finish(start(story.folder))

    assert ending.code == 64
    assert "spec.training changed since" in ending.err
    assert "--fresh" in ending.err
