"""Every method on the same model, data and budget: what moves, what it costs, and what it learns at its defaults.

    .venv/bin/python examples/assets.py ASSETS                     # the model and the data, once
    .venv/bin/python benchmarks/methods.py                         # fifty minutes on two quiet cores
    .venv/bin/python benchmarks/methods.py --methods lora ia3 --steps 10
    .venv/bin/python benchmarks/methods.py --write                 # and put table and picture into docs/methods.md

SmolLM2-135M learns to write docstrings (sft): prompt/completion records, 8 a step. Nothing but the method differs; its
options and its learning rate are its defaults. Each method is prepared and trained by the stages themselves, in
processes of their own, one after the other; memory is the peak resident memory of the training process. Before each
trains, the same layers, batches and optimizer run in a bare loop, with what the method itself asks of a loop (AdaLoRA's
allocator): the ratio, the median of --rounds, shows what the stage's bookkeeping costs.
"""

import argparse
import json
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune_api.run import Run
from finetune_api.schema import members_that
from finetune_api.spec.methods import Method

ROOT = Path(__file__).parents[1]
PAGE, PICTURE, FIGURES = ROOT / "docs/methods.md", ROOT / "docs/methods.svg", ROOT / "docs/methods.json"
BEGIN, END = "<!-- benchmarks/methods.py writes from here -->", "<!-- to here -->"
METHODS = [str(field.alias) for field in Method.model_fields.values()]
WARM = 2
"""Steps that are not timed."""
MERGED = re.compile(r"merged model against adapter: logits differ by at most ([0-9.e+-]+)")
NEEDS: dict[str, dict[str, Any]] = {"bitFit": {"addBiases": True}}
"""Options without which a method refuses this model."""


def main() -> int:
    options = parser().parse_args()
    if options.child:
        stage, run = options.child
        return MEASURES[stage](run) if stage in MEASURES else plain_stage(stage, run)
    rows = []
    for name in options.methods:
        with tempfile.TemporaryDirectory(prefix="methods-") as folder:
            row = measured(name, options, Path(folder) / name)
        if row:
            rows.append(row)
            if options.write:
                write(row)
    print(table(rows))
    return 0


def write(row: dict[str, Any]) -> None:
    """Put a method's figures in place of its old ones, and the table and the picture of all anew."""
    known = json.loads(FIGURES.read_bytes()) if FIGURES.exists() else {}
    known[row["method"]] = row
    rows = [known[name] for name in METHODS if name in known]
    FIGURES.write_text(json.dumps({row["method"]: row for row in rows}, indent=1) + "\n", encoding="utf-8")
    draw(rows)
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n\n{table(rows)}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    parser.add_argument("--assets", type=Path, default=cache / "finetune-operator/assets/out")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--steps", type=int, default=12, help="optimizer steps (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=1, help="of the bare loop and the stage (default: %(default)s)")
    parser.add_argument("--precision", choices=["auto", "bf16", "fp32"], default="auto", help="training.precision")
    parser.add_argument("--length", type=int, default=160, help="tokens per record (default: %(default)s)")
    parser.add_argument("--write", action="store_true", help="update docs/methods.md and its picture")
    parser.add_argument("--child", nargs=2, metavar=("STAGE", "RUN"), help=argparse.SUPPRESS)
    return parser


def measured(name: str, options: argparse.Namespace, folder: Path) -> dict[str, Any] | None:
    """What one method cost and learnt; None, with a word on standard error, where it cannot run here."""
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(run_of(name, options, folder).model_dump_json(by_alias=True, exclude_none=True))
    said = stages_of(name, options.rounds, folder)
    if said is None:
        return None
    plan = json.loads((folder / "workspace/prepare.report.json").read_bytes())["plan"]
    merged = MERGED.search((folder / "publish.log").read_text())
    noise = said["noise"].get("difference")
    result = json.loads((folder / "workspace/result/result.json").read_bytes())
    artifact = folder / "workspace/result/artifact"
    row = {
        "method": name,
        "steps": options.steps,
        "trainable": plan["trainableParameters"],
        "share": plan["trainableParameters"] / plan["totalParameters"],
        "before": result["evaluation"]["base"]["loss"],
        "after": result["evaluation"]["tuned"]["loss"],
        "tokens_per_second": sum(said["bare"]["tokens"][WARM:]) / _seconds(said["train"]),
        "of_bare": statistics.median(said["ratios"]),
        "reopened": said["reopen"]["difference"],
        "merged": float(merged[1]) if merged else None,
        "noise": noise,
        "peak_mb": said["train"]["peak_kb"] / 1024,
        "size": sum(path.stat().st_size for path in artifact.rglob("*") if path.is_file()),
        "loader": result["loader"],
        "rate": Method.model_validate({name: {}}).options.default_learning_rate,
    }
    print(row, file=sys.stderr, flush=True)
    return row


