"""The prepare stage from a run to prepared data: what it makes, what it keeps, and every way in which it refuses.

Parameters are counted by a stand-in here; test_prepare_real.py lets torch count.
"""

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import adapters
import preparing
import servers
from finetune_api.reasons import Reason
from finetune_trainer.data import splits
from finetune_trainer.data.prepared import open_split, tokenizer_folder
from finetune_trainer.runtime.failures import Failure
from finetune_trainer.storage import hub
from preparing import jsonl, prepared, run_of

PAIRS = [{"prompt": f"question {number}", "completion": f"answer {number}"} for number in range(100)]
LABELLED = [{"text": f"text {number}", "label": "ab"[number % 2]} for number in range(40)]
CLASSIFY: dict[str, Any] = {"objective": {"classification": {}}}
WHOLE: dict[str, Any] = {"validation": {"fraction": 0}, "test": {"fraction": 0}}
"""No split."""


def refusal(run: Any, **options: Any) -> tuple[str, str]:
    """Reason and message of the failure that the run ends with."""
    with pytest.raises(Failure) as caught:
        prepared(run, **options)
    return caught.value.reason.value, caught.value.message


# --- what it makes --------------------------------------------------------------------------------------------------


def test_data_is_split_and_planned(tmp_path: Path) -> None:
    """The defaults: 5 % to validate, 5 % to test, batches of 16, three epochs."""
    report, page, workspace = prepared(run_of(tmp_path, jsonl(tmp_path / "a.jsonl", PAIRS)))
    assert report.plan == page.plan
    assert report.data == page.data
    assert (page.data.train_examples, page.data.validation_examples, page.data.test_examples) == (90, 5, 5)
    assert (page.data.truncated, page.data.dropped, page.data.duplicates) == (0, 0, 0)
    assert (page.plan.micro_batch_size, page.plan.gradient_accumulation, page.plan.total_steps) == (8, 2, 18)
    assert (page.plan.total_parameters, page.plan.trainable_parameters) == (1000, 10)
    assert page.plan.model_revision == page.model_revision
    assert page.model_revision.startswith("sha256:")
    train = open_split(workspace, page, "train")
    assert train is not None
    assert page.plan.train_tokens == train.lengths.sum()
    assert page.data.tokens == sum(len(record["input_ids"]) for record in every_record(workspace, page))
    assert not train[0]["input_ids"].flags.writeable


def every_record(workspace: Any, page: Any) -> Iterator[dict[str, Any]]:
    for name in page.splits:
        split = open_split(workspace, page, name)
        assert split is not None
        yield from split


def test_all_kinds_of_records_can_be_mixed(tmp_path: Path) -> None:
    """Sources are read one after the other, whatever their formats and columns."""
    chat = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    (tmp_path / "notes.txt").write_text("one\ntwo\n")
    (tmp_path / "qa.csv").write_text("q,a\n1,2\n")
    train = [
        {"uri": f"file://{jsonl(tmp_path / 'chat.jsonl', [chat])}"},
        {"uri": f"file://{tmp_path}/notes.txt"},
        {"uri": f"file://{tmp_path}/qa.csv", "columns": {"prompt": "q", "completion": "a"}},
    ]
    _, page, _ = prepared(run_of(tmp_path, "file:///none", dataset={"train": train, **WHOLE}))
    assert page.data.train_examples == 4
    assert list(page.splits) == ["train"]


def test_classes_are_numbered_by_name(tmp_path: Path) -> None:
    """The order in the data does not matter; each split has each class."""
    rows = [{"text": f"t{number}", "label": "zebra" if number % 2 else 7} for number in range(40)]
    run = run_of(tmp_path, jsonl(tmp_path / "a.jsonl", rows), **CLASSIFY)
    _, page, workspace = prepared(run)
    assert (page.labels, page.data.labels) == (["7", "zebra"], 2)
    for name in ("train", "validation", "test"):
        split = open_split(workspace, page, name)  # type: ignore[arg-type]
        assert split is not None
        assert set(split.labels.tolist()) == {0, 1}  # type: ignore[union-attr]
        assert [record["label"] for record in split] == split.labels.tolist()  # type: ignore[union-attr]
    first = next(record for record in every_record(workspace, page) if text_of(record) == "t1")
    assert first["label"] == 1


def text_of(record: dict[str, Any]) -> str:
    text: str = preparing.byte_tokenizer().decode(record["input_ids"].tolist())
    return text


def test_declared_classes_keep_their_order(tmp_path: Path) -> None:
    objective = {"classification": {"labels": ["b", "a"]}}
    _, page, _ = prepared(run_of(tmp_path, jsonl(tmp_path / "a.jsonl", LABELLED), objective=objective))
    assert page.labels == ["b", "a"]


def test_packs_are_made_where_there_is_a_gpu(tmp_path: Path) -> None:
    """The default, `auto`, packs what a GPU will train on."""
    source = jsonl(tmp_path / "a.jsonl", PAIRS)
    _, page, workspace = prepared(run_of(tmp_path, source, training={"maxLength": 512}, resources={"gpus": 1}))
    train = open_split(workspace, page, "train")
    assert train is not None
    assert train.packs is not None
    assert page.data.packed_rows == len(train.packs) < 20
    assert sorted(index for pack in train.packs for index in pack) == list(range(len(train)))
    assert all(train.lengths[pack].sum() <= 512 for pack in train.packs)
    assert page.plan.packing


