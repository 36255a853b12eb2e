"""Speed and memory of the train stage against a bare PyTorch loop and against trl's SFTTrainer.

    .venv/bin/python examples/assets.py assets                                    # the model and the data, once
    .venv/bin/python benchmarks/train_speed.py --assets assets                    # half an hour on two quiet cores
    .venv/bin/python benchmarks/train_speed.py --assets assets --steps 6 --rounds 1 --variants bare ours

SmolLM2-135M with LoRA of rank 16 on all linear layers, prompt/completion records of Python functions and docstrings
as `prepare` left them (all variants read the same token ids), 8 records a step, one precision for all. Each variant
runs in a process of its own; rounds are interleaved; ratios are of medians. The first steps warm up and are not
timed. Tokens are those of the records, padding left out. A second clock counts CPU seconds: on a machine with other
work it is the steadier one. Nothing here shares code with the train stage but what `ours` is made of, and the order
of batches that `bare` is given.
"""

import argparse
import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

WARM = 2
MICRO, RANK, ALPHA, RATE, LENGTH, SEED = 8, 16, 32, 2e-4, 256, 42
HELD_OUT = 64
"""Test records on which every variant is scored at the end."""


def main() -> int:
    options = parser().parse_args()
    if options.variant:
        print(json.dumps(VARIANTS[options.variant](options)))
        return 0
    with tempfile.TemporaryDirectory(prefix="train-speed-") as folder:
        prepare(options, Path(folder))
        rounds = [
            {name: measured(name, options, Path(folder)) for name in options.variants} for _ in range(options.rounds)
        ]
    show(options.variants, rounds)
    return 0


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    assets = cache / "finetune-operator/assets/out"
    parser.add_argument(
        "--assets", type=Path, default=assets, help="folder of examples/assets.py (default: %(default)s)"
    )
    parser.add_argument("--steps", type=int, default=20, help="timed steps a run (default: 20)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each variant (default: 3)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16", help="of all variants (default: bf16)")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--variant", choices=list(VARIANTS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser


# --- the parent -------------------------------------------------------------------------------------------------------


def prepare(options: argparse.Namespace, folder: Path) -> None:
    """Tokenise once, with the stage itself; all variants read what it leaves."""
    from finetune_api.run import Run

    spec = {
        "model": {"uri": f"file://{options.assets.absolute()}/models/smollm2-135m-instruct"},
        "dataset": {
            "train": [{"uri": f"file://{options.assets.absolute()}/data/docstrings.jsonl"}],
            "validation": {"fraction": 0.01},
            "test": {"fraction": 0.025},
        },
        "method": {"lora": {"rank": RANK, "alpha": ALPHA}},
        "training": {
            "maxSteps": options.steps + WARM,
            "batchSize": MICRO,
            "learningRate": RATE,
            "maxLength": LENGTH,
            "seed": SEED,
            "precision": options.precision,
        },
        "evaluation": {"everySteps": options.steps + WARM},
        "resources": {"gpus": 0},
        "output": {"uri": f"file://{folder}/out"},
    }
    run = Run.model_validate(
        {"name": "train-speed", "uid": "benchmark", "workspace": f"{folder}/workspace", "spec": spec}
    )
    run = run.model_copy(update={"spec": run.spec.resolved()})
    (folder / "run.json").write_text(run.model_dump_json(by_alias=True, exclude_none=True))
    command = [sys.executable, "-m", "finetune_trainer", "prepare", "--run", str(folder / "run.json"), "--port", "0"]
    subprocess.run(command, check=True)