def stages_of(name: str, rounds: int, folder: Path) -> dict[str, Any] | None:
    """What each stage said, the last time that it ran, and under `ratios` bare loop ÷ train of each round."""
    said: dict[str, Any] = {"ratios": []}
    for stage in ("prepare", *("bare", "train") * rounds, "reopen", "publish", "noise"):
        if stage == "train":  # a run that is done already would not be done again
            shutil.rmtree(folder / "workspace/result", ignore_errors=True)
            shutil.rmtree(folder / "workspace/checkpoints", ignore_errors=True)
        command = [sys.executable, __file__, "--child", stage, str(folder / "run.json")]
        with (folder / f"{stage}.log").open("w+") as log:
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=log, text=True)
        said[stage] = json.loads(done.stdout.splitlines()[-1]) if stage in MEASURES and done.stdout else {}
        if done.returncode:
            print(f"{name}: {stage}:\n{(folder / f'{stage}.log').read_text()[-2000:]}", file=sys.stderr, flush=True)
            return None
        if stage == "train":
            said["ratios"].append(_seconds(said["bare"]) / _seconds(said["train"]))
    return said


def _seconds(said: dict[str, Any]) -> float:
    """From the last step that warms up to the last of all."""
    ticks: list[float] = said["ticks"]
    return ticks[-1] - ticks[WARM - 1]


def run_of(name: str, options: argparse.Namespace, folder: Path) -> Run:
    spec = {
        "model": {"uri": f"file://{options.assets.absolute()}/models/smollm2-135m-instruct"},
        "dataset": {
            "train": [{"uri": f"file://{options.assets.absolute()}/data/docstrings.jsonl"}],
            "validation": {"fraction": 0},
            "test": {"fraction": 0.015},
        },
        "method": {name: NEEDS.get(name, {})},
        "training": {
            "maxSteps": options.steps,
            "batchSize": 8,
            "maxLength": options.length,
            "precision": options.precision,
        },
        "resources": {"gpus": 0},
        "output": {"uri": f"file://{folder}/out", "merge": name in members_that(Method, "is_mergeable")},
    }
    run = Run.model_validate(
        {"name": name.lower(), "uid": "benchmark", "workspace": f"{folder}/workspace", "spec": spec}
    )
    return run.model_copy(update={"spec": run.spec.resolved()})


def plain_stage(stage: str, run: str) -> int:
    """In a process of its own, as a pod runs it."""
    from finetune_trainer.__main__ import main as trainer

    return trainer([stage, "--run", run, "--port", "0"])