def test_counts_tell_what_became_of_the_records(tmp_path: Path) -> None:
    rows = [*PAIRS[:20], *PAIRS[:5], {"prompt": "x", "completion": ""}, {"prompt": "x", "completion": "long" * 20}]
    run = run_of(tmp_path, jsonl(tmp_path / "a.jsonl", rows), training={"maxLength": 80})
    data = prepared(run)[1].data
    assert (data.duplicates, data.dropped, data.truncated) == (5, 1, 1)
    assert (data.train_examples or 0) + (data.validation_examples or 0) + (data.test_examples or 0) == 26


def test_records_are_cut_where_the_models_positions_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An encoder of 512 positions would fail in training, hours later."""
    caplog.set_level(logging.INFO)
    preparing.model(tmp_path / "model", max_position_embeddings=38)
    page = prepared(run_of(tmp_path, jsonl(tmp_path / "a.jsonl", PAIRS)))[1]
    assert page.max_length == 38
    assert page.data.truncated == 90
    assert "the model reads at most 38 tokens" in caplog.text


def test_few_records_are_split_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _, page, _ = prepared(run_of(tmp_path, jsonl(tmp_path / "a.jsonl", PAIRS[:6])))
    assert (page.data.train_examples, page.data.validation_examples, page.data.test_examples) == (4, 1, 1)
    assert "only 6 records: what is held out is too little to judge by" in caplog.text


def test_held_out_records_that_are_trained_on_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    test = {"sources": [{"uri": f"file://{jsonl(tmp_path / 'b.jsonl', PAIRS[:7])}"}]}
    run = run_of(tmp_path, jsonl(tmp_path / "a.jsonl", PAIRS), dataset={"test": test})
    _, page, _ = prepared(run)
    assert (page.data.test_examples, page.data.duplicates) == (7, 7)
    assert "7 records of spec.dataset.test are in the training data too" in caplog.text


def test_the_templates_override_is_what_is_saved(tmp_path: Path) -> None:
    """Whoever loads the result renders as it was trained."""
    template = "{% for message in messages %}{{ message.content }}|{% endfor %}"
    run = run_of(tmp_path, jsonl(tmp_path / "a.jsonl", PAIRS), dataset={"template": template})
    _, page, workspace = prepared(run)
    assert (tokenizer_folder(workspace) / "chat_template.jinja").read_text() == template
    assert "chat_template" not in json.loads((tokenizer_folder(workspace) / "tokenizer_config.json").read_text())
    assert "question 1|answer 1|" in {text_of(record) for record in every_record(workspace, page)}


def test_folders_and_patterns_stand_for_their_files(tmp_path: Path) -> None:
    """In the order of their names; hidden files, and files of no known suffix, are not data."""
    data = tmp_path / "data"
    (data / "more").mkdir(parents=True)
    for name in ("a.jsonl", "more/b.jsonl", ".hidden.jsonl", "c.bin", "README"):
        jsonl(data / name, PAIRS[:10])
    counts = {}
    for name in ("data", "data/*.jsonl", "d?ta/**/[ab].jsonl"):
        run = run_of(tmp_path, f"file://{tmp_path}/{name}", dataset=WHOLE)
        counts[name] = prepared(run)[1].data.train_examples
    assert counts == {"data": 20, "data/*.jsonl": 10, "d?ta/**/[ab].jsonl": 20}


def test_mounted_claims_and_config_maps_are_read(tmp_path: Path) -> None:
    """A ConfigMap's volume has its files behind symbolic links in hidden folders."""
    mounted = tmp_path / "config" / "..2026"
    mounted.mkdir(parents=True)
    jsonl(mounted / "train.jsonl", PAIRS)
    (tmp_path / "config" / "train.jsonl").symlink_to("..2026/train.jsonl")
    run = run_of(tmp_path, "configmap://small/train.jsonl", mounts={"configmap://small": str(tmp_path / "config")})
    assert prepared(run)[1].data.train_examples == 90


