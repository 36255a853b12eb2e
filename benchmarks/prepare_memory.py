"""Peak memory of `prepare` on a small and on a large JSONL file, and their ratio.

    .venv/bin/python benchmarks/prepare_memory.py                # 10 MB and 2 GB: half an hour on two quiet cores
    .venv/bin/python benchmarks/prepare_memory.py --mb 10 100
    .venv/bin/python benchmarks/prepare_memory.py --model assets/models/smollm2-135m-instruct  # a real tokenizer

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

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

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
    parser.add_argument("--model", type=Path, help="a model folder (default: a small one with a tokenizer of words)")
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
        run = run_of(options, folder, options.model or small_model(folder / "model"))
        (folder / "run.json").write_text(json.dumps(run.to_wire()), encoding="utf-8")
        began = time.monotonic()
        command = [sys.executable, "-c", MEASURE, "prepare", "--run", str(folder / "run.json"), "--port", "0"]
        offline = os.environ | {"HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=offline)
        own, other = done.stdout.split()
        return megabytes, records, time.monotonic() - began, int(own) / 1024, int(other) / 1024


def run_of(options: argparse.Namespace, folder: Path, model: Path) -> Run:
    dataset = {"train": [{"uri": f"file://{folder}/data.jsonl"}], "packing": options.packing}
    spec = {"model": {"uri": f"file://{model.absolute()}"}, "dataset": dataset}
    spec |= {"output": {"uri": f"file://{folder}/output"}, "resources": {"gpus": 0}}
    workspace = f"{folder}/workspace"
    return Run.model_validate({"name": "benchmark", "uid": "benchmark", "workspace": workspace, "spec": spec})


def write(path: Path, size: int) -> int:
    """Write about `size` bytes of records; returns their number. Smaller files are the beginning of larger ones."""
    source, words = random.Random(1), vocabulary()
    often = list(itertools.accumulate(1 / rank for rank in range(1, len(words) + 1)))  # Zipf, as words in text are
    texts = [" ".join(source.choices(words, cum_weights=often, k=source.randint(5, 120))) for _ in range(5000)]
    records = 0
    with path.open("w", encoding="utf-8") as file:
        while records % 1000 or file.tell() < size:
            prompt, completion = source.choices(texts, k=2)
            file.write(f'{{"prompt": "{records}: {prompt}?", "completion": "{completion}"}}\n')
            records += 1
    return records


def vocabulary() -> list[str]:
    source = random.Random(0)
    return ["".join(source.choices(SYLLABLES, k=source.randint(1, 3))) for _ in range(20_000)]


def small_model(folder: Path) -> Path:
    """A folder that prepare takes for a model: a Llama's config, a tokenizer of whole words, four weights."""
    folder.mkdir()
    symbols = dict.fromkeys(["<unk>", "<end>", *vocabulary()])
    tokenizer = Tokenizer(models.WordLevel({symbol: number for number, symbol in enumerate(symbols)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<unk>", "<end>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = {"model_type": "llama", "vocab_size": len(symbols)} | sizes
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>"}), encoding="utf-8")
    save_file({"weight": np.ones(4, dtype=np.float32)}, folder / "model.safetensors")
    return folder


if __name__ == "__main__":
    sys.exit(main())
