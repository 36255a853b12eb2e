"""Peak memory of `prepare` on a small and on a large JSONL file, and their ratio.

    .venv/bin/python benchmarks/prepare_memory.py --model assets/models/smollm2-135m-instruct           # 10 MB and 2 GB
    .venv/bin/python benchmarks/prepare_memory.py --model assets/models/smollm2-135m-instruct --mb 10 100

Makes prompt/completion records of random words in a temporary folder (three times the largest size of free disk), runs
the stage as a process, and reads the peak resident memory of that process from the kernel. The process that counts
parameters beside it imports torch, is the same whatever the data, and is shown apart.
"""

import argparse
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from finetune_api.run import Run

SYLLABLES = [a + b for a in "bcdfghjklmnprstvz" for b in ("a", "e", "i", "o", "u", "ar", "en", "ist", "on")]
MEASURE = (
    "import resource, sys; from finetune_trainer.__main__ import main; code = main(sys.argv[1:]);"
    "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss);"
    "sys.exit(code)"
)


def main() -> int:
    options = parser().parse_args()
    results = [measured(options, megabytes) for megabytes in options.mb]
    print("| input | records | wall, s | MB/s | peak RSS of prepare, MB | of the parameter count, MB |")
    print("|---|---|---|---|---|---|")
    for megabytes, records, seconds, own, other in results:
        print(f"| {megabytes} MB | {records:,} | {seconds:.0f} | {megabytes / seconds:.1f} | {own:.0f} | {other:.0f} |")
    print(f"\npeak RSS at {options.mb[-1]} MB ÷ at {options.mb[0]} MB: {results[-1][3] / results[0][3]:.2f}")
    return 0


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a model folder with a real tokenizer")
    parser.add_argument("--mb", type=int, nargs="+", default=[10, 2000], help="sizes of the input (default: 10 2000)")
    parser.add_argument("--folder", type=Path, help="where the data goes (default: the system's temporary folder)")
    parser.add_argument("--packing", choices=["never", "always"], default="never")
    return parser


def measured(options: argparse.Namespace, megabytes: int) -> tuple[int, int, float, float, float]:
    """Size, records, seconds, and peak megabytes of the stage and of its helper."""
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="prepare-memory-") as name:
        folder = Path(name)
        print(f"writing {megabytes} MB", file=sys.stderr, flush=True)
        records = write(folder / "data.jsonl", megabytes * 1_000_000)
        run = run_of(options, folder)
        (folder / "run.json").write_text(json.dumps(run.to_wire()), encoding="utf-8")
        began = time.monotonic()
        command = [sys.executable, "-c", MEASURE, "prepare", "--run", str(folder / "run.json"), "--port", "0"]
        offline = os.environ | {"HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=offline)
        own, other = done.stdout.split()
        return megabytes, records, time.monotonic() - began, int(own) / 1024, int(other) / 1024


def run_of(options: argparse.Namespace, folder: Path) -> Run:
    dataset = {"train": [{"uri": f"file://{folder}/data.jsonl"}], "packing": options.packing}
    spec = {"model": {"uri": f"file://{options.model.absolute()}"}, "dataset": dataset}
    spec |= {"output": {"uri": f"file://{folder}/output"}, "resources": {"gpus": 0}}
    workspace = f"{folder}/workspace"
    return Run.model_validate({"name": "benchmark", "uid": "benchmark", "workspace": workspace, "spec": spec})


def write(path: Path, size: int) -> int:
    """Write about `size` bytes of records; returns their number. Smaller files are the beginning of larger ones."""
    source = random.Random(1)
    words = ["".join(source.choices(SYLLABLES, k=source.randint(1, 3))) for _ in range(20_000)]
    often = list(itertools.accumulate(1 / rank for rank in range(1, len(words) + 1)))  # Zipf, as words in text are
    records = 0
    with path.open("w", encoding="utf-8") as file:
        while records % 1000 or file.tell() < size:
            prompt = " ".join(source.choices(words, cum_weights=often, k=source.randint(20, 120)))
            completion = " ".join(source.choices(words, cum_weights=often, k=source.randint(5, 60)))
            file.write(json.dumps({"prompt": f"{records}: {prompt}?", "completion": completion}) + "\n")
            records += 1
    return records


if __name__ == "__main__":
    sys.exit(main())