def test_data_larger_than_a_piece_are_treated_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond some size each step goes piece by piece: the same records, tokens and classes, and packs that fit."""
    monkeypatch.setattr(splits, "CHUNK", 7)
    rows = [{**row, "label": "cab"[number % 3]} for number, row in enumerate(PAIRS)] * 2
    source = jsonl(tmp_path / "a.jsonl", rows)
    _, page, workspace = prepared(run_of(tmp_path, source, training={"maxLength": 512}, resources={"gpus": 1}))
    train = open_split(workspace, page, "train")
    assert train is not None
    assert train.packs is not None
    assert page.data.duplicates == 100
    assert page.plan.train_tokens == train.lengths.sum() == sum(len(record["input_ids"]) for record in train)
    assert sorted(index for pack in train.packs for index in pack) == list(range(len(train)))
    assert all(train.lengths[pack].sum() <= 512 for pack in train.packs)
    columns = {"text": "prompt"}
    dataset = {"train": [{"uri": f"file://{source}", "columns": columns}]}
    _, page, workspace = prepared(run_of(tmp_path, source, dataset=dataset, **CLASSIFY))
    train = open_split(workspace, page, "train")
    assert train is not None
    assert page.labels == ["a", "b", "c"]
    assert all("cab"[int(text_of(record).split()[1]) % 3] == page.labels[record["label"]] for record in train)


# --- what it keeps --------------------------------------------------------------------------------------------------


def test_a_second_time_nothing_is_done(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A retried stage reuses what is complete: it does not even count again."""
    caplog.set_level(logging.INFO)
    run = run_of(tmp_path, jsonl(tmp_path / "a.jsonl", PAIRS))
    first, _, workspace = prepared(run)
    before = {path: path.stat().st_mtime_ns for path in workspace.prepared.iterdir()}

    class Never(preparing.Count):
        def __init__(self, *arguments: Any) -> None:
            raise AssertionError("counted again")

    second, _, _ = prepared(run, Never)
    assert second == first
    assert {path: path.stat().st_mtime_ns for path in workspace.prepared.iterdir()} == before
    assert "prepared already: " in caplog.text


def test_the_same_data_make_the_same_fingerprint(tmp_path: Path) -> None:
    """Wherever it lies and whenever it was written; another seed or length makes another."""
    fingerprints = []
    for number, training in enumerate(({}, {}, {"seed": 1}, {"maxLength": 70})):
        folder = tmp_path / str(number)
        folder.mkdir()
        source = jsonl(folder / f"{number}.jsonl", PAIRS)
        os.utime(source, (number, number))
        fingerprints.append(prepared(run_of(folder, source, training=training))[1].data.fingerprint)
    assert fingerprints[0] == fingerprints[1]
    assert len(set(fingerprints)) == 3


def test_changed_data_are_prepared_anew_and_a_changed_plan_is_planned_anew(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "a.jsonl", PAIRS)
    _, first, workspace = prepared(run_of(tmp_path, source))
    table = (workspace.prepared / "train.ids").stat().st_mtime_ns
    _, planned, _ = prepared(run_of(tmp_path, source, training={"epochs": 1}))
    assert (first.plan.total_steps, planned.plan.total_steps) == (18, 6)
    assert (workspace.prepared / "train.ids").stat().st_mtime_ns == table
    _, anew, _ = prepared(run_of(tmp_path, jsonl(tmp_path / "a.jsonl", PAIRS[:50])))
    assert anew.data.train_examples == 46


def test_other_weights_are_planned_anew_over_the_same_data(tmp_path: Path) -> None:
    """The data depends on the tokenizer only; what train loads is the model as it is now."""
    source = jsonl(tmp_path / "a.jsonl", PAIRS)
    _, first, _ = prepared(run_of(tmp_path, source))
    save_file({"weight": np.zeros(4, dtype=np.float32)}, tmp_path / "model" / "model.safetensors")
    _, second, _ = prepared(run_of(tmp_path, source))
    assert first.data == second.data
    assert first.model_revision != second.model_revision == second.plan.model_revision


def test_what_a_killed_process_left_is_swept_away(tmp_path: Path) -> None:
    """Half-made data never looks complete, and does not fill the volume."""
    left = tmp_path / "workspace" / "prepared.tmp-1"
    left.mkdir(parents=True)
    (left / "train.ids").write_bytes(b"half")
    prepared(run_of(tmp_path, jsonl(tmp_path / "a.jsonl", PAIRS)))
    assert sorted(path.name for path in (tmp_path / "workspace").iterdir()) == ["prepared"]


# --- bad data -------------------------------------------------------------------------------------------------------


def test_bad_records_end_the_stage_with_all_their_places(tmp_path: Path) -> None:
    """Of all files, not of the first one only; nothing half-made is left."""
    train = []
    for name in ("a", "b"):
        rows = [*PAIRS[:3], {"prompt": "x"}, {"prompt": "\ud800", "completion": "y"}]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        train.append({"uri": f"file://{tmp_path}/{name}.jsonl"})
    reason, message = refusal(run_of(tmp_path, "file:///none", dataset={"train": train}))
    assert reason == "DatasetInvalid"
    assert message == (
        f"4 records cannot be used:\n"
        f"file://{tmp_path}/a.jsonl:4: no field 'completion'; the record has: 'prompt'\n"
        f"file://{tmp_path}/a.jsonl:5: half of a surrogate pair, \\ud800, is not text\n"
        f"file://{tmp_path}/b.jsonl:4: no field 'completion'; the record has: 'prompt'\n"
        f"file://{tmp_path}/b.jsonl:5: half of a surrogate pair, \\ud800, is not text"
    )
    assert [path.name for path in (tmp_path / "workspace").iterdir()] == ["bad-records.jsonl"]


