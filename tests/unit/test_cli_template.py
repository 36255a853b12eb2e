"""`finetune init` writes jobs that are valid, whatever is chosen, and explains them with the schema's own words."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from finetune_api.crd import job_schema
from finetune_cli.commands.init import METHODS, OBJECTIVES
from finetune_cli.main import app
from finetune_cli.manifest.document import parse
from finetune_cli.manifest.validation import check, job


def init(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["init", *arguments])
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("method", METHODS)
def test_every_pair_is_a_valid_job(objective: str, method: str) -> None:
    """Each objective with each method: accepted, and what was asked for."""
    code, text, _ = init("--objective", objective, "--method", method)
    (document,) = parse(text.encode(), "job.yaml")

    assert code == 0
    assert check(document) == []
    spec = job(document).spec
    assert (spec.objective.kind, spec.method.kind) == (objective, method)


def test_comments_are_those_of_the_schema() -> None:
    """What `kubectl explain` says stands above the field."""
    spec = job_schema()["properties"]["spec"]["properties"]

    assert f"# {spec['method']['properties']['lora']['properties']['rank']['description']}" in init()[1]


def test_the_learning_rate_is_that_of_the_method() -> None:
    """Full fine-tuning starts ten times lower than LoRA."""
    assert "learningRate: 0.0002" in init("--method", "lora")[1]
    assert "learningRate: 2.0e-05" in init("--method", "full")[1]


def test_a_file_is_written_once(tmp_path: Path) -> None:
    """A file that exists is kept unless --force says otherwise."""
    file = tmp_path / "job.yaml"

    assert init(str(file))[0] == 0
    file.write_text("mine")
    code, _, err = init(str(file))
    assert (code, file.read_text()) == (1, "mine")
    assert "--force" in err
    assert init("--force", str(file))[0] == 0
    assert file.read_text() != "mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--method", "lorra"), "choose one of lora, qlora, qaLora"),
        (("--objective", "dpo"), "choose one of sft, classification"),
        (("--model", "gpt2"), "spec.model.uri: Invalid value"),
        (("--name", "My Bot"), "metadata.name must be a DNS label"),
    ],
)
def test_a_wrong_choice_is_refused_before_anything_is_written(
    tmp_path: Path, arguments: tuple[str, str], message: str
) -> None:
    """No file that would not be valid is left behind."""
    file = tmp_path / "job.yaml"
    code, _, err = init(str(file), *arguments)

    assert code == 1
    assert message in err
    assert not file.exists()
