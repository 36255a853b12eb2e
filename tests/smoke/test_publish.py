"""The publish stage: what it writes, what it refuses to call published, and that it can always be tried again.

Theory: nothing in it can cost a trained weight, so every failure below is followed by a success.
"""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from finetune_api.exits import ExitCode
from finetune_api.reasons import Reason
from finetune_trainer.artifacts import merge
from finetune_trainer.artifacts import result as results
from finetune_trainer.artifacts.model_card import model_card
from finetune_trainer.artifacts.verification import verify
from finetune_trainer.runtime.failures import Failure
from finetune_trainer.runtime.files import sha256
from finetune_trainer.runtime.progress import Progress
from finetune_trainer.stages.publish import publish
from tolerance import WEIGHT, InDouble, assert_close, doubled
from training import Pair, Prepared, prepared

FILES = {
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "history.jsonl",
    "loss.png",
    "metrics.json",
    "tokenizer.json",
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prepared]:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    run = prepared(
        tmp_path_factory.mktemp("published"),
        Pair("llama", "sft", "lora"),
        evaluation={"prompts": ["abc -> "], "maxNewTokens": 4},
    )
    run.train()
    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


def to(trained: Prepared, target: Path, merged: bool = False) -> Prepared:
    output = trained.run.spec.output.model_copy(update={"uri": f"file://{target}", "merge": merged})
    run = trained.run.model_copy(update={"spec": trained.run.spec.model_copy(update={"output": output})})
    return Prepared(run, trained.workspace)


def published(run: Prepared) -> Path:
    publish(run.run, run.workspace, Progress("publish"))
    return run.run.locate(run.run.spec.output.uri)


def test_the_artifact_is_complete_and_the_report_names_it(trained: Prepared, tmp_path: Path) -> None:
    """All files of the layout, a manifest that covers each, and a report with its digest and the size of all."""
    run = to(trained, tmp_path / "out")
    report = publish(run.run, run.workspace, Progress("publish"))
    artifact = report.artifact
    folder = tmp_path / "out"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert set(manifest["files"]) >= FILES
    assert all(sha256(folder / name) == entry["sha256"] for name, entry in manifest["files"].items())
    assert artifact.digest == f"sha256:{sha256(folder / 'manifest.json')}"
    assert (report.plan, report.data) == (trained.stage().page.plan, trained.stage().page.data)
    assert report.evaluation is not None
    assert artifact.size_bytes == sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert (artifact.kind, artifact.uri) == ("adapter", f"file://{folder}")
    assert manifest["job"]["uid"] == run.run.uid
    assert manifest["baseModel"]["revision"] == trained.stage().page.model_revision
    assert manifest["spec"] == run.run.spec.to_wire()
    assert "python" in manifest["versions"]
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert (
        json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
        == trained.stage().page.model_path
    )


def test_the_card_shows_metrics_and_both_answers(trained: Prepared, tmp_path: Path) -> None:
    """The table has the base and the tuned loss; the prompt is quoted with both answers."""
    card = (published(to(trained, tmp_path / "out")) / "README.md").read_text()
    assert "| Loss |" in card
    assert "    abc -> " in card
    assert card.count("**This model**") == 1


def test_the_card_says_the_arithmetic_and_what_it_follows_from(trained: Prepared) -> None:
    """`precision: auto` took it by a fact of one machine, which who compares two artifacts has to know."""
    page, decided = trained.stage().page, {"precision": "fp32", "precision_basis": "AMD EPYC has no amx_bf16"}
    page = page.model_copy(update={"plan": page.plan.model_copy(update=decided)})
    card = model_card(trained.run, page, results.read(trained.workspace.result))
    assert "a step, products in fp32 (AMD EPYC has no amx_bf16), seed" in card


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "README.md", "loss.png"])
def test_a_flipped_byte_is_found(trained: Prepared, tmp_path: Path, name: str) -> None:
    """Verification reads every file back; one changed bit is ArtifactInvalid, with the file's name."""
    folder = published(to(trained, tmp_path / "out"))
    verify(folder)
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(Failure, match=name) as found:
        verify(folder)
    assert found.value.reason is Reason.ARTIFACT_INVALID