@pytest.mark.parametrize(
    ("content", "spec", "message"),
    [
        ("", {}, "spec.dataset.train has no usable record: the data is empty"),
        ('{"text": ""}\n', {}, "spec.dataset.train has no usable record: of 1 read, none has anything to learn from "
         "within 1024 tokens"),
        ('{"text": "a"}\n' * 2, {}, "spec.dataset.train: 2 usable records are too few to hold some out: add records, "
         "or set spec.dataset.validation.fraction and spec.dataset.test.fraction to 0"),
        ('{"text": "a", "label": "x"}\n' * 9, CLASSIFY, "spec.dataset.train: all records have the label 'x': "
         "classification needs two classes or more"),
        ("".join(f'{{"text": "a", "label": {number}}}\n' for number in range(1001)), CLASSIFY,
         "more than 1000 different labels: is the label column the right one?"),
        ('{"text": "a", "label": "x"}\n{"text": "a", "label": "y"}\n',
         {"objective": {"classification": {"labels": ["x", "z"]}}},
         "1 record cannot be used:\nfile://{folder}/a.jsonl:2: label 'y' is not one of "
         "spec.objective.classification.labels: x, z"),
    ],
)  # fmt: skip
def test_datasets_that_cannot_be_learnt_from(tmp_path: Path, content: str, spec: dict[str, Any], message: str) -> None:
    (tmp_path / "a.jsonl").write_text(content)
    expected = ("DatasetInvalid", message.replace("{folder}", str(tmp_path)))
    assert refusal(run_of(tmp_path, tmp_path / "a.jsonl", **spec)) == expected


def test_a_class_that_training_never_saw_is_refused(tmp_path: Path) -> None:
    rows = [*LABELLED[:3], {"text": "t", "label": "new"}]
    validation = {"sources": [{"uri": f"file://{jsonl(tmp_path / 'v.jsonl', rows)}"}]}
    run = run_of(tmp_path, jsonl(tmp_path / "a.jsonl", LABELLED), dataset={"validation": validation}, **CLASSIFY)
    told = "label 'new' does not occur in the training data: a, b"
    assert refusal(run)[1] == f"1 record cannot be used:\nfile://{tmp_path}/v.jsonl:4: {told}"


def test_a_class_of_one_record_is_kept_for_training(tmp_path: Path) -> None:
    rows = [*LABELLED, {"text": "t", "label": "rare"}]
    _, page, workspace = prepared(run_of(tmp_path, jsonl(tmp_path / "a.jsonl", rows), **CLASSIFY))
    train = open_split(workspace, page, "train")
    assert train is not None
    assert page.labels.index("rare") in train.labels  # type: ignore[operator]