def train_stage(run_file: str) -> int:
    """The train stage: when each step ended, and the peak memory of its process."""
    from finetune_api.run import read_run
    from finetune_trainer.runtime.optional_imports import leave_out_unused

    run, ticks = read_run(Path(run_file)), []
    leave_out_unused(run.spec)

    from finetune_trainer.runtime.progress import Progress
    from finetune_trainer.runtime.workspace import Workspace
    from finetune_trainer.stages.train import train

    class Timed(Progress):
        def update(self, **fields: Any) -> None:
            super().update(**fields)
            if fields.get("loss") is not None:
                ticks.append(time.perf_counter())

    train(run, Workspace(Path(run.workspace)), Timed("train"))
    print(json.dumps({"ticks": ticks, "peak_kb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}))
    return 0


def bare_loop(run_file: str) -> int:
    """The same model, batches and optimizer without a Trainer, callbacks, checks or checkpoints: tokens and end of each
    step."""
    import torch

    from finetune_api.run import read_run
    from finetune_trainer.models.device import use_cores
    from finetune_trainer.runtime.progress import Progress
    from finetune_trainer.runtime.stop import StopRequest
    from finetune_trainer.runtime.workspace import Workspace
    from finetune_trainer.stages.train import assemble
    from finetune_trainer.training.context import stage_of

    run = read_run(Path(run_file))
    use_cores()
    trainer = assemble(stage_of(run, Workspace(Path(run.workspace)), Progress("train"), StopRequest()))
    moving = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(moving, lr=1e-5, weight_decay=0, fused=True)
    batches = iter(trainer.get_train_dataloader())
    assert run.spec.training.max_steps is not None
    trainer.model.train()
    tokens: list[int] = []
    ticks: list[float] = []
    for step in range(run.spec.training.max_steps):
        batch = next(batches)
        with trainer.autocast():
            loss = trainer.objective.compute_loss(trainer.model, batch).loss / batch["items"]
        penalty = trainer.method.penalty(trainer.model)
        (loss if penalty is None else loss + penalty).backward()
        torch.nn.utils.clip_grad_norm_(moving, 1.0)
        optimizer.step()
        trainer.method.after_step(trainer.model, step + 1)
        optimizer.zero_grad()
        tokens.append(batch["tokens"])
        ticks.append(time.perf_counter())
    print(json.dumps({"tokens": tokens, "ticks": ticks}))
    return 0


def reopened(run_file: str) -> int:
    """How far the held-out loss of the published files, opened in this process, is from what the stage reported."""
    from finetune_api.run import read_run
    from finetune_trainer.artifacts import result as results
    from finetune_trainer.methods import METHODS as IMPLEMENTED
    from finetune_trainer.models import device, loading
    from finetune_trainer.runtime.progress import Progress
    from finetune_trainer.runtime.stop import StopRequest
    from finetune_trainer.runtime.workspace import Workspace
    from finetune_trainer.stages.train import assemble
    from finetune_trainer.training.context import stage_of

    run = read_run(Path(run_file))
    device.use_cores()
    stage = stage_of(run, Workspace(Path(run.workspace)), Progress("train"), StopRequest())
    method, trainer = IMPLEMENTED[run.spec.method.kind], assemble(stage)
    options, head = run.spec.method.options, trainer.objective.head(())
    base = method.load(Path(stage.page.model_path), head, stage.page.pad_token_id, options, trainer.objective.dtype)
    trainer.model = method.reopen(base, stage.workspace.result / results.ARTIFACT)
    loading.narrow_frozen(trainer.model, trainer.objective.dtype)
    rows, result = stage.rows("test"), results.read(stage.workspace.result)
    assert rows is not None
    assert result is not None
    assert result.evaluation.tuned is not None
    metrics, _ = trainer.assess(rows, lambda: None)
    print(json.dumps({"difference": abs(metrics["loss"] - result.evaluation.tuned["loss"])}))
    return 0


def noise(run_file: str) -> int:
    """How far the adapter's own logits in fp32 are from those in float64, where `publish` compares merged models."""
    import torch

    from finetune_api.run import read_run
    from finetune_trainer.artifacts import merge
    from finetune_trainer.data import prepared
    from finetune_trainer.models import device
    from finetune_trainer.runtime.workspace import Workspace

    run = read_run(Path(run_file))
    if not run.spec.output.merge:
        print(json.dumps({}))
        return 0
    device.use_cores()
    workspace = Workspace(Path(run.workspace))
    page = prepared.read_prepared(workspace)
    assert page is not None
    (_, adapted), prompts = merge.reopened(run, page, workspace), merge.prompts(page, workspace)
    short, long = merge.logits(adapted, prompts), merge.logits(adapted.to(torch.float64), prompts)
    differences = [float((a - b).abs().max()) for a, b in zip(short, long, strict=True)]
    print(json.dumps({"difference": max(differences)}))
    return 0


MEASURES = {"bare": bare_loop, "train": train_stage, "reopen": reopened, "noise": noise}
"""What runs beside the plain stages, or in place of one; each says in a last line what it found."""


COLUMNS = (
    "method",
    "trainable parameters",
    "share",
    "held-out loss",
    "tokens/s",
    "÷ bare loop",
    "peak memory, MB",
    "published",
    "reopened",
    "merged",
    "fp32 alone",
    "rate",
)


def table(rows: list[dict[str, Any]]) -> str:
    steps = " or ".join(sorted({str(row["steps"]) for row in rows}))
    lines = [
        f"SmolLM2-135M, {steps} steps of 8 records, the methods' own default options and learning rates.\n",
        _line(COLUMNS),
        _line(["---"] * len(COLUMNS)),
        *(_line(_cells(row)) for row in rows),
    ]
    return "\n".join(lines) + "\n"


def _cells(row: dict[str, Any]) -> list[str]:
    return [
        f"`{row['method']}`",
        f"{row['trainable']:,}",
        f"{row['share']:.3%}",
        f"{row['before']:.3f} → **{row['after']:.3f}**",
        f"{row['tokens_per_second']:.0f}",
        _known(row["of_bare"], ".2f"),
        f"{row['peak_mb']:,.0f}",
        f"{row['size'] / 1e6:,.2f} MB",
        _known(row["reopened"], "g"),
        _known(row["merged"], ".0e"),
        _known(row["noise"], ".0e"),
        f"{row['rate']:g}",
    ]


def _known(figure: float | None, form: str) -> str:
    return "" if figure is None else format(figure, form)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def draw(rows: list[dict[str, Any]]) -> None:
    """Held-out loss against the share of the trainable parameters: below and to the left is better."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "methods"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.5, 4.2), layout="constrained")
    axes.scatter([100 * row["share"] for row in rows], [row["after"] for row in rows], color="#3465a4", zorder=3)
    for row in rows:
        place = (100 * row["share"], row["after"])
        axes.annotate(row["method"], place, xytext=(5, 4), textcoords="offset points", fontsize=8)
    if rows:
        axes.axhline(rows[0]["before"], color="#888888", linewidth=1, linestyle="--")
        axes.annotate("base model", (100 * min(row["share"] for row in rows), rows[0]["before"]), xytext=(0, 4),
                      textcoords="offset points", fontsize=8, color="#666666")  # fmt: skip
    axes.set(xscale="log", xlabel="trainable parameters, % of all", ylabel="held-out loss")
    axes.grid(color="#dddddd", linewidth=0.5)
    figure.savefig(PICTURE, metadata={"Date": None})


if __name__ == "__main__":
    sys.exit(main())
