"""What tests of the prepare stage share: a model folder made without torch, a run, and a count that costs nothing."""

import json
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from finetune_api.events import StageReport
from finetune_api.run import Run
from finetune_api.spec.job_spec import FineTuneJobSpec
from finetune_trainer.data.prepared import Prepared, read_prepared
from finetune_trainer.planning.client import Parameters
from finetune_trainer.runtime.failures import Failure
from finetune_trainer.runtime.progress import Progress
from finetune_trainer.runtime.workspace import Workspace
from finetune_trainer.stages.prepare import prepare

PAD, START, END = "<|pad|>", "<|start|>", "<|end|>"
CHATML = (
    "{% for message in messages %}{{ '<|start|>' + message.role + '\n' + message.content + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"
)


def byte_tokenizer() -> Tokenizer:
    """Three special tokens and one token a byte: ids can be counted by hand."""
    symbols = [PAD, START, END, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={symbol: number for number, symbol in enumerate(symbols)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in (PAD, START, END)])
    return tokenizer


def model(folder: Path, template: str | None = CHATML, tokenizer: Tokenizer | None = None, **config: Any) -> Path:
    """A folder that looks like a model to everything but torch."""
    folder.mkdir(parents=True)
    (tokenizer or byte_tokenizer()).save(str(folder / "tokenizer.json"))
    special = {"pad_token": PAD, "bos_token": START, "eos_token": END}
    write_json(folder / "tokenizer_config.json", special | ({"chat_template": template} if template else {}))
    write_json(
        folder / "config.json", {"model_type": "llama", "vocab_size": 300, "max_position_embeddings": 4096} | config
    )
    save_file({"weight": np.ones(4, dtype=np.float32)}, folder / "model.safetensors")
    return folder


def run_of(folder: Path, train: Path | str, **spec: Any) -> Run:
    """A run in `folder` with the model that is there; keys of `spec` replace stanzas, `dataset` adds to the default.
    `mounts` and `downloads` stand beside the spec."""
    if not (folder / "model").exists() and "model" not in spec:
        model(folder / "model")
    uri = train if isinstance(train, str) else f"file://{train}"
    dataset = {"train": [{"uri": uri}]} | spec.pop("dataset", {})
    stanzas = {"model": {"uri": f"file://{folder}/model"}, "output": {"uri": f"file://{folder}/output"}}
    stanzas |= {"resources": {"gpus": 0}, "dataset": dataset} | spec
    beside = {name: stanzas.pop(name) for name in ("mounts", "downloads") if name in stanzas}
    content = {"name": "job", "uid": "uid-1", "workspace": f"{folder}/workspace", "spec": stanzas, **beside}
    return Run.model_validate(content)


class Count:
    """A count that is ready at once; `failure` is what it ends with."""

    failure: Failure | None = None

    def __init__(self, model: Path, spec: FineTuneJobSpec) -> None:
        self.asked: list[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def ask(self, labels: list[str]) -> None:
        self.asked = labels

    def check(self) -> None:
        if self.failure is not None:
            raise self.failure

    def result(self, load: dict[str, Any]) -> Parameters:
        assert self.asked is not None
        self.check()
        return Parameters(1000, 10)


def prepared(run: Run, count: type[Count] = Count) -> tuple[StageReport, Prepared, Workspace]:
    """The stage's report, its page and the workspace."""
    workspace = Workspace(Path(run.workspace))
    workspace.root.mkdir(parents=True, exist_ok=True)
    report = prepare(run, workspace, Progress("prepare"), count)  # type: ignore[arg-type]
    page = read_prepared(workspace)
    assert page is not None
    return report, page, workspace


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")