@pytest.mark.parametrize(
    ("uri", "reason", "message"),
    [
        ("file://{folder}/none.jsonl", "DatasetUnavailable",
         "spec.dataset.train[0].uri: file://{folder}/none.jsonl does not exist; {name} holds: a.xyz, empty, model"),
        ("file://{folder}/*.jsonl", "DatasetUnavailable", "spec.dataset.train[0].uri: file://{folder}/*.jsonl holds no "
         "data file (.jsonl, .ndjson, .json, .csv, .tsv, .parquet, .txt, .md)"),
        ("file://{folder}/empty", "DatasetUnavailable", "spec.dataset.train[0].uri: file://{folder}/empty holds no "
         "data file (.jsonl, .ndjson, .json, .csv, .tsv, .parquet, .txt, .md)"),
        ("file://{folder}/a.xyz", "BadSpec", "spec.dataset.train[0]: cannot tell the format of a.xyz by its suffix "
         "(.jsonl, .ndjson, .json, .csv, .tsv, .parquet, .txt, .md): set spec.dataset.train[0].format"),
        ("pvc://claim/a.jsonl", "DatasetUnavailable", "spec.dataset.train[0].uri: pvc://claim is not mounted"),
        ("configmap://maps/../a", "BadSpec", "spec.dataset.train[0].uri: configmap://maps/../a leaves its volume: "
         "write the path of plain names, without '//', '.' or '..'"),
    ],
)  # fmt: skip
def test_sources_that_are_not_there(tmp_path: Path, uri: str, reason: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.xyz").write_text("")
    run = run_of(tmp_path, "pvc://claim/x")
    (source,) = run.spec.dataset.train
    moved = source.model_copy(update={"uri": uri.replace("{folder}", str(tmp_path))})
    dataset = run.spec.dataset.model_copy(update={"train": [moved]})
    run = run.model_copy(update={"spec": run.spec.model_copy(update={"dataset": dataset})})
    run = run.model_copy(update={"workspace": str(tmp_path / "empty" / ".workspace")})
    expected = message.replace("{folder}", str(tmp_path)).replace("{name}", tmp_path.name)
    assert refusal(run) == (reason, expected)


# --- bad models -----------------------------------------------------------------------------------------------------


def breaks(folder: Path, what: str) -> None:
    """Spoil the model in `folder` in the way that `what` names."""
    weights = folder / "model.safetensors"
    if what == "missing":
        folder.rename(folder.with_name("moved"))
    elif what == "file":
        folder.rename(folder.with_name("moved"))
        folder.write_text("")
    elif what == "no config":
        (folder / "config.json").unlink()
    elif what == "adapter":
        (folder / "config.json").rename(folder / "adapter_config.json")
    elif what == "broken config":
        (folder / "config.json").write_text("{")
    elif what == "pickle":
        weights.rename(folder / "pytorch_model.bin")
    elif what == "no weights":
        weights.unlink()
    elif what == "cut":
        weights.write_bytes(weights.read_bytes()[:-8])
    elif what == "pointer":
        weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\n")
    elif what == "shard":
        preparing.write_json(folder / "model.safetensors.index.json", {"weight_map": {"a": "model-2.safetensors"}})
    elif what == "no tokenizer":
        (folder / "tokenizer.json").unlink()
    elif what == "broken tokenizer":
        (folder / "tokenizer.json").write_text("{}")
    elif what == "small":
        preparing.write_json(folder / "config.json", {"vocab_size": 9})


@pytest.mark.parametrize(
    ("what", "reason", "message"),
    [
        ("missing", "ModelUnavailable", "spec.model.uri: {uri} does not exist; {name} holds: a.jsonl, moved"),
        ("file", "ModelInvalid", "spec.model.uri: {uri} is a file; name the folder that holds the model"),
        ("no config", "ModelInvalid",
         "spec.model.uri: {uri} has no config.json; model holds: model.safetensors, tokenizer.json, "
         "tokenizer_config.json"),
        ("adapter", "ModelInvalid", "spec.model.uri: {uri} is an adapter, not a base model; model holds: "
         "adapter_config.json, model.safetensors, tokenizer.json, tokenizer_config.json"),
        ("broken config", "ModelInvalid", "{uri}: config.json is not JSON: Expecting property name enclosed in double "
         "quotes: line 1 column 2 (char 1)"),
        ("pickle", "ModelInvalid", "spec.model.uri: {uri} has no weights as *.safetensors, only pytorch_model.bin: "
         "pickled weights can run code and are refused; convert them to safetensors"),
        ("no weights", "ModelInvalid", "spec.model.uri: {uri} has no weights as *.safetensors"),
        ("cut", "ModelInvalid", "spec.model.uri: model.safetensors of {uri} has 80 bytes where its header says 88: "
         "copy it again"),
        ("pointer", "ModelInvalid", "spec.model.uri: model.safetensors of {uri} is not a safetensors file (a git-lfs "
         "pointer: fetch the file itself)"),
        ("shard", "ModelInvalid", "spec.model.uri: {uri} lacks model-2.safetensors"),
        ("no tokenizer", "ModelInvalid", "{uri} has no tokenizer: one of tokenizer.json, tokenizer.model, "
         "spiece.model, sentencepiece.bpe.model, vocab.txt, vocab.json is needed"),
        ("broken tokenizer", "ModelInvalid", "{uri}: tokenizer.json cannot be read: Model missing. at line 1 column 2"),
        ("small", "ModelInvalid", "spec.model.uri: {uri}: its tokenizer makes token 223, and its embeddings "
         "end at 8"),
    ],
)  # fmt: skip
def test_folders_that_are_no_model(tmp_path: Path, what: str, reason: str, message: str) -> None:
    run = run_of(tmp_path, jsonl(tmp_path / "a.jsonl", PAIRS))
    run = run.model_copy(update={"workspace": str(tmp_path / ".workspace")})
    breaks(tmp_path / "model", what)
    expected = message.replace("{uri}", f"file://{tmp_path}/model").replace("{name}", tmp_path.name)
    assert refusal(run) == (reason, expected)


def test_a_model_in_shards_is_read_through_its_index(tmp_path: Path) -> None:
    folder = preparing.model(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    names = ["model-1.safetensors", "model-2.safetensors"]
    for name in names:
        save_file({name: np.ones(4, dtype=np.float32)}, folder / name)
    preparing.write_json(folder / "model.safetensors.index.json", {"weight_map": dict(zip("ab", names, strict=True))})
    prepared(run_of(tmp_path, jsonl(tmp_path / "a.jsonl", PAIRS)))


def test_a_failed_count_ends_the_stage_in_the_middle_of_the_data(tmp_path: Path) -> None:
    """Target modules that match nothing are told before the data is read to its end."""

    class Failing(preparing.Count):
        failure = Failure(Reason.BAD_SPEC, "spec.method.lora.targetModules: 'q' matches nothing")

    run = run_of(tmp_path, jsonl(tmp_path / "a.jsonl", PAIRS))
    assert refusal(run, count=Failing) == ("BadSpec", "spec.method.lora.targetModules: 'q' matches nothing")
    assert not (tmp_path / "workspace" / "prepared").exists()


# --- bad outputs ----------------------------------------------------------------------------------------------------


def test_a_result_of_the_same_job_may_be_replaced(tmp_path: Path) -> None:
    """By uid, or by name when the job was deleted and applied again."""
    run = run_of(tmp_path, jsonl(tmp_path / "a.jsonl", PAIRS))
    (tmp_path / "output").mkdir()
    for owner in ({"uid": "uid-1"}, {"uid": "other", "namespace": "default", "name": "job"}):
        preparing.write_json(tmp_path / "output" / "manifest.json", {"job": owner})
        prepared(run)


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        (None, "spec.output.uri: {uri} holds files that no job published: name an empty or new folder"),
        ({"job": {"uid": "2", "namespace": "team", "name": "bot"}},
         "spec.output.uri: {uri} holds the result of the job team/bot: name another folder"),
    ],
)  # fmt: skip
def test_what_others_put_there_is_never_replaced(tmp_path: Path, manifest: Any, message: str) -> None:
    run = run_of(tmp_path, jsonl(tmp_path / "a.jsonl", PAIRS))
    (tmp_path / "output").mkdir()
    preparing.write_json(tmp_path / "output" / ("manifest.json" if manifest else "notes.json"), manifest)
    assert refusal(run) == ("OutputNotWritable", message.replace("{uri}", f"file://{tmp_path}/output"))


