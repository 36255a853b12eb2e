#!/bin/sh
# Print the tables of docs/benchmarks.md again, one after the other: about three and a half hours on two quiet cores,
# an idle one among them: MINUTES=5 makes that shorter.
set -eu
cd "$(dirname "$0")/.."
assets=${ASSETS:-${XDG_CACHE_HOME:-$HOME/.cache}/finetune-operator/assets/out}
.venv/bin/python examples/assets.py "$assets"
.venv/bin/python benchmarks/train_speed.py --assets "$assets"
benchmarks/operator_numbers.sh
.venv/bin/python benchmarks/start.py
.venv/bin/python benchmarks/prepare_memory.py
.venv/bin/python benchmarks/memory_plan.py --assets "$assets"
.venv/bin/python benchmarks/method_lines.py