def test_missing_and_foreign_files_are_found(trained: Prepared, tmp_path: Path) -> None:
    """The manifest and the folder hold the same names, or the artifact is not valid."""
    folder = published(to(trained, tmp_path / "out"))
    (folder / "extra").touch()
    with pytest.raises(Failure, match="extra"):
        verify(folder)
    (folder / "extra").unlink()
    (folder / "history.jsonl").unlink()
    with pytest.raises(Failure, match=r"history\.jsonl"):
        verify(folder)


def test_a_failed_publish_is_retried_without_training(trained: Prepared, tmp_path: Path) -> None:
    """The output's parent is a file: exit 73 and an untouched result; once it is gone the same call succeeds, twice."""
    (tmp_path / "models").write_text("in the way")
    run = to(trained, tmp_path / "models/out")
    before = sha256(run.workspace.result / "result.json")
    with pytest.raises(Failure) as failed:
        published(run)
    assert failed.value.code == ExitCode.CANNOT_WRITE
    assert sha256(run.workspace.result / "result.json") == before
    (tmp_path / "models").unlink()
    first = sha256(published(run) / "manifest.json")
    assert sha256(published(run) / "manifest.json") == first
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["out"]


@pytest.mark.skipif(os.geteuid() != 0, reason="a full disk is made with mount, as root")
def test_a_full_disk_is_named_and_leaves_nothing_behind(trained: Prepared, tmp_path: Path) -> None:
    """A volume of 300 kB: OutputNotWritable with the field, no half artifact; with room it succeeds."""
    volume = tmp_path / "volume"
    volume.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(volume)], check=True)
    try:
        (volume / "ballast").write_bytes(b"\0" * 200_000)
        with pytest.raises(Failure, match=r"spec\.output\.uri") as failed:
            published(to(trained, volume / "out"))
        assert failed.value.reason is Reason.OUTPUT_NOT_WRITABLE
        assert [path.name for path in volume.iterdir()] == ["ballast"]
    finally:
        subprocess.run(["umount", str(volume)], check=True)
    published(to(trained, volume / "out"))


def test_the_merged_model_says_what_the_adapter_says(trained: Prepared, tmp_path: Path) -> None:
    """output.merge adds merged/, a plain transformers model whose logits are the adapter's."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder = published(to(trained, tmp_path / "out", merged=True))
    assert len({path.stat().st_mode for path in folder.rglob("*") if path.is_file()}) == 1, "others may read all of it"
    base = AutoModelForCausalLM.from_pretrained(trained.stage().page.model_path)
    ids = torch.tensor([[5, 6, 7, 8]])
    models = PeftModel.from_pretrained(base, folder), AutoModelForCausalLM.from_pretrained(folder / "merged")
    with torch.no_grad(), InDouble():
        adapter, merged = (doubled(model).eval()(input_ids=ids).logits for model in models)
    assert_close(merged, adapter, WEIGHT, computed_in=torch.float32)


def test_a_merge_that_changes_the_logits_is_refused() -> None:
    """A thousandth of the largest logit is the limit; a difference that is not a number is refused too."""
    logits = [torch.tensor([10.0, 0.0])]
    merge.compare(logits, [torch.tensor([10.005, 0.0])])
    for wrong in (10.02, float("nan")):
        with pytest.raises(Failure, match="publish without"):
            merge.compare(logits, [torch.tensor([wrong, 0.0])])


def test_another_jobs_result_is_not_published(trained: Prepared, tmp_path: Path) -> None:
    """The workspace's result has to be this job's."""
    run = to(trained, tmp_path / "out")
    with pytest.raises(Failure) as refused:
        publish(run.run.model_copy(update={"uid": "another"}), run.workspace, Progress("publish"))
    assert refused.value.reason is Reason.CHECKPOINT_MISMATCH