def test_an_output_that_cannot_be_written_is_told_before_anything_is_done(tmp_path: Path) -> None:
    run = run_of(tmp_path, tmp_path / "none.jsonl", output={"uri": "file:///proc/none/output"})
    assert refusal(run)[0] == "OutputNotWritable"
    assert refusal(run)[1].startswith("spec.output.uri: cannot write file:///proc/none/output: ")
    (tmp_path / "output").write_text("")
    run = run_of(tmp_path, tmp_path / "none.jsonl")
    told = f"spec.output.uri: file://{tmp_path}/output is a file, not a folder"
    assert refusal(run) == ("OutputNotWritable", told)


def test_a_result_that_will_not_fit_is_told(tmp_path: Path) -> None:
    """A full disk is found before the GPU is held, not by publish."""

    class Huge(preparing.Count):
        def result(self, load: dict[str, Any]) -> Any:
            return super().result(load)._replace(trainable=10**15)

    run = run_of(tmp_path, jsonl(tmp_path / "a.jsonl", PAIRS))
    reason, message = refusal(run, count=Huge)
    assert reason == "OutputNotWritable"
    assert message.startswith(
        f"spec.output.uri: file://{tmp_path}/output: the result needs about 4,000,000,000 MB and "
    )


# --- the network ----------------------------------------------------------------------------------------------------

HUB_MODEL = "hf://team/model"


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Point the hub's client, which reads its settings when it is imported, at a server; no pauses between tries."""
    from huggingface_hub import constants

    monkeypatch.setattr(hub, "PAUSES", (0.0, 0.0))

    def point(url: str) -> None:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", url)
        template = url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)

    return point


def hub_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in preparing.model(folder).iterdir()}


def test_a_hub_model_is_pinned_fetched_once_and_complete(tmp_path: Path, online: Any) -> None:
    """Pickles, other forms of the weights and pictures stay on the hub."""
    files = hub_files(tmp_path / "original")
    extra = {
        "pytorch_model.bin": b"x",
        "onnx/model.safetensors": b"x",
        "README.md": b"x",
        "consolidated.safetensors": b"x",
    }
    with servers.hub({"models/team/model": servers.Repository(files | extra)}) as server:
        online(server.url)
        run = run_of(tmp_path, jsonl(tmp_path / "a.jsonl", PAIRS), model={"uri": HUB_MODEL})
        _, page, workspace = prepared(run)
        assert page.model_revision == servers.COMMIT
        assert sorted(path.name for path in workspace.model.iterdir()) == sorted([*files, "origin.json"])
        assert all((workspace.model / name).read_bytes() == content for name, content in files.items())
        server.seen.clear()
        prepared(run_of(tmp_path, jsonl(tmp_path / "a.jsonl", PAIRS[:30]), model={"uri": HUB_MODEL}))
        assert server.seen == []


@pytest.mark.parametrize(
    ("repository", "model", "reason", "message"),
    [
        (None, {}, "ModelUnavailable", "does not exist, or is private and its token is missing or has no access"),
        ({"gated": True, "token": "t"}, {}, "AccessDenied", "is gated: accept its terms on the hub, and name a Secret "
         "with a token in spec.model.auth.secretName"),
        ({}, {"revision": "v9"}, "ModelUnavailable", "has no revision 'v9'"),
    ],
)  # fmt: skip
def test_hub_models_that_cannot_be_had(
    tmp_path: Path, online: Any, repository: Any, model: dict[str, str], reason: str, message: str
) -> None:
    found = {} if repository is None else {"models/team/model": servers.Repository({}, **repository)}
    with servers.hub(found) as server:
        online(server.url)
        run = run_of(tmp_path, jsonl(tmp_path / "a.jsonl", PAIRS), model={"uri": HUB_MODEL, **model})
        assert refusal(run) == (reason, f"spec.model: {HUB_MODEL} {message}")


@pytest.mark.parametrize(
    "wrong", [{"text_config": 3}, {"model_type": "roberta", "pad_token_id": "x"}, {"max_position_embeddings": "x"}]
)
def test_a_config_of_wrong_types_is_left_to_those_who_know_the_architecture(
    tmp_path: Path, wrong: dict[str, Any]
) -> None:
    """The count, which opens it, says what is wrong; the data work trips over nothing in it."""
    preparing.model(tmp_path / "model", **wrong)
    assert prepared(run_of(tmp_path, jsonl(tmp_path / "a.jsonl", PAIRS)))[1].data.train_examples == 90


