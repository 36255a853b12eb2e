"""Peak memory of the train stage as `prepare` estimates it, and as the kernel measured it, over methods and models.

    .venv/bin/python benchmarks/memory_plan.py                       # every method on two real models: an hour
    .venv/bin/python benchmarks/memory_plan.py --methods lora full --models minilm-l6

Each case is prepared and trained for three steps, each stage in a process of its own, on records that are all as long
as they may be. Measured is the peak resident memory of the train process above what it holds as it begins to load the
model; the estimate is that of status.plan without its part for the runtime.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finetune_api.run import Run
from finetune_api.spec.methods import Method
from finetune_api.status import Memory

ASSETS = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "finetune-operator/assets/out"
CASES: dict[str, dict[str, Any]] = {
    "smollm2-135m-instruct": {"objective": {"sft": {}}, "training": {"maxLength": 256}},
    "minilm-l6": {"objective": {"classification": {}}, "training": {"maxLength": 128}},
}
OPTIONS = {("smollm2-135m-instruct", "bitFit"): {"addBiases": True}}
"""Of methods whose defaults do not suit a model."""
STEPS = 3
PREPARE = "import sys; from finetune_trainer.__main__ import main; sys.exit(main(sys.argv[1:]))"
TRAIN = (
    "import resource, sys; from finetune_trainer.stages import train; from finetune_trainer.__main__ import main;"
    "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
    "load, before = train.loading.load, [];"
    "train.loading.load = lambda *a, **o: (before.append(peak()), load(*a, **o))[1];"
    "code = main(sys.argv[1:]); print(before[0], peak()); sys.exit(code)"
)


def main() -> int:
    options = parser().parse_args()
    print("| model | method | precision | estimate, MB | measured, MB | ÷ | runtime, MB |")
    print("|---|---|---|---|---|---|---|")
    ratios = []
    for case in cases(options):
        estimate, above, runtime = measured(options, *case)
        if above is None:
            print(f"| {' | '.join(case)} | | | {estimate} | |", flush=True)
            continue
        ratios.append(estimate / above)
        figures = f"{estimate / 1e6:.0f} | {above / 1e6:.0f} | {ratios[-1]:.2f} | {runtime / 1e6:.0f}"
        print(f"| {' | '.join(case)} | {figures} |", flush=True)
    print(f"\nestimate ÷ measured: {min(ratios):.2f} to {max(ratios):.2f} over {len(ratios)} cases")
    return 0


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=Path, default=ASSETS)
    parser.add_argument("--models", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--methods", nargs="+", default=[str(f.alias) for f in Method.model_fields.values()])
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"])
    parser.add_argument("--rows", type=int, default=4, help="rows of a micro-batch (default: 4)")
    parser.add_argument("--checkpointing", action="store_true", help="with training.gradientCheckpointing")
    return parser


def cases(options: argparse.Namespace) -> Iterator[tuple[str, str, str]]:
    for model in options.models:
        for method in options.methods:
            for precision in options.precision:
                yield model, method, precision


def measured(options: argparse.Namespace, model: str, method: str, precision: str) -> tuple[Any, int | None, int]:
    """Bytes estimated and measured above the runtime, and the runtime's; a message and None for what is refused."""
    with tempfile.TemporaryDirectory(prefix="memory-plan-") as name:
        folder = Path(name)
        run = run_of(options, folder, model, method, precision)
        (folder / "run.json").write_text(json.dumps(run.to_wire()), encoding="utf-8")
        stage(PREPARE, folder, "prepare")
        report = json.loads((folder / "prepare").read_bytes())
        if "plan" not in report:
            return report["message"], None, 0
        memory = Memory.model_validate(report["plan"]["memory"])
        before, peak = (1024 * int(number) for number in stage(TRAIN, folder, "train").split()[-2:])
        return memory.total - memory.runtime_bytes, peak - before, before


def stage(program: str, folder: Path, name: str) -> str:
    """What a stage printed."""
    command = [sys.executable, "-c", program, name, "--run", str(folder / "run.json"), "--port", "0"]
    command += ["--termination-log", str(folder / name)]
    offline = os.environ | {"HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, env=offline, check=False).stdout


def run_of(options: argparse.Namespace, folder: Path, model: str, method: str, precision: str) -> Run:
    case = CASES[model]
    text = "the model reads this line to its end and no further " * 200
    rows = [{"text": f"{number} {text}", "label": "ab"[number % 2]} for number in range(40)]
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    training = {"batchSize": options.rows, "microBatchSize": options.rows, "maxSteps": STEPS, "precision": precision}
    training |= {"gradientCheckpointing": options.checkpointing}
    spec = {
        "model": {"uri": f"file://{options.assets.absolute()}/models/{model}"},
        "dataset": {"train": [{"uri": f"file://{data}"}]},
        "objective": case["objective"],
        "method": {method: OPTIONS.get((model, method), {})},
        "training": case["training"] | training,
        "output": {"uri": f"file://{folder}/output"},
        "resources": {"gpus": 0, "memory": "1Ti"},
    }
    content = {"name": "benchmark", "uid": "benchmark", "workspace": f"{folder}/workspace", "spec": spec}
    run = Run.model_validate(content)
    return run.model_copy(update={"spec": run.spec.resolved()})


if __name__ == "__main__":
    sys.exit(main())