def measured(name: str, options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Run one variant in a process of its own."""
    command = [sys.executable, __file__, "--variant", name, "--folder", str(folder), "--steps", str(options.steps)]
    command += ["--threads", str(options.threads), "--precision", options.precision]
    environment = os.environ | {
        "OMP_NUM_THREADS": str(options.threads),
        "OMP_WAIT_POLICY": "PASSIVE",  # as the stage sets it; the same for all
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    output = subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE)
    found: dict[str, float] = json.loads(output.stdout.splitlines()[-1])
    print(f"{name}: {found}", file=sys.stderr, flush=True)
    return found


def show(names: list[str], rounds: list[dict[str, dict[str, float]]]) -> None:
    middle = {
        name: {key: statistics.median(one[name][key] for one in rounds) for key in rounds[0][name]} for name in names
    }
    print("| variant | tokens/s | tokens a CPU second | peak memory, MB | held-out loss |")
    print("|---|---|---|---|---|")
    for name, figures in middle.items():
        speeds = f"{figures['tokens_per_second']:.0f} | {figures['tokens_per_cpu_second']:.0f}"
        print(f"| {name} | {speeds} | {figures['peak_mb']:.0f} | {figures['held_out_loss']:.4f} |")
    if "ours" not in middle:
        return
    print("\n| ours ÷ | tokens/s | tokens a CPU second | peak memory |\n|---|---|---|---|")
    for name in (name for name in names if name != "ours"):
        ratios = [
            middle["ours"][key] / middle[name][key] for key in ("tokens_per_second", "tokens_per_cpu_second", "peak_mb")
        ]
        print(f"| {name} | {' | '.join(f'{ratio:.2f}' for ratio in ratios)} |")
    stall = middle["ours"]["checkpoint_seconds"]
    print(f"\nA checkpoint takes {stall:.2f} s: {stall / 600:.2%} of the training time at one in ten minutes.")


# --- a variant, in its own process ------------------------------------------------------------------------------------


class Clock:
    """Notes wall and CPU time at each step; the steps that warm up are left out."""

    def __init__(self) -> None:
        self.marks: list[tuple[float, float]] = []

    def tick(self) -> None:
        self.marks.append((time.perf_counter(), time.process_time()))

    def figures(self, tokens: list[int]) -> dict[str, float]:
        """`tokens` of each step."""
        (wall, cpu), (wall_end, cpu_end) = self.marks[WARM - 1], self.marks[-1]
        timed = sum(tokens[WARM : len(self.marks)])
        return {
            "tokens_per_second": timed / (wall_end - wall),
            "tokens_per_cpu_second": timed / (cpu_end - cpu),
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }


def ours(options: argparse.Namespace) -> dict[str, float]:
    """The train stage, whole, as a pod runs it."""
    from finetune_api.run import read_run
    from finetune_trainer.data.prepared import open_split, read_prepared
    from finetune_trainer.runtime.progress import Progress
    from finetune_trainer.runtime.workspace import Workspace
    from finetune_trainer.stages.train import train

    class Timed(Progress):
        def update(self, **fields: Any) -> None:
            before, now = self.snapshot(), time.perf_counter()
            super().update(**fields)
            if fields.get("loss") is not None:
                clock.tick()
            if before.activity == "checkpointing":
                checkpoints.append(now - started[0])
            started[0] = now

    clock, checkpoints, started = Clock(), [], [0.0]
    run = read_run(options.folder / "run.json")
    workspace = fresh_workspace(options.folder)
    run = run.model_copy(update={"workspace": str(workspace)})
    report = train(run, Workspace(workspace), Timed("train"))
    page = read_prepared(Workspace(workspace))
    assert page is not None
    split = open_split(Workspace(workspace), page, "train")
    assert split is not None
    order = batch_order(split.lengths, options.steps + WARM)
    figures = clock.figures([int(split.lengths[batch].sum()) for batch in order])
    assert report.evaluation is not None
    return figures | {"held_out_loss": held_out_loss_of_result(run, workspace), "checkpoint_seconds": checkpoints[-1]}


def bare(options: argparse.Namespace) -> dict[str, float]:
    """The fastest loop we know: logits only where they are learnt, similar lengths, bf16, fused AdamW, no checks."""
    import torch
    from torch.nn import functional

    torch.set_num_threads(options.threads)
    model, split = lora_model(options), prepared_split(options, "train")
    base = model.get_base_model()
    for layer in base.model.modules():  # frozen products in bf16 need no cast at each step
        if type(layer) is torch.nn.Linear and not layer.weight.requires_grad and options.precision == "bf16":
            layer.weight.data = layer.weight.data.bfloat16()
    moving = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(moving, lr=RATE, weight_decay=0, fused=True)
    schedule = cosine(optimizer, options.steps + WARM)
    order = batch_order(split.lengths, options.steps + WARM)
    clock = Clock()
    model.train()
    for batch in order:
        ids, positions, targets = padded(split, batch)
        with autocast(options):
            hidden = base.model(input_ids=ids, use_cache=False).last_hidden_state
            logits = base.lm_head(hidden.flatten(0, 1)[positions])
            loss = functional.cross_entropy(logits.float(), targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(moving, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        clock.tick()
    figures = clock.figures([int(split.lengths[batch].sum()) for batch in order])
    return figures | {"held_out_loss": held_out_loss(model, options)}


def trl_defaults(options: argparse.Namespace) -> dict[str, float]:
    """trl as it comes."""
    return with_trl(options)


def trl_best(options: argparse.Namespace) -> dict[str, float]:
    """trl with what makes it faster here: batches of similar length, and activations kept instead of computed twice."""
    return with_trl(options, train_sampling_strategy="group_by_length", activation_checkpointing=False)


def with_trl(options: argparse.Namespace, **settings: Any) -> dict[str, float]:
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    class Ticks(TrainerCallback):
        def on_step_end(self, *arguments: Any, **keywords: Any) -> None:
            clock.tick()

    clock, tokens = Clock(), []
    split = prepared_split(options, "train")
    rows = [
        {"input_ids": record["input_ids"].tolist(), "completion_mask": record["loss_mask"].astype(int).tolist()}
        for record in split
    ]
    config = SFTConfig(
        output_dir=str(options.folder / "trl"), max_steps=options.steps + WARM, per_device_train_batch_size=MICRO,
        learning_rate=RATE, lr_scheduler_type="cosine", warmup_steps=0.03, max_length=LENGTH, completion_only_loss=True,
        bf16=options.precision == "bf16", use_cpu=True, save_strategy="no", report_to=[], seed=SEED, disable_tqdm=True,
        **settings,
    )  # fmt: skip
    lora = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
    tokenizer = AutoTokenizer.from_pretrained(options.folder / "workspace/prepared/tokenizer")
    trainer = SFTTrainer(
        model=base_model(options), args=config, train_dataset=Dataset.from_list(rows), peft_config=lora,
        processing_class=tokenizer, callbacks=[Ticks()],
    )  # fmt: skip
    inner = trainer.training_step

    def counted(model: Any, inputs: Any, *rest: Any) -> Any:
        tokens.append(int(inputs["attention_mask"].sum()))
        return inner(model, inputs, *rest)

    trainer.training_step = counted
    with contextlib.redirect_stdout(sys.stderr):
        trainer.train()
    return clock.figures(tokens) | {"held_out_loss": held_out_loss(trainer.model, options)}


# --- what they share --------------------------------------------------------------------------------------------------


def base_model(options: argparse.Namespace) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(SEED)
    return AutoModelForCausalLM.from_pretrained(page_of(options).model_path, dtype=torch.float32)


def lora_model(options: argparse.Namespace) -> Any:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(base_model(options), config)


def page_of(options: argparse.Namespace) -> Any:
    from finetune_trainer.data.prepared import read_prepared
    from finetune_trainer.runtime.workspace import Workspace

    return read_prepared(Workspace(options.folder / "workspace"))


def prepared_split(options: argparse.Namespace, name: Any) -> Any:
    from finetune_trainer.data.prepared import open_split
    from finetune_trainer.runtime.workspace import Workspace

    return open_split(Workspace(options.folder / "workspace"), page_of(options), name)


def fresh_workspace(folder: Path) -> Path:
    """The prepared data without anything that an earlier round trained."""
    place = Path(tempfile.mkdtemp(dir=folder))
    (place / "prepared").symlink_to(folder / "workspace/prepared")
    return place


def batch_order(lengths: Any, steps: int) -> list[Any]:
    """The stage's own order: the same records in the same batches."""
    from finetune_trainer.training.batching import shuffled

    return shuffled(lengths, MICRO, SEED, epoch=0)[:steps]


def padded(split: Any, batch: Any) -> tuple[Any, Any, Any]:
    """Token ids [rows, longest], flat positions that are learnt from, and what is learnt there."""
    import numpy as np
    import torch

    records = [split[int(index)] for index in batch]
    ids = np.zeros((len(records), max(len(record["input_ids"]) for record in records)), dtype=np.int64)
    learnt = np.zeros_like(ids, dtype=bool)
    for line, record in enumerate(records):
        ids[line, : len(record["input_ids"])] = record["input_ids"]
        learnt[line, : len(record["input_ids"])] = record["loss_mask"]
    places = np.flatnonzero(learnt)
    return torch.from_numpy(ids), torch.from_numpy(places - 1), torch.from_numpy(ids.ravel()[places])


def held_out_loss(model: Any, options: argparse.Namespace) -> float:
    """Mean loss a learnt token on the first test records, a plain forward pass a record: the same for all variants."""
    import torch
    from torch.nn import functional

    split, total, learnt = prepared_split(options, "test"), 0.0, 0
    model.eval()
    with torch.no_grad(), autocast(options):
        for index in range(min(HELD_OUT, len(split))):
            ids, positions, targets = padded(split, [index])
            logits = model(input_ids=ids, use_cache=False).logits.flatten(0, 1)[positions]
            total += float(functional.cross_entropy(logits.float(), targets, reduction="sum"))
            learnt += len(targets)
    return total / learnt


def held_out_loss_of_result(run: Any, workspace: Path) -> float:
    """Of the adapter that the stage left, loaded by peft alone."""
    from peft import PeftModel

    options = argparse.Namespace(folder=workspace.parent, precision=run.spec.training.precision)
    return held_out_loss(PeftModel.from_pretrained(base_model(options), workspace / "result/artifact"), options)


def autocast(options: argparse.Namespace) -> Any:
    import torch

    return torch.autocast("cpu", torch.bfloat16, enabled=options.precision == "bf16")


def cosine(optimizer: Any, steps: int) -> Any:
    from transformers import get_cosine_schedule_with_warmup

    return get_cosine_schedule_with_warmup(optimizer, round(0.03 * steps), steps)


VARIANTS: dict[str, Callable[[argparse.Namespace], dict[str, float]]] = {
    "bare": bare,
    "ours": ours,
    "trl-defaults": trl_defaults,
    "trl-best": trl_best,
}

if __name__ == "__main__":
    sys.exit(main())