def test_a_hub_model_without_safetensors_is_refused(tmp_path: Path, online: Any) -> None:
    with servers.hub(
        {"models/team/model": servers.Repository({"config.json": b"{}", "pytorch_model.bin": b""})}
    ) as server:
        online(server.url)
        run = run_of(tmp_path, jsonl(tmp_path / "a.jsonl", PAIRS), model={"uri": HUB_MODEL})
        assert refusal(run) == (
            "ModelInvalid",
            "spec.model.uri: no weights as *.safetensors, only pytorch_model.bin: pickled weights can run code and are "
            "refused; convert them to safetensors",
        )


def test_a_secret_opens_a_private_model(tmp_path: Path, online: Any) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "token").write_text("hf_right\n")
    files = hub_files(tmp_path / "original")
    model = {"uri": HUB_MODEL, "auth": {"secretName": "hub"}}
    with servers.hub({"models/team/model": servers.Repository(files, gated=True, token="hf_right")}) as server:
        online(server.url)
        source = jsonl(tmp_path / "a.jsonl", PAIRS)
        prepared(run_of(tmp_path, source, model=model, mounts={"secret://hub": str(tmp_path / "secret")}))
        run = run_of(tmp_path / "other", source, model=model, mounts={"secret://hub": str(tmp_path)})
        told = "spec.model.auth.secretName: the Secret hub has no key `token`"
        assert refusal(run) == ("AccessDenied", told)


def test_the_key_of_a_secret_can_be_named(tmp_path: Path, online: Any) -> None:
    """A Secret that another tool made has its token under that tool's name."""
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "api-key").write_text("hf_right\n")
    files, source = hub_files(tmp_path / "original"), jsonl(tmp_path / "a.jsonl", PAIRS)
    mounts = {"secret://hub": str(tmp_path / "secret")}
    with servers.hub({"models/team/model": servers.Repository(files, token="hf_right")}) as server:
        online(server.url)
        model = {"uri": HUB_MODEL, "auth": {"secretName": "hub", "key": "api-key"}}
        prepared(run_of(tmp_path, source, model=model, mounts=mounts))
        model["auth"]["key"] = "other"
        told = "spec.model.auth.secretName: the Secret hub has no key `other`"
        assert refusal(run_of(tmp_path / "other", source, model=model, mounts=mounts)) == ("AccessDenied", told)


@pytest.mark.parametrize(
    "content", ["hf_one\nhf_two", "hf_one\r\nX-Injected: 1", "Bearer hf_one", "hf_öne", "hf_one\0", b"hf_one\xff"]
)
@pytest.mark.parametrize("uri", ["hf://team/data", "https://localhost/a.jsonl"])
def test_what_a_secret_holds_is_never_told(tmp_path: Path, uri: str, content: str | bytes) -> None:
    """A key may hold anything. What no header can carry is refused at once, for libraries quote what they refuse."""
    (tmp_path / "api-key").write_bytes(content if isinstance(content, bytes) else content.encode())
    train = [{"uri": uri, "auth": {"secretName": "hub", "key": "api-key"}}]
    run = run_of(tmp_path, "file:///none", dataset={"train": train}, mounts={"secret://hub": str(tmp_path)})
    told = "holds no token: one word of ASCII is wanted, without spaces and line breaks"
    field = "spec.dataset.train[0].auth.secretName: the Secret hub"
    assert refusal(run) == ("AccessDenied", f"{field}: its key `api-key` {told}")


def test_a_hub_adapter_is_pinned_and_fetched_once(tmp_path: Path, online: Any) -> None:
    """With its own Secret; its commit is recorded, its pictures stay there, and what was downloaded goes."""
    files = {path.name: path.read_bytes() for path in adapters.adapter(tmp_path / "original").iterdir()}
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "token").write_text("hf_right\n")
    source = {"uri": "hf://team/adapter", "auth": {"secretName": "hub"}}
    stored = servers.Repository(files | {"picture.png": b"x"}, token="hf_right")
    with servers.hub({"models/team/adapter": stored}) as server:
        online(server.url)
        run = run_of(
            tmp_path,
            jsonl(tmp_path / "a.jsonl", PAIRS),
            method={"lora": {"startFrom": {"adapters": [source]}}},
            mounts={"secret://hub": str(tmp_path / "secret")},
        )
        _, page, workspace = prepared(run)
        assert page.start is not None
        assert [origin.revision for origin in page.start.adapters] == [servers.COMMIT]
        assert {path.name: path.read_bytes() for path in workspace.start.iterdir()} == files
        assert not workspace.downloads.exists()
        server.seen.clear()
        prepared(run)
        assert server.seen == []
        del stored.files["adapter_model.safetensors"]
        stored.files["adapter_model.bin"] = b"x"
        (workspace.start / "adapter_model.safetensors").unlink()
        told = "hf://team/adapter has its weights as a pickle, which could run code: convert them"
        assert refusal(run) == ("BadSpec", f"spec.method.lora.startFrom.adapters[0]: {told}")


def test_without_a_network_the_failure_may_be_retried(tmp_path: Path, online: Any) -> None:
    """The reason is the model's, the exit code that of a failure that may pass."""
    with servers.hub({}) as server:
        pass
    online(server.url)
    run = run_of(tmp_path, jsonl(tmp_path / "a.jsonl", PAIRS), model={"uri": HUB_MODEL})
    with pytest.raises(Failure, match="cannot be reached") as caught:
        prepared(run)
    assert (caught.value.reason, caught.value.code) == ("ModelUnavailable", 70)


