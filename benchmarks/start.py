"""How long the operator takes to import what it needs, now and before it cared.

    .venv/bin/python benchmarks/start.py

CPU seconds of a process, the least of several rounds in turn: what else runs on the machine adds, and never takes away.
"""

import argparse
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
from io import BytesIO
from pathlib import Path

ROOT = Path(__file__).parents[1]
BEFORE = "0e380b5"
"""The commit that the operator is measured against, with the libraries of today."""
AS_IT_IS = [sys.executable, "-m", "finetune_operator", "--help"]
CASES = {
    "python alone": [sys.executable, "-c", "pass"],
    "kopf alone": [sys.executable, "-c", "import kopf"],
    "operator": AS_IT_IS,
    "operator, before": AS_IT_IS,
}


def cpu_seconds(command: list[str], path: str) -> float:
    # With bytecode, as in the image.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment | {"PYTHONPATH": path})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    taken: dict[str, list[float]] = {name: [] for name in CASES}
    with tempfile.TemporaryDirectory() as old:
        archive = subprocess.run(
            ["git", "archive", BEFORE, "operator", "crds"], cwd=ROOT, check=True, stdout=subprocess.PIPE
        ).stdout
        with tarfile.open(fileobj=BytesIO(archive)) as tree:
            tree.extractall(old, filter="data")
        for _ in range(rounds):
            for name, command in CASES.items():
                root = Path(old) if "before" in name else ROOT
                taken[name].append(cpu_seconds(command, f"{root / 'operator'}{os.pathsep}{root / 'crds'}"))
    # The first round writes bytecode, and is the least of none.
    least = {name: min(seconds) for name, seconds in taken.items()}
    print("| | CPU seconds |\n|---|---|")
    for name, seconds in least.items():
        print(f"| {name} | {seconds:.2f} |")
    print(f"\noperator ÷ operator, before: {least['operator'] / least['operator, before']:.2f}")


if __name__ == "__main__":
    main()