@pytest.mark.parametrize(
    ("uri", "names"),
    [
        ("hf://team/data", ["data/train-0.jsonl"]),
        ("hf://team/data/extra", ["extra/a.csv"]),
        ("hf://team/data/data/*.jsonl", ["data/test.jsonl", "data/train-0.jsonl"]),
        ("hf://team/data/extra/a.csv", ["extra/a.csv"]),
    ],
)
def test_hub_data_sets_give_the_files_of_the_split(tmp_path: Path, online: Any, uri: str, names: list[str]) -> None:
    content = "".join(json.dumps(row) + "\n" for row in PAIRS).encode()
    table = b"prompt,completion\n" + b"".join(b"q%d,a\n" % number for number in range(30))
    files = {"README.md": b"#", "data/train-0.jsonl": content, "data/test.jsonl": content, "extra/a.csv": table}
    with servers.hub({"datasets/team/data": servers.Repository(files)}) as server:
        online(server.url)
        prepared(run_of(tmp_path, uri))
        fetched = {path.partition(f"{servers.COMMIT}/")[2] for path in server.seen if path.startswith("GET /datasets/")}
        assert sorted(fetched) == names
        assert not (tmp_path / "workspace" / "downloads").exists()


@pytest.mark.parametrize("name", ["data/../../x.jsonl", "/etc/x.jsonl", "a//b.jsonl", "a\x1b.jsonl"])
def test_a_hub_names_no_place_outside_of_a_repository(tmp_path: Path, online: Any, name: str) -> None:
    """Nothing is fetched then, nor written; a file that nobody asked for does no harm."""
    content = "".join(json.dumps(row) + "\n" for row in PAIRS).encode()
    with servers.hub({"datasets/team/data": servers.Repository({"a.jsonl": content, name: content})}) as server:
        online(server.url)
        assert "names a file by no plain path: " in refusal(run_of(tmp_path, "hf://team/data"))[1]
        assert not [path for path in server.seen if "/resolve/" in path]
        prepared(run_of(tmp_path, "hf://team/data/a.jsonl"))


HERE = {"allow": ["localhost"]}
"""The servers of these tests listen on loopback."""


@pytest.fixture
def secure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[dict[str, servers.Answer], servers.Server]]:
    """An https server that this process trusts, and what it answers."""
    answers: dict[str, servers.Answer] = {}
    folder = tmp_path / ".tls"
    folder.mkdir()
    monkeypatch.setattr(hub, "PAUSES", (0.0, 0.0))
    with servers.https(answers, folder) as server:
        monkeypatch.setenv("SSL_CERT_FILE", str(folder / "cert.pem"))
        yield answers, server


def test_https_data_is_fetched_with_its_token(tmp_path: Path, secure: Any) -> None:
    """A busy server is asked again; the token does not follow a redirection."""
    answers, server = secure
    (tmp_path / "token").write_text("t1")
    body = "".join(json.dumps(row) + "\n" for row in PAIRS).encode()
    answers["/a.jsonl?v=1"] = servers.Answer(code=302, token="t1", failures=[503], headers={"Location": "/b"})
    answers["/b"] = servers.Answer(body)
    train = [{"uri": f"{server.url}/a.jsonl?v=1", "auth": {"secretName": "s"}}]
    run = run_of(
        tmp_path, "file:///none", dataset={"train": train}, mounts={"secret://s": str(tmp_path)}, downloads=HERE
    )
    assert prepared(run)[1].data.train_examples == 90
    assert server.seen == ["/a.jsonl?v=1 Bearer t1", "/a.jsonl?v=1 Bearer t1", "/b None"]


@pytest.mark.parametrize(
    ("answer", "reason", "code", "message"),
    [
        ({"code": 404}, "DatasetUnavailable", 66, "does not exist (HTTP 404)"),
        ({"token": "x"}, "AccessDenied", 77, "needs credentials (HTTP 401): name a Secret with a `token` in "
         "spec.dataset.train[0].auth.secretName"),
        ({"code": 500}, "DatasetUnavailable", 70, "cannot be read (HTTP 500)"),
        ({"headers": {"Content-Type": "text/html"}}, "DatasetUnavailable", 66,
         "is a web page, not data: name the file's own address"),
        ({"headers": {"Content-Length": "9"}, "body": b"123"}, "DatasetUnavailable", 70, "ended after 3 of 9 bytes"),
    ],
)  # fmt: skip
def test_https_data_that_cannot_be_had(
    tmp_path: Path, secure: Any, answer: dict[str, Any], reason: str, code: int, message: str
) -> None:
    answers, server = secure
    answers["/a.jsonl"] = servers.Answer(**answer)
    uri = f"{server.url}/a.jsonl"
    with pytest.raises(Failure) as caught:
        prepared(run_of(tmp_path, uri, downloads=HERE))
    found = caught.value
    assert (found.reason, found.code, found.message) == (reason, code, f"spec.dataset.train[0]: {uri} {message}")
